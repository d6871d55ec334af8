//! A load: a thread that uses the disk, and one that uses the TPM, each on a CPU of its own.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use nix::libc::O_DIRECT;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::dialogue::Done;
use crate::tpm::Tpm;

const DISK: &str = "/dev/vda";
const PAGE: usize = 4096;
/// How much of the disk is used.
const PAGES: u32 = 4096;

/// What `O_DIRECT` transfers.
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// Uses the disk for a time and, if there is one, the TPM; at least once.
pub(crate) fn run(milliseconds: u32, tpm: Option<&mut Tpm>) -> Done {
    let end = Instant::now() + Duration::from_millis(milliseconds.into());
    std::thread::scope(|scope| {
        let tpm = tpm.map(|tpm| scope.spawn(move || use_tpm(tpm, end)));
        let disk = use_disk(end);
        Done { disk, tpm: tpm.map_or(0, |tpm| tpm.join().expect("the TPM's thread")) }
    })
}

fn use_tpm(tpm: &mut Tpm, end: Instant) -> u32 {
    stay_on(1);
    let mut commands = 0;
    loop {
        commands += tpm.run_each();
        if Instant::now() >= end {
            return commands;
        }
    }
}

/// Writes pages and reads them again, here and there, past the guest's cache.
fn use_disk(end: Instant) -> u32 {
    stay_on(0);
    let disk = File::options().read(true).write(true).custom_flags(O_DIRECT).open(DISK).expect(DISK);
    let mut page = Box::new(Page([0; PAGE]));
    let mut operations = 0_u32;
    loop {
        // A stride that meets every page.
        let page_number = (operations / 2).wrapping_mul(1001) % PAGES;
        let offset = u64::from(page_number) * PAGE as u64;
        page.0.fill(operations.to_le_bytes()[0]);
        disk.write_all_at(&page.0, offset).expect("the disk takes a page");
        disk.read_exact_at(&mut page.0, offset).expect("the disk gives a page");
        operations += 2;
        if Instant::now() >= end {
            return operations;
        }
    }
}

/// Keeps this thread on one CPU, as far as there are so many.
fn stay_on(cpu: usize) {
    let cpus = std::thread::available_parallelism().expect("a number of CPUs");
    let mut set = CpuSet::new();
    set.set(cpu % cpus).expect("a CPU's number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("this CPU");
}
