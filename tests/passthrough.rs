//! The backend for a TPM of the host, with a chip that a test plays at the other end of a socket pair: like the device, it
//! takes a command by one write and gives a response by one read.

mod common;

use std::error::Error;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::process::until;
use common::raw_client::RawClient;
use common::tis::{DATA_AVAIL, DID_VID, STS, Tis};
use common::tpm_commands::*;
use common::{run_made_in_thread, signal_thread};
use mio::{Events, Poll, Token};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use nix::unistd::Pid;
use vfio_user_tpm::backend::passthrough::{HostTpm, Passthrough, PassthroughTpm, ProbeError};
use vfio_user_tpm::backend::worker::worker_program;
use vfio_user_tpm::device::{DEVICE_ID, DeviceOptions, TpmDevice, VENDOR_ID, identity};
use vfio_user_tpm::engine::{Engine, Wakeup};
use vfio_user_tpm::frontend::tis::{self, TisConfig};
use vfio_user_tpm::frontend::{RegisterFile, Registers};
use vfio_user_tpm::launch::Program;
use vfio_user_tpm::platform::{Platform, StartupPolicy};
use vfio_user_tpm::seqpacket;
use vfio_user_tpm::shared_pages::SharedPages;
use vfio_user_tpm::tpm::{BUFFER_SIZE, Fault, Locality, TpmVersion, fault_response};
use vfio_user_tpm::vfio_user::{DEVICE_TOKEN, Listener, Server};

/// Nothing that is expected takes this long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// More than any limit of the engine's for a command that was cancelled; less than a command may take, and than a start.
const LATER: Duration = Duration::from_secs(30);

const OK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];
const BAD_TAG_1_2: [u8; 10] = [0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x1e];
const GET_TICKS: u32 = 0xf1;

/// What the played chip does with a command.
enum Played {
    Response(Vec<u8>),
    Silence,
    HangUp,
}

use Played::{HangUp, Response, Silence};

/// A chip of which the test hears each command. It ends when nobody has the other end any more.
struct Chip {
    device: OwnedFd,
    /// A copy of the chip's own end.
    other_end: OwnedFd,
    commands: Receiver<Vec<u8>>,
}

impl Chip {
    fn play(mut answer: impl FnMut(u32, &[u8]) -> Played + Send + 'static) -> Self {
        let (device, chip) = seqpacket::pair().unwrap();
        let copy = chip.try_clone().unwrap();
        let (heard, commands) = channel();
        thread::spawn(move || {
            let mut buffer = [0; BUFFER_SIZE + 1];
            while let Ok(length @ 1..) = recv(raw(&chip), &mut buffer, MsgFlags::empty()) {
                let command = &buffer[..length];
                // The test may have heard enough.
                let _ = heard.send(command.to_vec());
                match answer(u32_at(command, 6), command) {
                    Response(bytes) => {
                        let _ = send(raw(&chip), &bytes, MsgFlags::MSG_NOSIGNAL);
                    }
                    Silence => {}
                    HangUp => shutdown(raw(&chip), Shutdown::Both).unwrap(),
                }
            }
        });
        Self { device, other_end: copy, commands }
    }

    /// A TPM 2.0 that says that it takes commands of 1024 bytes, and does with others what `answer` says.
    fn play_2_0(mut answer: impl FnMut(&[u8]) -> Played + Send + 'static) -> Self {
        Self::play(move |code, command| if code == 0x17a { Response(max_command_size(1024)) } else { answer(command) })
    }

    fn probe_with(self, cancel: Option<OwnedFd>) -> (Result<PassthroughTpm, ProbeError>, Receiver<Vec<u8>>) {
        let host = HostTpm::from_descriptors(self.device, cancel);
        (host.probe(worker(), PATIENCE, None), self.commands)
    }

    fn probe(self) -> Result<PassthroughTpm, ProbeError> {
        self.probe_with(None).0
    }

    fn serve(self) -> Tpm {
        self.serve_with(None)
    }

    fn serve_with(self, cancel: Option<OwnedFd>) -> Tpm {
        let (tpm, commands) = self.probe_with(cancel);
        // What the probe asked.
        let _ = commands.try_iter().count();
        Tpm::serve(tpm.unwrap(), commands)
    }
}

fn raw(socket: &OwnedFd) -> RawFd {
    socket.as_raw_fd()
}

fn worker() -> Program {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_vfio-user-tpm"));
    worker_program(program, log::LevelFilter::Warn)
}

/// The response to `TPM2_GetCapability(TPM_PT_MAX_COMMAND_SIZE)`.
fn max_command_size(size: u32) -> Vec<u8> {
    let fixed = [0x80, 1, 0, 0, 0, 27, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 0x1e];
    [&fixed[..], &size.to_be_bytes()].concat()
}

/// An engine with the backend, the loop that it needs, and what the chip hears.
struct Tpm {
    engine: Engine,
    poll: Poll,
    events: Events,
    commands: Receiver<Vec<u8>>,
}

impl Tpm {
    fn serve(tpm: PassthroughTpm, commands: Receiver<Vec<u8>>) -> Self {
        let poll = Poll::new().unwrap();
        let wakeup = Wakeup { registry: poll.registry().try_clone().unwrap(), token: Token(1) };
        let platform = Platform::new(tpm.version(), StartupPolicy::Host);
        let mut engine = Engine::new(Box::new(Passthrough::new(tpm, worker())), platform, Some(wakeup));
        engine.reset(Instant::now());
        Self { engine, poll, events: Events::with_capacity(8), commands }
    }

    fn turn(&mut self) {
        match self.poll.poll(&mut self.events, Some(PATIENCE)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            polled => polled.unwrap(),
        }
        assert!(!self.events.is_empty(), "nothing comes from the backend");
        self.engine.poll(Instant::now());
    }

    fn begin(&mut self, locality: u8, command: &[u8]) {
        self.engine.execute(Locality::new(locality).unwrap(), command, Instant::now());
    }

    fn response(&mut self) -> Vec<u8> {
        loop {
            if let Some(response) = self.engine.take_response(<[u8]>::to_vec) {
                return response;
            }
            self.turn();
        }
    }

    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.begin(0, command);
        self.response()
    }

    /// Begins a command and waits until the chip has it.
    fn begin_heard(&mut self, command: &[u8]) {
        self.begin(0, command);
        let heard = until(PATIENCE, || {
            self.engine.poll(Instant::now());
            self.commands.try_recv().ok()
        });
        assert_eq!(heard.as_deref(), Some(command));
    }

    /// The worker: the only child of this thread.
    fn worker() -> Pid {
        let children = fs::read_to_string("/proc/thread-self/children").unwrap();
        let pids: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 1, "one worker");
        Pid::from_raw(pids[0])
    }

    fn reset(&mut self) {
        self.engine.reset(Instant::now());
    }

    /// The limit of what is under way passes.
    fn much_later(&mut self) {
        self.engine.poll(Instant::now() + LATER);
    }

    fn stop(mut self) -> Option<String> {
        self.engine.stop(Instant::now());
        while !self.engine.is_off() {
            self.turn();
        }
        self.engine.stop_failure().map(str::to_owned)
    }
}

fn failure() -> Vec<u8> {
    fault_response(TpmVersion::V2_0, Fault::Failure).to_vec()
}

#[test]
fn a_tpm_2_0_is_recognized_with_the_size_of_its_buffer() {
    let tpm = Chip::play_2_0(|_| Silence).probe().unwrap();
    assert_eq!((tpm.version(), tpm.command_size()), (TpmVersion::V2_0, 1024));
}

#[test]
fn a_tpm_2_0_that_does_not_say_its_size_is_given_the_largest_commands() {
    for response in [failure(), max_command_size(0), max_command_size(u32::MAX)] {
        let tpm = Chip::play(move |_, _| Response(response.clone())).probe().unwrap();
        assert_eq!((tpm.version(), tpm.command_size()), (TpmVersion::V2_0, BUFFER_SIZE));
    }
}

#[test]
fn a_tpm_1_2_is_recognized_with_the_size_of_its_buffer() {
    for (answer, size) in [
        (vec![0, 0xc4, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 8, 0], 2048),
        // TPM_DEACTIVATED
        (vec![0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 6], BUFFER_SIZE),
    ] {
        let chip = Chip::play(move |code, command| match code {
            _ if command[..2] != [0, 0xc1] => Response(BAD_TAG_1_2.to_vec()),
            GET_TICKS => Response(fault_response(TpmVersion::V1_2, Fault::Failure).to_vec()),
            _ => Response(answer.clone()),
        });
        let tpm = chip.probe().unwrap();
        assert_eq!((tpm.version(), tpm.command_size()), (TpmVersion::V1_2, size));
    }
}

#[test]
fn what_does_not_answer_as_a_tpm_is_refused() {
    for answer in [&b"hello"[..], &OK[..9], &[0xff; BUFFER_SIZE]] {
        let error = Chip::play(move |_, _| Response(answer.to_vec())).probe().unwrap_err();
        assert!(matches!(error, ProbeError::NoTpm(_)), "{error}");
    }
}

#[test]
fn a_chip_that_does_not_answer_the_probe_is_told_after_a_bounded_wait() {
    let host = HostTpm::from_descriptors(Chip::play(|_, _| Silence).device, None);
    let error = host.probe(worker(), Duration::from_millis(200), None).unwrap_err();
    assert!(matches!(error, ProbeError::NoAnswer { .. }), "{error}");
}

#[test]
fn the_wait_for_the_probe_can_be_interrupted() {
    let (signals, sender) = UnixStream::pair().unwrap();
    let chip = Chip::play(move |_, _| {
        sender.shutdown(std::net::Shutdown::Both).unwrap();
        Silence
    });
    let host = HostTpm::from_descriptors(chip.device, None);
    let error = host.probe(worker(), PATIENCE, Some(signals.as_fd())).unwrap_err();
    assert!(matches!(error, ProbeError::Interrupted(_)), "{error}");
}

#[test]
fn a_chip_that_is_gone_is_told_by_the_probe() {
    let (device, _) = seqpacket::pair().unwrap();
    let error = HostTpm::from_descriptors(device, None).probe(worker(), PATIENCE, None).unwrap_err();
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    assert!(matches!(error, ProbeError::Failed { .. }) && text.contains("start this program"), "{text}");
}

/// The guest's Startup, too: a chip that the host has started answers TPM_RC_INITIALIZE.
#[test]
fn commands_and_responses_pass_as_they_are_and_nothing_else_is_sent() {
    let initialize = [&OK[..8], &[1, 0]].concat();
    let expected = initialize.clone();
    let mut tpm = Chip::play_2_0(move |_| Response(initialize.clone())).serve();
    assert_eq!(tpm.run(&startup_clear()), expected);
    tpm.reset();
    assert_eq!(tpm.run(&get_random(8)), expected);
    let heard: Vec<_> = tpm.commands.try_iter().collect();
    assert_eq!(heard, [startup_clear(), get_random(8)]);
    assert_eq!(tpm.stop(), None);
}

#[test]
fn nothing_is_sent_at_the_end() {
    let (tpm, commands) = Chip::play_2_0(|_| Response(OK.to_vec())).probe_with(None);
    let _ = commands.try_iter().count();
    let mut tpm = Tpm::serve(tpm.unwrap(), channel().1);
    assert_eq!(tpm.run(&get_random(8)), OK);
    assert_eq!(tpm.stop(), None);
    assert_eq!(commands.iter().collect::<Vec<_>>(), [get_random(8)]);
}

#[test]
fn a_command_from_a_higher_locality_is_refused_and_not_sent() {
    let mut tpm = Chip::play_2_0(|_| Response(OK.to_vec())).serve();
    for locality in 1..=4 {
        tpm.begin(locality, &get_random(8));
        let response = tpm.response();
        assert_eq!(code_of(&response), RC_LOCALITY);
    }
    assert_eq!(tpm.run(&get_random(8)), OK);
    assert_eq!(tpm.commands.try_iter().count(), 1);
}

#[test]
fn a_tpm_1_2_is_spoken_for_in_its_own_words() {
    let mut tpm = Chip::play(|_, _| Response(BAD_TAG_1_2.to_vec())).serve();
    tpm.begin(1, &tpm_1_2::pcr_read(0));
    assert_eq!(tpm.response(), [0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x3d]);
}

#[test]
fn a_command_larger_than_the_chips_buffer_is_refused_and_not_sent() {
    let mut tpm = Chip::play_2_0(|_| Response(OK.to_vec())).serve();
    assert_eq!(code_of(&tpm.run(&plain(0x17b, &[0; 1015]))), RC_COMMAND_SIZE);
    assert_eq!(tpm.run(&plain(0x17b, &[0; 1014])), OK);
    assert_eq!(tpm.commands.try_iter().count(), 1);
}

#[test]
fn a_malformed_response_becomes_a_failure_and_the_next_command_is_answered() {
    for bad in [vec![1], OK[..9].to_vec(), [&OK[..], &[0]].concat(), vec![0; BUFFER_SIZE], vec![0; BUFFER_SIZE + 1]] {
        let mut first = Some(bad);
        let chip = Chip::play_2_0(move |_| Response(first.take().unwrap_or_else(|| OK.to_vec())));
        let mut tpm = chip.serve();
        assert_eq!(tpm.run(&get_random(8)), failure());
        assert_eq!(tpm.run(&get_random(8)), OK);
    }
}

#[test]
fn a_chip_that_hangs_up_is_failure_mode_and_the_end_is_in_order() {
    let mut tpm = Chip::play_2_0(|_| HangUp).serve();
    for _ in 0..3 {
        assert_eq!(tpm.run(&get_random(8)), failure());
    }
    tpm.reset();
    assert_eq!(tpm.run(&get_random(8)), failure());
    assert!(tpm.stop().is_some());
}

#[test]
fn a_reset_gets_through_to_a_chip_that_hangs_and_its_late_response_is_nobodys() {
    let mut first = true;
    let chip = Chip::play_2_0(move |_| if std::mem::take(&mut first) { Silence } else { Response(OK.to_vec()) });
    let late = chip.other_end.try_clone().unwrap();
    let mut tpm = chip.serve();
    tpm.begin_heard(&get_random(8));
    // The response comes when it can no longer be fetched by the worker that waits for it.
    kill(Tpm::worker(), Signal::SIGSTOP).unwrap();
    send(raw(&late), &[&OK[..5], &[12, 0, 0, 0, 0, 0, 0]].concat(), MsgFlags::MSG_NOSIGNAL).unwrap();
    tpm.reset();
    tpm.much_later();
    assert_eq!(tpm.run(&get_random(9)), OK);
    assert_eq!(tpm.stop(), None);
}

#[test]
fn the_end_comes_in_time_while_a_command_runs_that_never_ends() {
    let mut tpm = Chip::play_2_0(|_| Silence).serve();
    tpm.begin_heard(&get_random(8));
    tpm.engine.stop(Instant::now());
    tpm.much_later();
    assert!(tpm.stop().is_some_and(|reason| reason.contains("in time")));
}

#[test]
fn cancelling_writes_to_the_cancel_file_once_for_each_command() {
    let (mut cancelled, cancel_file) = std::io::pipe().unwrap();
    let (go_on, wait) = channel::<()>();
    let chip = Chip::play_2_0(move |_| {
        let _ = wait.recv();
        Response(fault_response(TpmVersion::V2_0, Fault::Canceled).to_vec())
    });
    let mut tpm = chip.serve_with(Some(cancel_file.into()));
    for _ in 0..2 {
        tpm.begin_heard(&get_random(8));
        tpm.engine.cancel(Instant::now());
        tpm.engine.cancel(Instant::now());
        assert_eq!(cancelled.read(&mut [0; 8]).unwrap(), 1);
        go_on.send(()).unwrap();
        let response = tpm.response();
        assert_eq!(code_of(&response), RC_CANCELED);
    }
    assert_eq!(tpm.stop(), None);
    assert_eq!(cancelled.read(&mut [0; 8]).unwrap(), 0, "nothing was written twice, and nobody has the file any more");
}

#[test]
fn without_a_cancel_file_a_command_runs_to_its_end() {
    let (go_on, wait) = channel::<()>();
    let mut tpm = Chip::play_2_0(move |_| {
        let _ = wait.recv();
        Response(OK.to_vec())
    })
    .serve();
    tpm.begin_heard(&get_random(8));
    tpm.engine.cancel(Instant::now());
    go_on.send(()).unwrap();
    assert_eq!(tpm.response(), OK);
}

#[test]
fn the_establishment_is_never_reset() {
    let mut tpm = Chip::play_2_0(|_| Response(OK.to_vec())).serve();
    tpm.run(&get_random(8));
    tpm.engine.reset_establishment(Locality::new(4).unwrap(), Instant::now());
    assert_eq!(tpm.run(&get_random(8)), OK);
    assert!(!tpm.engine.established());
}

/// QEMU's main loop stands still during a register access: none takes longer.
const ACCESS_LIMIT: Duration = Duration::from_secs(1);

#[test]
fn registers_are_answered_and_the_server_ends_whatever_the_chip_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = Server::new(Listener::bind(&path).unwrap()).unwrap();
    let registry = server.registry().unwrap();
    let chip = Chip::play_2_0(|_| Silence).probe().unwrap();
    let server = run_made_in_thread(server, move || {
        let wakeup = Wakeup { registry, token: DEVICE_TOKEN };
        let platform = Platform::new(TpmVersion::V2_0, StartupPolicy::Host);
        let engine = Engine::new(Box::new(Passthrough::new(chip, worker())), platform, Some(wakeup));
        let (version, vendor_id, device_id) = (TpmVersion::V2_0, VENDOR_ID, DEVICE_ID);
        let registers = TisConfig { version, vendor_id, device_id, revision: 1, guest_locality_4: false };
        TpmDevice::new(
            identity(vendor_id, device_id),
            Registers::new(RegisterFile::Tis(tis::Tis::new(registers), SharedPages::unmappable())),
            engine,
            DeviceOptions::default(),
        )
    });
    let client = RawClient::connect(&path);
    client.stream.set_read_timeout(Some(ACCESS_LIMIT)).unwrap();
    let mut tis = Tis::new(client);
    tis.begin(&get_random(8));
    for _ in 0..100 {
        assert_eq!(tis.read32(STS) & DATA_AVAIL, 0, "the chip has not answered");
        tis.read32(DID_VID);
    }
    tis.reset();
    tis.read32(DID_VID);
    signal_thread(&server, Signal::SIGTERM);
    let _ = server.join().unwrap();
}
