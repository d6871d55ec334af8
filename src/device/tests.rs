//! The device with a TPM that the tests play: what is held back, and whose memory it is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;
use crate::backend::Done;
use crate::backend::played::{Call, Played};
use crate::frontend::RegisterFile;
use crate::frontend::crb::{Crb, CrbConfig, CrbDoorbell};
use crate::frontend::tis::{Tis, TisConfig};
use crate::platform::{Platform, StartupPolicy};
use crate::tpm::TpmVersion;

const BAR0_INDEX: u32 = ffi::VFIO_PCI_BAR0_REGION_INDEX;
const COMMAND: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 4];
const RESPONSE: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

const ACCESS: u64 = 0x00;
const LOC_CTRL: u64 = 0x08;
const STS: u64 = 0x18;
const FIFO: u64 = 0x24;
const CTRL_REQ: u64 = 0x40;
const CTRL_START: u64 = 0x4c;
const DOORBELL: u64 = bar_map::DOORBELL.offset as u64;
const BUFFER: u64 = bar_map::COMMAND_BUFFER.offset as u64;
const LOG: u64 = bar_map::LOG.offset as u64;
const DOORBELL_START: u64 = bar_map::CONTROL_AREA.offset as u64 + CTRL_START;

/// So long that no test sees its end.
const LONG: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tis,
    Crb,
    CrbDoorbell,
}

const KINDS: [Kind; 3] = [Kind::Tis, Kind::Crb, Kind::CrbDoorbell];

/// A device whose TPM is up, and its backend.
struct Bench {
    device: TpmDevice,
    backend: Played,
    kind: Kind,
}

impl Bench {
    fn new(kind: Kind, completion_hold: Duration) -> Self {
        let crb = CrbConfig { vendor_id: VENDOR_ID, device_id: DEVICE_ID, revision: 1, guest_locality_4: false };
        let registers = Registers::new(match kind {
            Kind::Tis => {
                let tis = Tis::new(TisConfig {
                    version: TpmVersion::V2_0,
                    vendor_id: VENDOR_ID,
                    device_id: DEVICE_ID,
                    revision: 1,
                    guest_locality_4: false,
                });
                RegisterFile::Tis(tis, SharedPages::unmappable())
            }
            Kind::Crb => RegisterFile::Crb(Crb::new(crb, SharedPages::new())),
            Kind::CrbDoorbell => RegisterFile::CrbDoorbell(CrbDoorbell::new(crb, SharedPages::new())),
        });
        let backend = Played::default();
        let engine = Engine::new(Box::new(backend.clone()), Platform::new(TpmVersion::V2_0, StartupPolicy::None), None);
        let interrupt_pin = InterruptPin::IntA;
        let options =
            DeviceOptions { reset_on_connect: false, completion_hold, interrupt_pin, presence: Some(Consent::CLEAR) };
        let device = TpmDevice::new(identity(VENDOR_ID, DEVICE_ID), registers, engine, options);
        let mut bench = Self { device, backend, kind };
        bench.outcome(Done::Control { established: false }, &[]);
        assert_eq!(bench.backend.calls(), [Call::Initialize]);
        bench
    }

    fn outcome(&mut self, done: Done, response: &[u8]) {
        self.backend.0.borrow_mut().outcomes.push_back((Ok(done), response.to_vec()));
        self.device.wake();
    }

    fn respond(&mut self) {
        self.outcome(Done::Response, &RESPONSE);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.device.write(BAR0_INDEX, offset, data), Answer::Now);
    }

    /// Starts a command; gives the answer to the access by which the guest waits for its end.
    fn start(&mut self) -> Answer {
        match self.kind {
            Kind::Tis => {
                self.write(ACCESS, &[2]);
                self.write(STS, &[0x40]);
                for byte in COMMAND {
                    self.write(FIFO, &[byte]);
                }
                self.write(STS, &[0x20]);
            }
            Kind::Crb => {
                self.write(LOC_CTRL, &[1]);
                self.write(CTRL_REQ, &[1]);
                self.write(BUFFER, &COMMAND);
                self.write(CTRL_START, &[1, 0, 0, 0]);
            }
            Kind::CrbDoorbell => {
                self.write(BUFFER, &COMMAND);
                self.write(DOORBELL_START, &[1, 0, 0, 0]);
            }
        }
        let answer = self.ask();
        assert_eq!(self.backend.calls(), [Call::Execute(0, COMMAND.to_vec())]);
        answer
    }

    /// The access by which the guest waits for the end.
    fn ask(&mut self) -> Answer {
        match self.kind {
            Kind::CrbDoorbell => self.device.write(BAR0_INDEX, DOORBELL, &[1, 0, 0, 0]),
            _ => self.device.read(BAR0_INDEX, self.question(), &mut [0; 4]),
        }
    }

    fn question(&self) -> u64 {
        match self.kind {
            Kind::Tis => STS,
            Kind::Crb => CTRL_START,
            Kind::CrbDoorbell => DOORBELL_START,
        }
    }

    fn resume(&mut self, must_answer: bool) -> (Answer, [u8; 4]) {
        let mut data = [0; 4];
        let answer = match self.kind {
            Kind::CrbDoorbell => self.device.resume(Ticket(DOORBELL), &mut [], must_answer),
            _ => self.device.resume(Ticket(self.question()), &mut data, must_answer),
        };
        (answer, data)
    }

    /// Whether the guest sees that its command has ended.
    fn has_ended(&mut self) -> bool {
        let mut data = [0; 4];
        assert_eq!(self.device.read(BAR0_INDEX, self.question(), &mut data), Answer::Now);
        if self.kind == Kind::Tis { data[0] & 0x90 == 0x90 } else { data == [0; 4] }
    }
}

fn held(answer: Answer) -> bool {
    matches!(answer, Answer::Later(_))
}

#[test]
fn the_answer_waits_for_the_end_of_the_command() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, LONG);
        assert!(held(bench.start()), "{kind:?}");
        assert!(held(bench.resume(false).0), "{kind:?}: nothing has happened yet");
        assert!(bench.device.deadline().is_some_and(|deadline| deadline > Instant::now()), "{kind:?}");
        bench.respond();
        assert_eq!(bench.resume(false).0, Answer::Now, "{kind:?}");
        assert!(bench.has_ended(), "{kind:?}");
        assert_eq!(bench.device.deadline(), None, "{kind:?}");
    }
}

#[test]
fn the_doorbell_rings_in_configuration_space_too() {
    const CONFIG: u32 = ffi::VFIO_PCI_CONFIG_REGION_INDEX;
    let ring = |bench: &mut Bench| {
        bench.write(BUFFER, &COMMAND);
        bench.device.write(CONFIG, bar_map::CONFIG_DOORBELL.into(), &[1, 0, 0, 0])
    };
    let mut bench = Bench::new(Kind::CrbDoorbell, LONG);
    assert!(held(ring(&mut bench)));
    assert_eq!(bench.backend.calls(), [Call::Execute(0, COMMAND.to_vec())]);
    bench.respond();
    assert_eq!(bench.resume(false).0, Answer::Now);
    assert!(bench.has_ended());
    let mut data = [0xff; 4];
    assert_eq!(bench.device.read(CONFIG, bar_map::CONFIG_DOORBELL.into(), &mut data), Answer::Now);
    assert_eq!(data, [0; 4]);
    for kind in [Kind::Tis, Kind::Crb] {
        let mut bench = Bench::new(kind, LONG);
        assert_eq!(ring(&mut bench), Answer::Now);
        assert_eq!(bench.backend.calls(), [], "{kind:?}");
    }
}

#[test]
fn an_answer_that_is_wanted_now_says_that_the_command_runs() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, LONG);
        assert!(held(bench.start()), "{kind:?}");
        let (answer, data) = bench.resume(true);
        assert_eq!(answer, Answer::Now, "{kind:?}");
        match kind {
            Kind::Tis => assert_eq!(data[0] & 0x90, 0x80),
            Kind::Crb => assert_eq!(data, [1, 0, 0, 0]),
            Kind::CrbDoorbell => assert!(bench.device.registers.is_busy()),
        }
    }
}

#[test]
fn without_a_hold_every_access_is_answered_at_once() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, Duration::ZERO);
        assert_eq!(bench.start(), Answer::Now, "{kind:?}");
        assert_eq!(bench.ask(), Answer::Now, "{kind:?}");
        bench.respond();
        assert!(bench.has_ended(), "{kind:?}");
    }
}

#[test]
fn a_reset_ends_the_hold() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, LONG);
        assert!(held(bench.start()), "{kind:?}");
        bench.device.reset();
        assert_eq!(bench.resume(false).0, Answer::Now, "{kind:?}");
    }
}

#[test]
fn what_does_not_ask_for_the_end_is_answered_meanwhile() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, LONG);
        assert!(held(bench.start()), "{kind:?}");
        for offset in [0x00, 0x30, BUFFER, 0x1_0000] {
            assert_eq!(bench.device.read(BAR0_INDEX, offset, &mut [0; 4]), Answer::Now, "{kind:?} {offset:#x}");
        }
        assert_eq!(bench.device.read(ffi::VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut [0; 4]), Answer::Now, "{kind:?}");
    }
}

#[test]
fn a_command_that_is_answered_without_the_tpm_is_not_waited_for() {
    for kind in [Kind::Crb, Kind::CrbDoorbell] {
        let mut bench = Bench::new(kind, LONG);
        bench.write(LOC_CTRL, &[1]);
        bench.write(CTRL_REQ, &[1]);
        bench.write(BUFFER, &[0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0x7b]);
        match kind {
            Kind::Crb => bench.write(CTRL_START, &[1, 0, 0, 0]),
            _ => bench.write(DOORBELL, &[1, 0, 0, 0]),
        }
        assert!(bench.has_ended(), "{kind:?}");
        let mut response = [0; 10];
        assert_eq!(bench.device.read(BAR0_INDEX, BUFFER, &mut response), Answer::Now);
        assert_eq!(response, [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x42], "{kind:?}: TPM_RC_COMMAND_SIZE");
        assert_eq!(bench.backend.calls(), [], "{kind:?}");
    }
}

#[test]
fn only_a_crb_has_memory_to_map_and_that_is_its_windows_and_the_log() {
    let area = |kind| {
        let bench = Bench::new(kind, LONG);
        assert!(bench.device.mapping(ffi::VFIO_PCI_CONFIG_REGION_INDEX).is_none());
        bench.device.mapping(BAR0_INDEX).map(|mapping| (mapping.offset, mapping.areas.to_vec()))
    };
    let log = MappableArea { offset: 0x1_0000, size: 0x1_0000 };
    assert_eq!(area(Kind::Tis), None);
    assert_eq!(area(Kind::Crb), Some((0, vec![MappableArea { offset: 0x9000, size: 0x1000 }, log])));
    assert_eq!(area(Kind::CrbDoorbell), Some((0, vec![MappableArea { offset: 0x8000, size: 0x2000 }, log])));
}

#[test]
fn a_former_client_has_no_more_hold_on_the_memory_and_the_next_finds_what_was_in_it() {
    for kind in [Kind::Crb, Kind::CrbDoorbell] {
        let mut bench = Bench::new(kind, LONG);
        bench.write(BUFFER, &COMMAND);
        let file = bench.device.mapping(BAR0_INDEX).unwrap().file.try_clone_to_owned().unwrap();
        let former = File::from(file);
        bench.device.disconnected();
        former.write_all_at(&[0xee; 12], BUFFER).unwrap();
        let mut data = [0; 12];
        assert_eq!(bench.device.read(BAR0_INDEX, BUFFER, &mut data), Answer::Now);
        assert_eq!(data, COMMAND, "{kind:?}");
    }
}

#[test]
fn the_log_is_kept_over_a_disconnection_and_is_the_servers_again_after_a_reset() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, LONG);
        let log = |bench: &mut Bench| {
            let mut data = [0xff; 8];
            assert_eq!(bench.device.read(BAR0_INDEX, LOG, &mut data), Answer::Now);
            data
        };
        bench.device.set_log(b"log").unwrap();
        bench.write(LOG + 4, b"and");
        bench.device.disconnected();
        assert_eq!(&log(&mut bench), b"log\0and\0", "{kind:?}");
        bench.device.reset();
        assert_eq!(&log(&mut bench), b"log\0\0\0\0\0", "{kind:?}");
    }
}

#[test]
fn a_reset_leaves_nothing_in_the_memory() {
    for kind in [Kind::Crb, Kind::CrbDoorbell] {
        let mut bench = Bench::new(kind, LONG);
        bench.write(BUFFER, &COMMAND);
        bench.device.reset();
        let mut data = [0xff; 4096];
        assert_eq!(bench.device.read(BAR0_INDEX, BUFFER, &mut data), Answer::Now);
        assert_eq!(data, [0; 4096], "{kind:?}");
    }
}

#[test]
fn the_registers_follow_the_bar() {
    const LADDR: u64 = 0x5c;
    for (kind, register) in [(Kind::Crb, LADDR), (Kind::CrbDoorbell, 0x8000 + LADDR)] {
        let mut bench = Bench::new(kind, LONG);
        bench.write(LOC_CTRL, &[1]);
        let bar = 0xfe90_0000_u32.to_le_bytes();
        assert_eq!(bench.device.write(ffi::VFIO_PCI_CONFIG_REGION_INDEX, 0x10, &bar), Answer::Now);
        let mut data = [0; 4];
        assert_eq!(bench.device.read(BAR0_INDEX, register, &mut data), Answer::Now);
        assert_eq!(u32::from_le_bytes(data), 0xfe90_9000, "{kind:?}");
    }
}

#[test]
fn a_request_by_physical_presence_is_handed_over_by_a_reset_and_outlives_its_client() {
    // A platform that starts nothing up fails each request at once.
    for kind in KINDS {
        let mut bench = Bench::new(kind, LONG);
        bench.write(bar_map::PPI.offset.into(), &[[0; 4], [5, 0, 0, 0], [0; 4], [1, 0, 0, 0]].concat());
        bench.device.disconnected();
        let pending = |bench: &Bench| bench.device.presence().unwrap().pending().map(|request| request.operation);
        assert_eq!(pending(&bench), Some(5), "{kind:?}");
        bench.device.reset();
        assert_eq!(pending(&bench), None, "{kind:?}");
        let mut words = [[0; 4]; 2];
        let mut read = |at, word: &mut [u8; 4]| {
            let offset = u64::from(bar_map::PPI.offset) + at;
            assert_eq!(bench.device.read(BAR0_INDEX, offset, word), Answer::Now);
        };
        read(0x1c, &mut words[0]);
        read(0x20, &mut words[1]);
        assert_eq!(words.map(u32::from_le_bytes), [5, ppi::FIRMWARE_FAILURE], "{kind:?}");
    }
}

/// The lines that a device asserts.
#[derive(Default)]
struct Lines(Vec<u32>);

impl Interrupts for Lines {
    fn line(&mut self, index: u32) {
        self.0.push(index);
    }

    fn message(&mut self, index: u32, _: u32) {
        panic!("a message of {index}");
    }
}

impl Bench {
    fn lines(&mut self) -> Vec<u32> {
        let mut lines = Lines::default();
        self.device.interrupts(&mut lines);
        lines.0
    }

    fn status_and_command(&mut self) -> [u8; 4] {
        let mut data = [0; 4];
        assert_eq!(self.device.read(ffi::VFIO_PCI_CONFIG_REGION_INDEX, 4, &mut data), Answer::Now);
        data
    }
}

#[test]
fn a_completed_command_asserts_the_line_until_the_guest_clears_it() {
    for (kind, enable, cleared) in [(Kind::Tis, (0x08, 0x8000_0001_u32), 0x10), (Kind::Crb, (0x50, 0x8000_0001), 0x54)]
    {
        let mut bench = Bench::new(kind, Duration::ZERO);
        bench.write(if kind == Kind::Tis { ACCESS } else { LOC_CTRL }, &[if kind == Kind::Tis { 2 } else { 1 }]);
        bench.write(enable.0, &enable.1.to_le_bytes());
        assert_eq!(bench.start(), Answer::Now);
        assert!(bench.lines().is_empty(), "{kind:?}: it runs");
        bench.respond();
        assert_eq!(bench.lines(), [ffi::VFIO_PCI_INTX_IRQ_INDEX], "{kind:?}");
        assert_eq!(bench.lines(), [ffi::VFIO_PCI_INTX_IRQ_INDEX], "{kind:?}: still");
        assert_eq!(bench.status_and_command(), [0, 0, 0x08, 0], "{kind:?}: interrupt status");

        let command = |disable: u8| [0, disable];
        assert_eq!(bench.device.write(ffi::VFIO_PCI_CONFIG_REGION_INDEX, 4, &command(0x04)), Answer::Now);
        assert!(bench.lines().is_empty(), "{kind:?}: disabled");
        assert_eq!(bench.status_and_command(), [0, 0x04, 0x08, 0], "{kind:?}: but pending");
        assert_eq!(bench.device.write(ffi::VFIO_PCI_CONFIG_REGION_INDEX, 4, &command(0)), Answer::Now);
        assert_eq!(bench.lines(), [ffi::VFIO_PCI_INTX_IRQ_INDEX], "{kind:?}");

        bench.write(cleared, &1_u32.to_le_bytes());
        assert!(bench.lines().is_empty(), "{kind:?}: cleared");
        assert_eq!(bench.status_and_command(), [0; 4], "{kind:?}");
    }
}

#[test]
fn a_reset_lowers_the_line_and_a_lost_client_does_not() {
    let mut bench = Bench::new(Kind::Tis, Duration::ZERO);
    bench.write(ACCESS, &[2]);
    bench.write(0x08, &0x8000_0001_u32.to_le_bytes());
    assert_eq!(bench.start(), Answer::Now);
    bench.respond();
    bench.device.disconnected();
    assert_eq!(bench.lines(), [ffi::VFIO_PCI_INTX_IRQ_INDEX], "the next client's, too");
    bench.device.reset();
    assert!(bench.lines().is_empty());
}

#[test]
fn intx_is_there_with_a_pin_and_not_without() {
    let mut bench = Bench::new(Kind::Tis, Duration::ZERO);
    let line = Irq { count: 1, maskable: true, automasked: true };
    assert_eq!(bench.device.irq(ffi::VFIO_PCI_INTX_IRQ_INDEX), line);
    bench.device.interrupt_pin = InterruptPin::None;
    assert_eq!(bench.device.irq(ffi::VFIO_PCI_INTX_IRQ_INDEX).count, 0);
    for index in [ffi::VFIO_PCI_MSI_IRQ_INDEX, ffi::VFIO_PCI_MSIX_IRQ_INDEX] {
        assert_eq!(bench.device.irq(index).count, 0);
    }
}
