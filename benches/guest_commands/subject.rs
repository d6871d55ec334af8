//! A guest that is measured: its TPM, its processes, and the client that works in it.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use super::dialogue::{Done, END, READY, Request, Timed, Work};
use super::guest::{Guest, GuestConfig, Programs};
use super::processes::{CpuTime, Processes};
use super::setups::RunningTpm;

/// QEMU's trace events of which each register access causes one.
const EVENTS: [&str; 7] = [
    "tpm_tis_mmio_read",
    "tpm_tis_mmio_write",
    "tpm_crb_mmio_read",
    "tpm_crb_mmio_write",
    "vfio_region_read",
    "vfio_region_write",
    // The doorbell in configuration space.
    "vfio_pci_write_config",
];

/// The disk of a guest, of which the client uses the beginning.
const DISK_SIZE: u64 = 64 << 20;

/// Between two questions to QEMU's monitor.
const QUERY_PAUSE: Duration = Duration::from_millis(4);

/// Makes what the guests have besides the kit's own: the client and the disk's driver.
#[track_caller]
pub(crate) fn programs() -> Programs {
    let mut programs = Programs::new();
    programs.add(&client());
    programs.add_module("virtio_blk");
    programs
}

/// The client, which cargo builds as an example.
#[track_caller]
fn client() -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let client = own.ancestors().nth(2).expect("target folder").join("examples/guest_client");
    assert!(client.exists(), "{} is missing: run ./bench, or cargo build --example guest_client", client.display());
    client
}

/// Where a guest runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Board {
    /// QEMU's `-accel`.
    pub(crate) accel: &'static str,
    pub(crate) cpus: u32,
    /// More words for the kernel's command line.
    pub(crate) append: &'static str,
}

pub(crate) struct Subject {
    guest: Guest,
    processes: Processes,
    /// With QEMU's traces and the guest's disk.
    folder: TempDir,
}

impl Subject {
    /// Boots a guest and starts the client in it. `archive` is that of [`programs`].
    #[track_caller]
    pub(crate) fn boot(tpm: &RunningTpm, board: Board, archive: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir().expect("temporary folder");
        let disk = folder.path().join("disk");
        let file = File::create(&disk).and_then(|file| file.set_len(DISK_SIZE));
        file.expect("a disk in the temporary folder");

        let mut qemu_args = tpm.qemu_args();
        qemu_args.extend(["-D".into(), trace_file(&folder).into()]);
        let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
        qemu_args.extend(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk,addr=6"].map(OsString::from));
        let Board { accel, cpus, append } = board;
        let append = append.to_owned();
        let archives = vec![archive.to_owned()];
        let mut guest =
            Guest::boot(&GuestConfig { accel, cpus, qemu_args, append, archives, ..GuestConfig::default() });

        guest.check(Programs::SETUP);
        // The kernel asks the TPM for random numbers now and then, if it is let.
        guest.check(
            "xzcat /virtio_blk.ko.xz >/tmp/virtio_blk.ko && insmod /tmp/virtio_blk.ko
             [ ! -e /sys/class/misc/hw_random/rng_current ] || echo none >/sys/class/misc/hw_random/rng_current",
        );
        guest.start_talk(&format!("exec {} /bin/guest_client", Programs::RUN));
        assert_eq!(guest.hear(), READY, "from the client in the guest");
        let processes = Processes { qemu: guest.qemu(), tpm: tpm.processes() };
        Self { guest, processes, folder }
    }

    /// Runs a command this many times. What the host's processes spent on it is measured over all of them.
    #[track_caller]
    pub(crate) fn time(&mut self, work: Work, rounds: u32) -> (Timed, CpuTime) {
        let before = self.processes.cpu_time();
        self.run(work, rounds);
        let spent = self.processes.cpu_time().since(before);
        self.guest.tell(&Request::Results.to_string());
        let timed = parse(&self.guest.hear());
        (timed, spent)
    }

    /// Runs a command this many times, and returns how many register accesses QEMU has trapped meanwhile.
    #[track_caller]
    pub(crate) fn count_traps(&mut self, work: Work, rounds: u32) -> usize {
        let before = self.traces();
        self.trace(true);
        self.run(work, rounds);
        self.trace(false);
        self.traces() - before
    }

    /// Keeps the disk and perhaps the TPM busy for a time; meanwhile asks QEMU's monitor again and again, and returns how
    /// long each answer took.
    #[track_caller]
    pub(crate) fn load(&mut self, milliseconds: u32, with_tpm: bool) -> (Done, Vec<Duration>) {
        self.guest.tell(&Request::Load { milliseconds, with_tpm }.to_string());
        let end = Instant::now() + Duration::from_millis(milliseconds.into());
        let mut answers = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            self.guest.monitor("query-status", &json!({}));
            answers.push(start.elapsed());
            std::thread::sleep(QUERY_PAUSE);
        }
        (parse(&self.guest.hear()), answers)
    }

    /// Memory of the TPM's processes, see [`Processes::tpm_memory`].
    pub(crate) fn tpm_memory(&self) -> Option<u32> {
        self.processes.tpm_memory()
    }

    /// Ends the guest.
    #[track_caller]
    pub(crate) fn quit(self) {
        self.guest.quit();
    }

    #[track_caller]
    fn run(&mut self, work: Work, rounds: u32) {
        self.guest.tell(&Request::Time { work, rounds }.to_string());
        assert_eq!(self.guest.hear(), END, "from the client in the guest");
    }

    #[track_caller]
    fn trace(&mut self, enable: bool) {
        for name in EVENTS {
            self.guest.monitor("trace-event-set-state", &json!({ "name": name, "enable": enable }));
        }
    }

    /// How many accesses QEMU has traced so far.
    fn traces(&self) -> usize {
        let traces = std::fs::read_to_string(trace_file(&self.folder)).unwrap_or_default();
        count_accesses(&traces)
    }
}

fn trace_file(folder: &TempDir) -> PathBuf {
    folder.path().join("traces")
}

/// Lines begin with the name of an event, before which there may be a process and a time.
fn count_accesses(traces: &str) -> usize {
    traces.lines().filter(|line| line.split([' ', ':']).any(|word| EVENTS.contains(&word))).count()
}

#[track_caller]
fn parse<T: FromStr<Err: Display>>(line: &str) -> T {
    line.parse().unwrap_or_else(|error| panic!("from the client in the guest: {error}"))
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn only_accesses_are_counted() {
        let traces = "\
tpm_crb_mmio_read CRB read 0x0000000000000000 len:4 val: 0x83
1234@1795621102.986989:vfio_region_write  (0000:00:05.0:region0+0x24, 0x80, 1)
tpm_tis_mmio_write_data2send Data to send to TPM: 0x00000080 (size=4096)
CPU Reset (CPU 0)
";
        assert_eq!(count_accesses(traces), 2);
    }
}
