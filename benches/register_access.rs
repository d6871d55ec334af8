//! What a register access costs inside the process: the TPM as the server calls it, through `dyn Device`, against a
//! device that does nothing. All rows are measured in turns within one run, so that a noisy machine disturbs all alike.
//!
//! `cargo bench --bench register_access`

use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use vfio_bindings::bindings::vfio::{VFIO_PCI_BAR0_REGION_INDEX as BAR0, VFIO_PCI_CONFIG_REGION_INDEX as CONFIG};
use vfio_user_tpm::backend::{Backend, BackendError, Done};
use vfio_user_tpm::device::{DEVICE_ID, DeviceOptions, TpmDevice, VENDOR_ID, identity};
use vfio_user_tpm::engine::Engine;
use vfio_user_tpm::frontend::tis::{Tis, TisConfig};
use vfio_user_tpm::frontend::{RegisterFile, Registers};
use vfio_user_tpm::platform::{Platform, StartupPolicy};
use vfio_user_tpm::shared_pages::SharedPages;
use vfio_user_tpm::tpm::{BUFFER_SIZE, Header, Locality, TpmVersion};
use vfio_user_tpm::vfio_user::{Answer, Device, DeviceInfo, Irq, Region, Ticket};

const ROUNDS: usize = 200;
/// Fewer than the FIFO takes or gives before it is set up anew, which is outside the measured time.
const ACCESSES: u32 = 4000;
/// Goal for one access.
const GOAL: f64 = 50.0;

const ACCESS: u64 = 0x00;
const STS: u64 = 0x18;
const DATA_FIFO: u64 = 0x24;
const BASE_ADDRESS_0: u64 = 0x10;

const REQUEST_USE: u8 = 0x02;
const COMMAND_READY: u8 = 0x40;
const GO: u8 = 0x20;
const RESPONSE_RETRY: u8 = 0x02;
const DATA_AVAIL: u8 = 0x10;

/// One access to a device.
type Access = fn(&mut dyn Device);

/// What is measured: its name, what is written to `TPM_STS_x` before each round so that a command or its response
/// begins, and the access.
const ROWS: [(&str, u8, Access); 4] = [
    ("STS read, 4 bytes", COMMAND_READY, read_sts),
    ("FIFO byte write", COMMAND_READY, write_fifo),
    ("FIFO byte read", RESPONSE_RETRY, read_fifo),
    ("config read, 4 bytes", COMMAND_READY, read_config),
];

fn main() {
    let mut tpms = ROWS.map(|(_, begin, _)| if begin == RESPONSE_RETRY { answering() } else { tpm() });
    let mut nothing = [const { Vec::new() }; ROWS.len()];
    let mut times = [const { Vec::new() }; ROWS.len()];
    for _ in 0..ROUNDS {
        for (row, (_, begin, access)) in ROWS.into_iter().enumerate() {
            write(&mut tpms[row], STS, begin);
            times[row].push(round(&mut tpms[row], access));
            nothing[row].push(round(&mut Nothing, access));
        }
    }

    println!("{:22} {:>9} {:>9} {:>6}  goal {GOAL} ns", "one access", "TPM", "nothing", "ratio");
    for (row, (name, ..)) in ROWS.into_iter().enumerate() {
        let (tpm, nothing) = (median(&mut times[row]), median(&mut nothing[row]));
        let verdict = if tpm < GOAL { "met" } else { "missed" };
        println!("{name:22} {tpm:6.1} ns {nothing:6.1} ns {:6.1}  {verdict}", tpm / nothing);
    }
}

fn read_sts(device: &mut dyn Device) {
    let mut data = [0; 4];
    let _ = black_box(device.read(BAR0, black_box(STS), black_box(&mut data)));
}

fn write_fifo(device: &mut dyn Device) {
    // The largest size field: all bytes are of one command.
    let _ = black_box(device.write(BAR0, black_box(DATA_FIFO), black_box(&[0xff])));
}

fn read_fifo(device: &mut dyn Device) {
    let mut data = [0];
    let _ = black_box(device.read(BAR0, black_box(DATA_FIFO), black_box(&mut data)));
}

fn read_config(device: &mut dyn Device) {
    let mut data = [0; 4];
    let _ = black_box(device.read(CONFIG, black_box(BASE_ADDRESS_0), black_box(&mut data)));
}

/// Nanoseconds of one access, on average over a round.
fn round(device: &mut dyn Device, access: Access) -> f64 {
    let start = Instant::now();
    for _ in 0..ACCESSES {
        access(black_box(device));
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(ACCESSES)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A TPM that runs, with locality 0 active and ready for a command.
fn tpm() -> TpmDevice {
    let registers = TisConfig {
        version: TpmVersion::V2_0,
        vendor_id: VENDOR_ID,
        device_id: DEVICE_ID,
        revision: 1,
        guest_locality_4: false,
    };
    let platform = Platform::new(registers.version, StartupPolicy::None);
    let engine = Engine::new(Box::new(Echo::default()), platform, None);
    let mut device = TpmDevice::new(
        identity(VENDOR_ID, DEVICE_ID),
        Registers::new(RegisterFile::Tis(Tis::new(registers), SharedPages::unmappable())),
        engine,
        DeviceOptions::default(),
    );
    device.wake();
    write(&mut device, ACCESS, REQUEST_USE);
    write(&mut device, STS, COMMAND_READY);
    assert_eq!(status(&mut device), COMMAND_READY);
    device
}

/// A TPM with a response of the largest size.
fn answering() -> TpmDevice {
    let mut device = tpm();
    let size = u32::try_from(BUFFER_SIZE).expect("4096");
    let mut command = Header { tag: 0x8001, size, code: 0 }.to_bytes().to_vec();
    command.resize(BUFFER_SIZE, 0);
    for byte in command {
        write(&mut device, DATA_FIFO, byte);
    }
    write(&mut device, STS, GO);
    device.wake();
    assert_ne!(status(&mut device) & DATA_AVAIL, 0);
    device
}

fn write(device: &mut TpmDevice, offset: u64, byte: u8) {
    assert_eq!(device.write(BAR0, offset, &[byte]), Answer::Now);
}

fn status(device: &mut TpmDevice) -> u8 {
    let mut status = [0];
    assert_eq!(device.read(BAR0, STS, &mut status), Answer::Now);
    status[0]
}

/// How everything ends that is no command.
const CONTROL: Done = Done::Control { established: false };

/// A TPM that answers each command with itself.
#[derive(Default)]
struct Echo {
    done: Option<Done>,
    command: Vec<u8>,
}

impl Backend for Echo {
    fn initialize(&mut self) -> Result<(), BackendError> {
        self.done = Some(CONTROL);
        Ok(())
    }

    fn hash(&mut self, _data: &[u8]) -> Result<(), BackendError> {
        self.done = Some(CONTROL);
        Ok(())
    }

    fn execute(&mut self, _locality: Locality, command: &[u8]) -> Result<(), BackendError> {
        self.command = command.to_vec();
        self.done = Some(Done::Response);
        Ok(())
    }

    fn reset_established(&mut self, _locality: Locality) -> Result<(), BackendError> {
        self.done = Some(CONTROL);
        Ok(())
    }

    fn terminate(&mut self) -> Result<(), BackendError> {
        self.done = Some(CONTROL);
        Ok(())
    }

    fn cancel(&mut self) -> bool {
        true
    }

    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>> {
        let done = self.done.take()?;
        if done == Done::Response {
            response.clone_from(&self.command);
        }
        Some(Ok(done))
    }

    fn kill(&mut self) {}

    fn is_gone(&self) -> bool {
        true
    }

    fn take_new_descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What it costs to call a device at all.
struct Nothing;

impl Device for Nothing {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 0, irqs: 0 }
    }

    fn region(&self, _index: u32) -> Region {
        Region::NONE
    }

    fn irq(&self, _index: u32) -> Irq {
        Irq { count: 0, maskable: false, automasked: false }
    }

    fn read(&mut self, _index: u32, _offset: u64, data: &mut [u8]) -> Answer {
        data.fill(0xff);
        Answer::Now
    }

    fn write(&mut self, _index: u32, _offset: u64, _data: &[u8]) -> Answer {
        Answer::Now
    }

    fn resume(&mut self, _ticket: Ticket, _data: &mut [u8], _must_answer: bool) -> Answer {
        Answer::Now
    }

    fn reset(&mut self) {}
}
