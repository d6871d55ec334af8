//! The real device with its engine, and a backend that is played.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use vfio_user_tpm::backend::{Backend, BackendError, Done};
use vfio_user_tpm::device::{self, DeviceOptions, TpmDevice};
use vfio_user_tpm::engine::Engine;
use vfio_user_tpm::frontend::crb::{Crb, CrbConfig, CrbDoorbell};
use vfio_user_tpm::frontend::tis::{Tis, TisConfig};
use vfio_user_tpm::frontend::{RegisterFile, Registers};
use vfio_user_tpm::pci::InterruptPin;
use vfio_user_tpm::platform::{Platform, StartupPolicy};
use vfio_user_tpm::ppi::Consent;
use vfio_user_tpm::shared_pages::SharedPages;
use vfio_user_tpm::tpm::{BUFFER_SIZE, Header, Locality, TpmVersion};

use super::super::tape::Tape;
use super::Other;

/// What the backend is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Control,
    Command,
}

#[derive(Default)]
struct Script {
    under_way: Option<Operation>,
    outcomes: VecDeque<Result<(Done, Vec<u8>), BackendError>>,
    /// Its process has ended by itself.
    died: bool,
    /// Looks until a killed process is gone.
    lingers: u8,
    finishing: bool,
    /// A command that is cancelled ends soon.
    obeys: bool,
}

/// Either end of the script.
#[derive(Clone, Default)]
pub struct Played(Rc<RefCell<Script>>);

pub fn device(tape: &mut Tape<'_>) -> (TpmDevice, Played) {
    let choices = tape.byte();
    let version = if choices & 1 == 0 { TpmVersion::V2_0 } else { TpmVersion::V1_2 };
    let policy = if choices & 2 == 0 { StartupPolicy::None } else { StartupPolicy::Clear };
    let (vendor_id, device_id, revision, guest_locality_4) = (0x1014, 1, 1, choices & 4 != 0);
    let crb = CrbConfig { vendor_id, device_id, revision, guest_locality_4 };
    let tis = || Tis::new(TisConfig { version, vendor_id, device_id, revision, guest_locality_4 });
    let registers = Registers::new(match choices >> 4 & 3 {
        1 => RegisterFile::Crb(Crb::new(crb, SharedPages::new())),
        2 => RegisterFile::CrbDoorbell(CrbDoorbell::new(crb, SharedPages::new())),
        _ => RegisterFile::Tis(tis(), SharedPages::unmappable()),
    });
    // Whether an answer waits, and for how long, is the clock's affair; that it comes is not.
    let completion_hold = if choices & 0x40 == 0 { Duration::ZERO } else { Duration::from_millis(1) };
    let interrupt_pin = if choices & 0x80 == 0 { InterruptPin::None } else { InterruptPin::IntA };
    let played = Played::default();
    let engine = Engine::new(Box::new(played.clone()), Platform::new(version, policy), None);
    let identity = device::identity(device::VENDOR_ID, device::DEVICE_ID);
    (
        TpmDevice::new(
            identity,
            registers,
            engine,
            DeviceOptions {
                reset_on_connect: choices & 8 != 0,
                completion_hold,
                interrupt_pin,
                presence: Some(Consent::all()),
            },
        ),
        played,
    )
}

impl Played {
    fn begin(&self, operation: Operation) -> Result<(), BackendError> {
        let mut script = self.0.borrow_mut();
        assert_eq!(script.under_way, None, "one operation at a time");
        if script.died {
            return Err(BackendError::Gone("it died".to_owned()));
        }
        script.under_way = Some(operation);
        Ok(())
    }
}

impl Other for Played {
    fn step(&mut self, tape: &mut Tape<'_>) {
        let mut script = self.0.borrow_mut();
        let control = |established| (Done::Control { established }, vec![]);
        let outcome = match tape.below(16) {
            0 => Ok(control(tape.flag())),
            1 => Ok((Done::Response, tape.short().to_vec())),
            2 | 3 => {
                let size = tape.number32().min(5000);
                let header = Header { tag: 0x8001, size, code: tape.number32() }.to_bytes();
                let mut response = header.to_vec();
                response.resize(size as usize, tape.byte());
                Ok((Done::Response, response))
            }
            4 => Err(BackendError::Refused("it does not want to".to_owned())),
            5 => {
                script.died = true;
                Err(BackendError::Gone("it died".to_owned()))
            }
            6 => {
                (script.lingers, script.obeys) = (tape.byte(), tape.flag());
                return;
            }
            _ => match script.under_way {
                Some(operation) => Ok(success(operation, tape.flag())),
                None => return,
            },
        };
        if script.outcomes.len() < 4 {
            script.outcomes.push_back(outcome);
        }
    }

    fn finish(&mut self) {
        self.0.borrow_mut().finishing = true;
    }
}

fn success(operation: Operation, established: bool) -> (Done, Vec<u8>) {
    match operation {
        Operation::Control => (Done::Control { established }, vec![]),
        Operation::Command => (Done::Response, Header { tag: 0x8001, size: 10, code: 0 }.to_bytes().to_vec()),
    }
}

impl Backend for Played {
    fn initialize(&mut self) -> Result<(), BackendError> {
        self.0.borrow_mut().died = false;
        self.begin(Operation::Control)
    }

    fn hash(&mut self, _data: &[u8]) -> Result<(), BackendError> {
        self.begin(Operation::Control)
    }

    fn execute(&mut self, _locality: Locality, command: &[u8]) -> Result<(), BackendError> {
        assert!(Header::of_whole(command).is_some() && command.len() <= BUFFER_SIZE, "{command:x?}");
        self.begin(Operation::Command)
    }

    fn reset_established(&mut self, locality: Locality) -> Result<(), BackendError> {
        assert!(locality.number() >= 3);
        self.begin(Operation::Control)
    }

    fn terminate(&mut self) -> Result<(), BackendError> {
        self.begin(Operation::Control)
    }

    fn cancel(&mut self) -> bool {
        let script = self.0.borrow();
        assert_eq!(script.under_way, Some(Operation::Command));
        script.obeys
    }

    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>> {
        let mut script = self.0.borrow_mut();
        let outcome = match (script.outcomes.pop_front(), script.under_way) {
            (None, Some(operation)) if script.finishing => Ok(success(operation, false)),
            (outcome, _) => outcome?,
        };
        script.under_way = None;
        Some(outcome.map(|(done, bytes)| {
            if done == Done::Response {
                *response = bytes;
            }
            done
        }))
    }

    fn kill(&mut self) {
        let mut script = self.0.borrow_mut();
        script.under_way = None;
        script.outcomes.clear();
        script.died = true;
    }

    fn is_gone(&self) -> bool {
        let mut script = self.0.borrow_mut();
        script.lingers = script.lingers.saturating_sub(1);
        script.lingers == 0
    }

    fn take_new_descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        None
    }
}
