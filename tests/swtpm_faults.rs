//! The engine with an swtpm that misbehaves: a thread that plays one, and breaks the conversation at one point.

mod common;

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use common::engine::EngineTpm;
use common::tpm_commands::*;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tempfile::TempDir;
use vfio_user_tpm::backend::swtpm::{Place, Swtpm, SwtpmConfig};
use vfio_user_tpm::tpm::{Locality, TpmVersion};

const OK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

/// Messages to an swtpm until a guest's first command is answered, that one included: ten requests that meet and
/// initialize it, the locality, the platform's two commands, the guest's.
const FIRST_COMMAND: usize = 14;

/// What is wrong with one answer.
#[derive(Clone, Debug)]
enum Fault {
    /// There is none.
    Silence,
    /// Its last byte does not come.
    Short,
    /// It has a byte too much.
    Long,
    /// It comes twice.
    Twice,
    /// It is noise.
    Garbage,
    /// It never ends.
    Flood,
    /// Both channels are closed instead.
    Close,
    /// Both are closed in the middle of it.
    CloseWithin,
    /// It says that something failed.
    Refusal,
    /// Before it, the other channel speaks.
    WrongChannel,
    /// It is this instead.
    Instead(Vec<u8>),
    /// A descriptor would come along, but is refused: then it comes without.
    Accompanied,
}

impl Fault {
    /// Whether swtpm then says nothing any more, so that only a deadline can end the wait.
    fn is_silent(&self, step: usize) -> bool {
        match self {
            Self::Silence | Self::Short => true,
            // GET_CAPABILITY has no result code: this is the half of an answer.
            Self::Refusal => step == 0,
            _ => false,
        }
    }

    fn all() -> [Self; 10] {
        [
            Self::Silence,
            Self::Short,
            Self::Long,
            Self::Twice,
            Self::Garbage,
            Self::Flood,
            Self::Close,
            Self::CloseWithin,
            Self::Refusal,
            Self::WrongChannel,
        ]
    }
}

/// An swtpm that a thread plays.
struct Fake {
    folder: TempDir,
    /// The fault, and at which message; taken when it happens.
    fault: Arc<Mutex<Option<(usize, Fault)>>>,
    happened: Receiver<()>,
    /// How many have come.
    messages: Arc<AtomicUsize>,
}

impl Fake {
    fn new(fault: Option<(usize, Fault)>) -> Self {
        Self::playing(fault, false)
    }

    /// As [`new`](Self::new); its answers may come byte by byte.
    fn playing(fault: Option<(usize, Fault)>, dribbles: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control")).unwrap();
        let fault = Arc::new(Mutex::new(fault));
        let (sender, happened) = mpsc::channel();
        let messages = Arc::new(AtomicUsize::new(0));
        let player = Player { fault: Arc::clone(&fault), happened: sender, messages: Arc::clone(&messages), dribbles };
        thread::spawn(move || {
            // Until the test's process ends.
            for client in listener.incoming() {
                player.serve(client.unwrap());
            }
        });
        Self { folder, fault, happened, messages }
    }

    /// Breaks the answer to the next message.
    fn break_next(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some((self.messages.load(Ordering::SeqCst), fault));
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    fn start(&self) -> EngineTpm {
        start(&self.path())
    }

    /// Drives the TPM until the fault has happened, and has its time run out.
    fn let_time_pass(&self, tpm: &mut EngineTpm) {
        while self.happened.try_recv().is_err() {
            tpm.turn_briefly();
        }
        tpm.time_out();
    }
}

fn start(control: &Path) -> EngineTpm {
    let place = Place::Attach { control: control.to_owned() };
    EngineTpm::start(TpmVersion::V2_0, Swtpm::new(SwtpmConfig { version: TpmVersion::V2_0, place }))
}

struct Player {
    fault: Arc<Mutex<Option<(usize, Fault)>>>,
    happened: Sender<()>,
    messages: Arc<AtomicUsize>,
    dribbles: bool,
}

impl Player {
    /// One client, until it leaves or is left.
    fn serve(&self, mut control: UnixStream) {
        let mut data: Option<UnixStream> = None;
        loop {
            let on_data = {
                let mut waiting = vec![PollFd::new(control.as_fd(), PollFlags::POLLIN)];
                waiting.extend(data.as_ref().map(|data| PollFd::new(data.as_fd(), PollFlags::POLLIN)));
                while poll(&mut waiting, PollTimeout::NONE) == Err(Errno::EINTR) {}
                waiting.get(1).is_some_and(|data| data.any().unwrap())
            };
            let answer = if on_data {
                let mut command = [0; 4096];
                match data.as_mut().unwrap().read(&mut command) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => OK.to_vec(),
                }
            } else {
                let Some((request, descriptor)) = receive(&control) else { return };
                let answer = answer(&request);
                if let Some(descriptor) = descriptor {
                    data = Some(descriptor);
                }
                answer
            };
            let mut other =
                if on_data { control.try_clone().ok() } else { data.as_ref().and_then(|data| data.try_clone().ok()) };
            let channel = if on_data { data.as_mut().unwrap() } else { &mut control };
            let step = self.messages.fetch_add(1, Ordering::SeqCst);
            let fault = {
                let mut fault = self.fault.lock().unwrap();
                if fault.as_ref().is_some_and(|(at, _)| *at == step) { fault.take() } else { None }
            };
            match fault {
                None if self.dribbles => {
                    for byte in answer {
                        channel.write_all(&[byte]).unwrap();
                        thread::yield_now();
                    }
                }
                // The client may be gone.
                None => drop(channel.write_all(&answer)),
                Some((_, fault)) => {
                    let stays = misbehave(channel, other.as_mut(), &answer, &fault);
                    self.happened.send(()).unwrap();
                    if !stays {
                        return;
                    }
                }
            }
        }
    }
}

/// Answers wrongly; returns whether the channels stay.
fn misbehave(channel: &mut UnixStream, other: Option<&mut UnixStream>, answer: &[u8], fault: &Fault) -> bool {
    let mut send = |bytes: &[u8]| drop(channel.write_all(bytes));
    match fault {
        Fault::Silence => {}
        Fault::Short => send(&answer[..answer.len() - 1]),
        Fault::Long => send(&[answer, &[0]].concat()),
        Fault::Twice => send(&[answer, answer].concat()),
        Fault::Garbage => send(&[0xa5; 64]),
        Fault::Flood => send(&vec![0; 1 << 20]),
        Fault::Close => return false,
        Fault::CloseWithin => {
            send(&answer[..answer.len() / 2]);
            return false;
        }
        // Of a command, TPM_RC_FAILURE.
        Fault::Refusal if answer == OK => send(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1]),
        Fault::Refusal => send(&[0, 0, 0, 9]),
        Fault::WrongChannel => match other {
            Some(other) => {
                drop(other.write_all(&[0]));
                send(answer);
            }
            // There is only one yet.
            None => return false,
        },
        Fault::Instead(bytes) => send(bytes),
        Fault::Accompanied => {
            let raw = [0];
            let rights = [ControlMessage::ScmRights(&raw)];
            let data = [IoSlice::new(answer)];
            match sendmsg::<()>(channel.as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EPERM) => drop(channel.write_all(answer)),
                other => panic!("the descriptor was taken: {other:?}"),
            }
        }
    }
    true
}

/// A request, with the descriptor that came along.
fn receive(control: &UnixStream) -> Option<(Vec<u8>, Option<UnixStream>)> {
    let mut buffer = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut vectors = [IoSliceMut::new(&mut buffer)];
    let received =
        recvmsg::<()>(control.as_raw_fd(), &mut vectors, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
    let mut descriptor = None;
    for message in received.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            // SAFETY: this process has just got the descriptor, and nobody else knows of it.
            descriptor = Some(UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptors[0]) }));
        }
    }
    let length = received.bytes;
    (length >= 4).then(|| (buffer[..length].to_vec(), descriptor))
}

/// What a good swtpm answers.
fn answer(request: &[u8]) -> Vec<u8> {
    const INFO: &[u8] = b"{\"TPMSpecification\":{\"family\":\"2.0\",\"level\":0,\"revision\":164}}\0";
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
    match u32_at(request, 0) {
        0x01 => words(&[0, 0xffff]),
        0x04 | 0x0f => words(&[0, 0]),
        0x11 => words(&[0, 4096, 2816, 4096]),
        0x12 => [words(&[0, 63, 63]), INFO.to_vec()].concat(),
        _ => words(&[0]),
    }
}

#[test]
fn a_good_swtpm_serves_even_byte_by_byte() {
    for dribbles in [false, true] {
        let fake = Fake::playing(None, dribbles);
        let mut tpm = fake.start();
        tpm.ok(&get_random(8));
        assert_eq!(fake.messages.load(Ordering::SeqCst), FIRST_COMMAND);
        tpm.stop();
    }
}

/// The code of a response that a fault belongs to.
///
/// A byte on the other channel may come between our looks at the two, together with the good answer to the `last`
/// message; then the next command finds it.
fn code_if_all_is_heard(tpm: &mut EngineTpm, last: bool, is_stray: bool, response: &[u8]) -> u32 {
    match code_of(response) {
        RC_SUCCESS if last && is_stray => code_of(&tpm.run(&get_random(8))),
        code => code,
    }
}

#[test]
fn whatever_goes_wrong_at_each_step_is_a_failure_response_until_a_reset() {
    for step in 0..FIRST_COMMAND {
        for fault in Fault::all() {
            println!("step {step}: {fault:?}");
            let is_silent = fault.is_silent(step);
            let is_stray = matches!(fault, Fault::WrongChannel);
            let fake = Fake::new(Some((step, fault)));
            let mut tpm = fake.start();
            tpm.begin(0, &get_random(8));
            if is_silent {
                fake.let_time_pass(&mut tpm);
            }
            let response = tpm.response();
            assert_eq!(code_if_all_is_heard(&mut tpm, step == FIRST_COMMAND - 1, is_stray, &response), RC_FAILURE);
            tpm.reset();
            tpm.ok(&get_random(8));
        }
    }
}

#[test]
fn whatever_goes_wrong_in_a_reset_is_a_failure_response_until_the_next() {
    // TPM2_Shutdown, STOP, SET_BUFFERSIZE, INIT, GET_TPMESTABLISHED, the platform's two commands, the guest's.
    for step in 0..8 {
        for fault in Fault::all() {
            println!("step {step}: {fault:?}");
            // A shutdown that the TPM refuses is followed by a good start.
            if step == 0 && matches!(fault, Fault::Refusal) {
                continue;
            }
            let is_silent = fault.is_silent(FIRST_COMMAND + step);
            let is_stray = matches!(fault, Fault::WrongChannel);
            let fake = Fake::new(Some((FIRST_COMMAND + step, fault)));
            let mut tpm = fake.start();
            tpm.ok(&get_random(8));
            tpm.reset();
            tpm.begin(0, &get_random(8));
            if is_silent {
                fake.let_time_pass(&mut tpm);
            }
            // What fails in the shutdown is made good by the start that follows it.
            let expected = if step == 0 { RC_SUCCESS } else { RC_FAILURE };
            let response = tpm.response();
            assert_eq!(code_if_all_is_heard(&mut tpm, step == 7, is_stray, &response), expected);
            tpm.reset();
            tpm.ok(&get_random(8));
        }
    }
}

#[test]
fn a_response_of_an_impossible_size_is_a_failure_response() {
    for size in [0, 9, 11, 4097, u32::MAX] {
        let response = [&[0x80, 1][..], &size.to_be_bytes(), &[0; 4090]].concat();
        let fake = Fake::new(Some((FIRST_COMMAND - 1, Fault::Instead(response))));
        let mut tpm = fake.start();
        assert_eq!(code_of(&tpm.run(&get_random(8))), RC_FAILURE);
        tpm.reset();
        tpm.ok(&get_random(8));
    }
}

/// Whether this kernel knows SO_PASSRIGHTS (Linux 6.16).
fn descriptors_can_be_refused() -> bool {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let socket = UnixStream::pair().unwrap().0;
    let mut value: libc::c_int = 0;
    let mut size = 4;
    // SAFETY: the value is as large as is said.
    let known = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw mut value).cast(), &raw mut size)
    };
    known == 0
}

/// To close one may take hours, as that of a TCP socket that lingers, and it would be the event loop that does it.
#[test]
fn an_swtpm_cannot_send_descriptors() {
    if !descriptors_can_be_refused() {
        return;
    }
    for step in 0..FIRST_COMMAND {
        let fake = Fake::new(Some((step, Fault::Accompanied)));
        fake.start().ok(&get_random(8));
        fake.happened.recv().unwrap();
    }
}

#[test]
fn what_an_swtpm_lacks_is_named() {
    for (step, answer, name) in [
        (0, &[0, 0, 0, 0, 0, 0, 0xef, 0xff][..], "SET_DATAFD"),
        (1, &[0, 0, 0, 0x11], "GET_INFO"),
        (7, &[0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 8, 0], "2048"),
    ] {
        let fake = Fake::new(Some((step, Fault::Instead(answer.to_vec()))));
        let reason = fake.start().start_failure();
        assert!(reason.contains(name), "{reason}");
    }
}

#[test]
fn an_swtpm_that_speaks_or_leaves_while_nothing_is_asked_is_failure_mode() {
    for fault in [Fault::Close, Fault::WrongChannel] {
        let fake = Fake::new(None);
        let mut tpm = fake.start();
        tpm.ok(&get_random(8));
        // The establishment is reset before the next command.
        fake.break_next(fault);
        tpm.engine.reset_establishment(Locality::new(3).unwrap(), Instant::now());
        assert_eq!(code_of(&tpm.run(&get_random(8))), RC_FAILURE);
        tpm.reset();
        tpm.ok(&get_random(8));
    }
}

#[test]
fn an_establishment_that_cannot_be_reset_leaves_the_tpm_running() {
    let fake = Fake::new(None);
    let mut tpm = fake.start();
    tpm.ok(&get_random(8));
    fake.break_next(Fault::Refusal);
    tpm.engine.reset_establishment(Locality::ZERO, Instant::now());
    tpm.ok(&get_random(8));
}

#[test]
fn a_stop_that_fails_is_told_and_ends() {
    for fault in [Fault::Close, Fault::Refusal, Fault::Garbage] {
        let fake = Fake::new(None);
        let mut tpm = fake.start();
        tpm.ok(&get_random(8));
        fake.break_next(fault);
        assert!(tpm.end().is_some());
    }
}
