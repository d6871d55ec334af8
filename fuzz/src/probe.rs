//! What a TPM of the host answers: to the questions what it is, and to a guest's commands after that. The device is a socket
//! pair, on which the chip's answers lie before they are asked for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Once;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigHandler, Signal, signal};
use vfio_user_tpm::backend::passthrough::properties;
use vfio_user_tpm::backend::synchronous::{Patience, Synchronous, SynchronousError};
use vfio_user_tpm::backend::{Backend, BackendError, Done};
use vfio_user_tpm::seqpacket::{pair, receive, send};
use vfio_user_tpm::tpm::{BUFFER_SIZE, HEADER_SIZE, Header, Locality, TpmVersion};
use vfio_user_tpm::worker::DeviceTpm;
use vfio_user_tpm::worker::frame::{DeviceProperties, MAX_FRAME, Reply, Request};

use super::open_descriptors;
use super::tape::Tape;

/// A guest's commands after the probe.
const COMMANDS: u8 = 8;

pub fn run(data: &[u8]) {
    super::log_lines::check();
    ignore_broken_pipes();
    open_descriptors::unchanged_by(|| {
        let mut tape = Tape::new(data);
        let (device, chip) = pair().expect("a pair");
        for socket in [&device, &chip] {
            // A chip that says nothing would be waited for.
            fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("it can be");
        }
        let copy = device.try_clone().expect("a copy");
        let mut chip = Chip { tape: &mut tape, socket: Some(chip), said: vec![] };
        let found = probe(device, &mut chip);
        assert_eq!(found, expected(&chip.said), "{:x?}", chip.said);
        if let Some(properties) = found {
            serve(copy, properties, &mut chip);
        }
    });
}

/// The worker ignores the signal, as each program with Rust's own start does.
fn ignore_broken_pipes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: to ignore is no function.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.expect("it can be");
    });
}

/// The chip's side, and what it has said to each command; nothing for silence.
struct Chip<'t, 'a> {
    tape: &'t mut Tape<'a>,
    socket: Option<OwnedFd>,
    said: Vec<Option<Vec<u8>>>,
}

impl Chip<'_, '_> {
    /// Says something to the next command before it comes.
    fn speak(&mut self) {
        let answer = answer(self.tape);
        if self.tape.below(32) == 31 {
            self.socket = None;
        }
        let (Some(socket), Some(answer)) = (&self.socket, &answer) else { return self.said.push(None) };
        while receive(socket.as_fd(), &mut [0; MAX_FRAME]).is_ok_and(|command| !command.is_empty()) {}
        send(socket.as_fd(), answer, &[]).expect("there is room");
        self.said.push(Some(answer.clone()));
    }
}

/// Any answer, mostly such as a TPM gives.
fn answer(tape: &mut Tape<'_>) -> Option<Vec<u8>> {
    let tag = tape.choose::<u16>(&[0x8001, 0x00c4, 0x8001, 0x00c4, 0x8002, 0x00c5, 0]);
    let code = if tape.below(4) == 0 { tape.number32() } else { 0 };
    let body = match tape.below(8) {
        0 => return None,
        1 => return Some(tape.short().to_vec()),
        2 => vec![0; usize::from(tape.u16()) % (BUFFER_SIZE + 2)],
        3 => tape.short().to_vec(),
        4 | 5 => [&[0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 0x1e][..], &tape.number32().to_be_bytes()].concat(),
        6 => [&[0, 0, 0, 4][..], &tape.number32().to_be_bytes()].concat(),
        _ => vec![],
    };
    let length = u32::try_from(HEADER_SIZE + body.len()).expect("small");
    let size = if tape.below(8) == 0 { tape.number32() } else { length };
    Some([&Header { tag, size, code }.to_bytes()[..], &body].concat())
}

fn probe(device: OwnedFd, chip: &mut Chip<'_, '_>) -> Option<DeviceProperties> {
    let held = Held { tpm: DeviceTpm::new(device, None).expect("it is open"), chip, outcome: None, response: vec![] };
    let mut tpm = Synchronous::new(held, Patience { limit: Duration::ZERO, interrupt: None });
    match properties(&mut tpm) {
        Ok(found) => found,
        Err(SynchronousError::Backend(error)) => {
            assert!(!error.to_string().chars().any(char::is_control));
            None
        }
        Err(error) => panic!("it is waited for: {error}"),
    }
}

/// Whatever the chip says, the guest gets a whole response that fits, or it is said that the device is gone.
fn serve(device: OwnedFd, properties: DeviceProperties, chip: &mut Chip<'_, '_>) {
    // As the worker is told of it.
    let mut frame = vec![];
    Request::StartDevice(Some(properties)).encode(1, &mut frame);
    assert_eq!(Request::decode(&frame), Ok((1, Request::StartDevice(Some(properties)))));
    let mut tpm = DeviceTpm::new(device, Some(properties)).expect("it is open");
    let mut response = vec![];
    for _ in 0..chip.tape.below(COMMANDS) {
        chip.speak();
        let command = Header { tag: 0x8001, size: 10, code: 0x17b }.to_bytes();
        match tpm.answer(Request::Execute(Locality::ZERO, &command), &mut response) {
            Ok(Reply::Response(response)) => {
                assert!(Header::of_whole(response).is_some() && response.len() <= BUFFER_SIZE, "{response:x?}");
                let said = chip.said.last().expect("something").as_deref();
                if let Some(whole) = said.filter(|said| is_whole(said)) {
                    assert_eq!(response, whole);
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(text) => assert!(chip.socket.is_none() && text.contains("let go of it"), "{text}"),
        }
    }
}

/// What is said to be found, read once more.
fn expected(said: &[Option<Vec<u8>>]) -> Option<DeviceProperties> {
    let said = |index: usize| said.get(index)?.as_deref().filter(|said| (1..=BUFFER_SIZE).contains(&said.len()));
    let tag = |said: &[u8]| if is_whole(said) { [said[0], said[1]] } else { [0; 2] };
    let usable = |size: &[u8]| match u32::from_be_bytes(size.try_into().expect("four bytes")) {
        0..10 => 4096,
        size => u16::try_from(size).unwrap_or(4096).min(4096),
    };
    let first = said(0)?;
    if tag(first) == [0x80, 1] {
        let command_size = match first {
            [_, _, _, _, _, _, 0, 0, 0, 0, _, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 0x1e, size @ ..] if size.len() >= 4 => {
                usable(&size[..4])
            }
            _ => 4096,
        };
        return Some(DeviceProperties { version: TpmVersion::V2_0, command_size });
    }
    if tag(said(1)?) != [0, 0xc4] {
        return None;
    }
    let command_size = match said(2)? {
        whole @ [_, _, _, _, _, _, 0, 0, 0, 0, 0, 0, 0, 4, size @ ..] if size.len() >= 4 && is_whole(whole) => {
            usable(&size[..4])
        }
        _ => 4096,
    };
    Some(DeviceProperties { version: TpmVersion::V1_2, command_size })
}

fn is_whole(said: &[u8]) -> bool {
    (HEADER_SIZE..=BUFFER_SIZE).contains(&said.len())
        && said[2..6] == u32::try_from(said.len()).expect("small").to_be_bytes()
}

/// The device in a worker, without the process: requests and replies go by frames.
struct Held<'c, 't, 'a> {
    tpm: DeviceTpm,
    chip: &'c mut Chip<'t, 'a>,
    outcome: Option<Result<Done, BackendError>>,
    response: Vec<u8>,
}

impl Held<'_, '_, '_> {
    fn ask(&mut self, request: Request<'_>) {
        let (mut sent, mut response, mut replied) = (vec![], vec![], vec![]);
        request.encode(1, &mut sent);
        let (_, request) = Request::decode(&sent).expect("it was encoded");
        match self.tpm.answer(request, &mut response) {
            Ok(reply) => reply.encode(1, &mut replied),
            Err(text) => Reply::Failed(&text).encode(1, &mut replied),
        }
        self.outcome = Some(match Reply::decode(&replied).expect("it was encoded").1 {
            Reply::Done { established } => Ok(Done::Control { established }),
            Reply::Response(bytes) => {
                self.response = bytes.to_vec();
                Ok(Done::Response)
            }
            Reply::Failed(text) => Err(BackendError::Refused(text.to_owned())),
        });
    }
}

impl Backend for Held<'_, '_, '_> {
    fn initialize(&mut self) -> Result<(), BackendError> {
        // What was said to somebody before is thrown away.
        if self.chip.tape.flag() {
            self.chip.speak();
            self.chip.said.clear();
        }
        self.ask(Request::Initialize);
        Ok(())
    }

    fn hash(&mut self, data: &[u8]) -> Result<(), BackendError> {
        self.ask(Request::Hash(data));
        Ok(())
    }

    fn execute(&mut self, locality: Locality, command: &[u8]) -> Result<(), BackendError> {
        assert!(Header::of_whole(command).is_some());
        self.chip.speak();
        self.ask(Request::Execute(locality, command));
        Ok(())
    }

    fn reset_established(&mut self, locality: Locality) -> Result<(), BackendError> {
        self.ask(Request::ResetEstablished(locality));
        Ok(())
    }

    fn terminate(&mut self) -> Result<(), BackendError> {
        self.ask(Request::Terminate);
        Ok(())
    }

    fn cancel(&mut self) -> bool {
        false
    }

    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>> {
        *response = std::mem::take(&mut self.response);
        self.outcome.take()
    }

    fn kill(&mut self) {}

    fn is_gone(&self) -> bool {
        true
    }

    fn take_new_descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        None
    }
}
