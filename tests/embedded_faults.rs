//! A worker that misbehaves: what the guest sees of it, and what the log says.
//!
//! The worker is this test program, started again: see `tests/common/fake-worker`.

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use common::raw_client::RawClient;
use common::server::Server as RealServer;
use common::tis::{ACCESS, ACTIVE_LOCALITY, COMMAND_READY, STS, Tis};
use common::tpm_commands::*;
use common::{run_made_in_thread, signal_thread};
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, shutdown};
use tempfile::TempDir;
use vfio_user_tpm::backend::embedded::{Embedded, EmbeddedTpm};
use vfio_user_tpm::backend::worker::worker_program;
use vfio_user_tpm::device::{DEVICE_ID, DeviceOptions, TpmDevice, VENDOR_ID, identity};
use vfio_user_tpm::engine::{Engine, Wakeup};
use vfio_user_tpm::frontend::tis::{self, TisConfig};
use vfio_user_tpm::frontend::{RegisterFile, Registers};
use vfio_user_tpm::platform::{Platform, StartupPolicy};
use vfio_user_tpm::seqpacket;
use vfio_user_tpm::shared_pages::SharedPages;
use vfio_user_tpm::tpm::TpmVersion;
use vfio_user_tpm::vfio_user::{DEVICE_TOKEN, Listener, Server, ServerError};
use vfio_user_tpm::worker::frame::{MAX_FRAME, Reply, Request};

/// QEMU's main loop stands still during a register access: none takes longer.
const ACCESS_LIMIT: Duration = Duration::from_secs(1);

/// The command at which the fake worker misbehaves.
fn command() -> Vec<u8> {
    get_random(8)
}

const SUCCESS: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

/// Not a test: the fake worker's program.
#[test]
fn the_fake_worker() {
    let Ok(fault) = std::env::var("FAULT") else { return };
    misbehave(&fault);
    std::process::exit(0);
}

/// Answers as a TPM should, but for [`command`] before the second `_TPM_Init`.
fn misbehave(fault: &str) {
    let socket = std::io::stdin();
    let mut buffer = [0; MAX_FRAME];
    let mut starts = 0;
    // Commands, and what goes with them, come before any descriptor that is held.
    let (_, _descriptors) = seqpacket::receive_with_descriptors(socket.as_fd(), &mut buffer).unwrap();
    let send = |bytes: &[u8]| seqpacket::send(socket.as_fd(), bytes, &[]).is_ok();
    let reply = |reply: Reply<'_>, sequence| {
        let mut bytes = Vec::new();
        reply.encode(sequence, &mut bytes);
        send(&bytes)
    };
    loop {
        let Ok(received) = seqpacket::receive(socket.as_fd(), &mut buffer) else { return };
        if received.is_empty() {
            return;
        }
        let (sequence, request) = Request::decode(received).unwrap();
        starts += u32::from(request == Request::Initialize);
        let misbehaves = matches!(request, Request::Execute(_, bytes) if bytes == command()) && starts == 1;
        match (fault, request) {
            ("refuses-to-start", Request::Initialize) => {
                reply(Reply::Failed("no\nsuch \u{1b}[31mTPM"), sequence);
            }
            (_, Request::Execute(..)) if misbehaves => match fault {
                "garbage" => _ = send(&[0x77; 100]),
                "too-long" => _ = send(&[0x82; MAX_FRAME + 1]),
                "too-short" => _ = send(&[0x82, 0, 0]),
                "short-response" => _ = reply(Reply::Response(&SUCCESS[..5]), sequence),
                "lying-response" => _ = reply(Reply::Response(&[&SUCCESS[..], &[0]].concat()), sequence),
                "other-kind" => _ = reply(Reply::Done { established: false }, sequence),
                "refuses" => _ = reply(Reply::Failed("not now\n"), sequence),
                "wrong-sequence" => _ = reply(Reply::Response(&SUCCESS), sequence.wrapping_add(1)),
                "twice" => {
                    reply(Reply::Response(&SUCCESS), sequence);
                    reply(Reply::Response(&SUCCESS), sequence);
                }
                "floods" => while reply(Reply::Response(&SUCCESS), sequence) {},
                "ends" => return,
                "crashes" => std::process::abort(),
                "closes" => {
                    shutdown(0, Shutdown::Both).unwrap();
                    loop {
                        thread::park();
                    }
                }
                "never" => {}
                other => panic!("no such fault: {other}"),
            },
            (_, Request::Execute(..)) => _ = reply(Reply::Response(&SUCCESS), sequence),
            _ => _ = reply(Reply::Done { established: false }, sequence),
        }
    }
}

/// A TPM device in this process whose first worker is the fake one, and a guest.
struct Machine {
    guest: Tis,
    server: JoinHandle<Result<(), ServerError>>,
    _links: TempDir,
}

/// Starts a server with the fake worker; returns a client's end.
fn serve(fault: &str) -> (UnixStream, JoinHandle<Result<(), ServerError>>, TempDir) {
    collect_logs();
    let links = tempfile::tempdir().unwrap();
    let link = |to: &Path, name: &str| {
        symlink(to, links.path().join(name)).unwrap();
        links.path().join(name)
    };
    link(Path::new(env!("CARGO_BIN_EXE_vfio-user-tpm")), "program");
    link(&std::env::current_exe().unwrap(), "test");
    let program = link(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/common/fake-worker"), fault);

    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Server::new(Listener::from_fd(theirs.into()).unwrap()).unwrap();
    let wakeup = Wakeup { registry: server.registry().unwrap(), token: DEVICE_TOKEN };
    (ours, run_made_in_thread(server, || device(program, wakeup)), links)
}

fn device(program: PathBuf, wakeup: Wakeup) -> TpmDevice {
    let version = TpmVersion::V2_0;
    let config = worker_program(program, LevelFilter::Warn);
    let backend = Embedded::new(EmbeddedTpm { version, state: None }, config);
    let engine = Engine::new(Box::new(backend), Platform::new(version, StartupPolicy::Clear), Some(wakeup));
    let registers =
        TisConfig { version, vendor_id: VENDOR_ID, device_id: DEVICE_ID, revision: 1, guest_locality_4: false };
    TpmDevice::new(
        identity(VENDOR_ID, DEVICE_ID),
        Registers::new(RegisterFile::Tis(tis::Tis::new(registers), SharedPages::unmappable())),
        engine,
        DeviceOptions::default(),
    )
}

impl Machine {
    fn start(fault: &str) -> Self {
        let (stream, server, links) = serve(fault);
        let client = RawClient::from_stream(stream);
        client.stream.set_read_timeout(Some(ACCESS_LIMIT)).unwrap();
        let mut guest = Tis::new(client);
        // The TPM is up.
        assert_eq!(guest.run(&read_clock()), SUCCESS);
        Self { guest, server, _links: links }
    }

    /// What the server has logged of warnings and errors, one element a line.
    fn log(&self) -> Vec<String> {
        logs_of(self.server.thread().id())
    }

    fn stop(self) {
        signal_thread(&self.server, Signal::SIGTERM);
        self.server.join().unwrap().unwrap();
    }
}

static LOGS: Mutex<Vec<(ThreadId, String)>> = Mutex::new(Vec::new());

struct Collector;

impl Log for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LOGS.lock().unwrap().push((thread::current().id(), record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// Each test's server has a thread of its own, by which its lines are told from the others'.
fn collect_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Collector).unwrap();
        log::set_max_level(LevelFilter::Warn);
    });
}

fn logs_of(thread: ThreadId) -> Vec<String> {
    let logs = LOGS.lock().unwrap();
    logs.iter().filter(|(id, _)| *id == thread).map(|(_, line)| line.clone()).collect()
}

/// The guest gets failure responses and the log one line, which says `reason`; a reset brings a TPM that works.
#[track_caller]
fn a_failure_until_the_next_reset(fault: &str, reason: &str) {
    let mut machine = Machine::start(fault);
    for _ in 0..3 {
        let response = machine.guest.run(&command());
        assert_eq!(response, [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1], "TPM_RC_FAILURE");
    }
    assert_one_line(&machine, &["failure mode", reason]);
    works_again(machine);
}

#[track_caller]
fn works_again(mut machine: Machine) {
    machine.guest.reset();
    let response = machine.guest.run(&command());
    assert_eq!(code_of(&response), RC_SUCCESS);
    // An ephemeral TPM is lost with its process, and the log may say so.
    let more = machine.log().into_iter().skip(1).filter(|line| !line.contains("--state-dir")).collect::<Vec<_>>();
    assert!(more.is_empty(), "{more:?}");
    machine.stop();
}

#[track_caller]
fn assert_one_line(machine: &Machine, parts: &[&str]) {
    let log = machine.log();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(parts.iter().all(|part| log[0].contains(part)), "{parts:?}: {log:?}");
    assert!(!log[0].contains(char::is_control), "{log:?}");
}

#[test]
fn garbage_is_a_failure() {
    a_failure_until_the_next_reset("garbage", "does not fit the protocol");
}

#[test]
fn a_frame_that_is_too_long_is_a_failure() {
    a_failure_until_the_next_reset("too-long", "too long");
}

#[test]
fn a_frame_that_is_too_short_is_a_failure() {
    a_failure_until_the_next_reset("too-short", "3 bytes");
}

#[test]
fn a_response_shorter_than_a_header_is_a_failure() {
    a_failure_until_the_next_reset("short-response", "no well-formed response");
}

#[test]
fn a_response_that_lies_about_its_size_is_a_failure() {
    a_failure_until_the_next_reset("lying-response", "no well-formed response");
}

#[test]
fn an_answer_of_another_kind_is_a_failure() {
    a_failure_until_the_next_reset("other-kind", "broke the protocol");
}

#[test]
fn a_refusal_is_a_failure() {
    a_failure_until_the_next_reset("refuses", "not now\\n");
}

#[test]
fn an_answer_to_another_request_is_a_failure() {
    a_failure_until_the_next_reset("wrong-sequence", "was asked");
}

#[test]
fn a_worker_that_ends_is_a_failure() {
    a_failure_until_the_next_reset("ends", "closed its socket");
}

#[test]
fn a_worker_that_crashes_is_a_failure() {
    a_failure_until_the_next_reset("crashes", "closed its socket");
}

#[test]
fn a_worker_that_closes_its_socket_and_stays_is_a_failure() {
    a_failure_until_the_next_reset("closes", "closed its socket");
}

/// One answer was asked for, and taken.
#[track_caller]
fn a_failure_from_the_second_answer_on(fault: &str) {
    let mut machine = Machine::start(fault);
    let first = code_of(&machine.guest.run(&command()));
    assert!([RC_SUCCESS, RC_FAILURE].contains(&first), "{first:#x}");
    while code_of(&machine.guest.run(&command())) != RC_FAILURE {}
    assert_eq!(code_of(&machine.guest.run(&command())), RC_FAILURE);
    assert_one_line(&machine, &["failure mode"]);
    works_again(machine);
}

#[test]
fn a_second_answer_is_a_failure() {
    a_failure_from_the_second_answer_on("twice");
}

#[test]
fn a_flood_of_answers_is_a_failure_and_blocks_nobody() {
    a_failure_from_the_second_answer_on("floods");
}

#[test]
fn a_worker_that_never_answers_is_ended_by_a_reset() {
    let mut machine = Machine::start("never");
    machine.guest.begin(&command());
    for _ in 0..100 {
        assert_eq!(machine.guest.read8(STS), 0x80, "in execution");
        assert_eq!(machine.guest.read8(ACCESS) & ACTIVE_LOCALITY, ACTIVE_LOCALITY);
    }
    machine.guest.reset();
    assert_eq!(code_of(&machine.guest.run(&command())), RC_SUCCESS);
    assert_one_line_but_for_lost_keys(&machine, "did not answer in time");
    machine.stop();
}

#[test]
fn a_command_that_never_ends_is_given_up_some_time_after_it_was_cancelled() {
    let mut machine = Machine::start("never");
    machine.guest.begin(&command());
    machine.guest.write32(STS, COMMAND_READY);
    // Answered at once, each time it is asked, until the command is given up.
    while machine.guest.read32(STS) & COMMAND_READY == 0 {
        thread::yield_now();
    }
    assert_eq!(code_of(&machine.guest.run(&command())), RC_FAILURE);
    assert_one_line(&machine, &["failure mode", "did not answer in time"]);
    works_again(machine);
}

/// As above with the real program: a process that is stopped is there, and takes what it is sent.
#[test]
fn a_worker_that_is_stopped_is_ended_by_a_reset() {
    let state = tempfile::tempdir().unwrap();
    let server = RealServer::with_state(state.path());
    let client = RawClient::connect(&server.socket());
    client.stream.set_read_timeout(Some(ACCESS_LIMIT)).unwrap();
    let mut guest = Tis::new(client);
    assert_eq!(code_of(&guest.run(&command())), RC_SUCCESS);
    kill(server.running_engine(), Signal::SIGSTOP).unwrap();
    guest.begin(&command());
    for _ in 0..100 {
        assert_eq!(guest.read8(STS), 0x80, "in execution");
    }
    guest.reset();
    assert_eq!(code_of(&guest.run(&command())), RC_SUCCESS);
    assert_eq!(server.log().matches("did not answer in time").count(), 1, "{}", server.log());
}

#[track_caller]
fn assert_one_line_but_for_lost_keys(machine: &Machine, part: &str) {
    let log: Vec<_> = machine.log().into_iter().filter(|line| !line.contains("--state-dir")).collect();
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].contains(part), "{log:?}");
}

#[test]
fn a_tpm_that_never_was_ends_the_server_with_its_reason() {
    let (_client, server, _links) = serve("refuses-to-start");
    let error = server.join().unwrap().unwrap_err();
    let ServerError::Device(reason) = error else { panic!("{error}") };
    let reason = reason.to_string();
    assert!(reason.contains("cannot start") && reason.contains("no\\nsuch \\u{1b}[31mTPM"), "{reason}");
}
