//! Confinement: that it is in force in the program as it is built, and what cannot be done under it.

mod common;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, exit};
use std::time::Duration;

use common::process::{Process, until};
use common::raw_client::RawClient;
use common::server::Server;
use common::tis::Tis;
use common::tpm_commands::*;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
use nix::unistd::{Pid, execv, geteuid, getppid};
use vfio_user_tpm::sandbox::{Confinement, Grant, InForce, Level, OnViolation, SERVER_CALLS, WORKER_CALLS};

const DEADLINE: Duration = Duration::from_secs(60);

/// The fields `wanted` of each thread of a process (proc(5), `status`).
fn status(pid: Pid, wanted: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap());
    let value = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':')).map(str::trim);
        line.unwrap_or_else(|| panic!("{wanted} in {text}")).to_owned()
    };
    status.map(value).collect()
}

fn is_everywhere(pid: Pid, field: &str, value: &str) {
    let threads = status(pid, field);
    assert!(threads.iter().all(|thread| thread == value), "{field} of {pid}: {threads:?}, and {value} was expected");
}

/// A guest has been served.
fn serve(server: &Server) {
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
}

#[test]
fn each_thread_of_server_and_worker_is_confined_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with_state(folder.path());
    serve(&server);
    for (pid, threads) in [(server.pid(), 9), (server.running_engine(), 2)] {
        assert_eq!(status(pid, "Name").len(), threads);
        is_everywhere(pid, "NoNewPrivs", "1");
        is_everywhere(pid, "Seccomp", "2");
    }
    let spawner = server.spawner().unwrap();
    is_everywhere(spawner, "NoNewPrivs", "1");
    for pid in [server.pid(), spawner, server.running_engine()] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        assert!(limits.lines().any(|line| line.starts_with("Max core file size        0")), "{limits}");
    }
    assert!(!server.log().contains("this kernel has no"), "{}", server.log());
}

#[test]
fn a_worker_that_takes_the_place_of_another_is_confined_too() {
    let server = Server::start();
    serve(&server);
    server.kill_engine();
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    tis.reset();
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    is_everywhere(server.running_engine(), "Seccomp", "2");
}

#[test]
fn less_confinement_is_there_when_it_is_asked_for() {
    for (args, no_new_privs, seccomp) in [
        (["--sandbox=none", "--seccomp=kill"], "0", "0"),
        (["--sandbox=landlock", "--seccomp=kill"], "1", "0"),
        (["--sandbox=full", "--seccomp=none"], "1", "0"),
        (["--sandbox=full", "--seccomp=log"], "1", "2"),
        (["--sandbox=full", "--seccomp=errno"], "1", "2"),
    ] {
        let server = Server::with_args(&args.map(Into::into));
        serve(&server);
        for pid in [server.pid(), server.running_engine()] {
            is_everywhere(pid, "NoNewPrivs", no_new_privs);
            is_everywhere(pid, "Seccomp", seccomp);
        }
        let socket = server.socket();
        assert!(server.terminate().success());
        assert!(!socket.exists());
    }
}

#[test]
fn started_by_root_everything_can_belong_to_another_user() {
    const USER: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let program = Path::new(env!("CARGO_BIN_EXE_vfio-user-tpm"));
    let mut args = vec!["--interface=tis".to_owned(), format!("--socket-path={}", path("socket").display())];
    args.extend([format!("--state-dir={}", path("state").display()), format!("--user={USER}:{USER}")]);
    if !geteuid().is_root() {
        let mut process = Process::start(program, &args, path("log"));
        assert_eq!(process.wait(DEADLINE).unwrap().code(), Some(1));
        assert!(process.output().contains("started by root"), "{}", process.output());
        return;
    }
    chown(folder.path(), Some(USER), Some(USER)).unwrap();
    let process = Process::start(program, &args, path("log"));
    let socket = path("socket");
    let mut tis = Tis::new(RawClient::from_stream(
        until(DEADLINE, || std::os::unix::net::UnixStream::connect(&socket).ok())
            .unwrap_or_else(|| panic!("{}", process.output())),
    ));
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    let ids = [USER; 4].map(|id| id.to_string()).join("\t");
    for (field, value) in [("Uid", ids.as_str()), ("Gid", &ids), ("Groups", &USER.to_string())] {
        is_everywhere(process.pid(), field, value);
    }
    for capabilities in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        is_everywhere(process.pid(), capabilities, "0000000000000000");
    }
    let mut process = process;
    process.signal(Signal::SIGTERM);
    assert!(process.wait(DEADLINE).unwrap().success(), "{}", process.output());
    assert!(!socket.exists());
}

#[test]
fn a_user_is_refused_to_a_program_that_is_not_roots() {
    let program = env!("CARGO_BIN_EXE_vfio-user-tpm");
    let args = ["--socket-path=/nonexistent/s", "--user=65533:65533"];
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--clear-groups", "--", program]);
        command
    } else {
        Command::new(program)
    };
    let Ok(output) = command.args(args).output() else { panic!("setpriv is needed (util-linux)") };
    let error = String::from_utf8_lossy(&output.stderr);
    // In a folder that the other user cannot enter, there is no program to start.
    assert!(!output.status.success() && (error.contains("started by root") || error.contains("Permission")), "{error}");
}

/// What a process that was taken over might try. Each ends the process with the number of its error, or 0.
type Attempt = fn(parent: Pid) -> Result<(), Errno>;

const ATTEMPTS: [(&str, Attempt); 12] = [
    ("internet", |_| socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).map(drop)),
    ("unix_pair", |_| socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).map(drop)),
    ("read", |_| open(Path::new("/etc/passwd"), false)),
    ("write", |_| open(&outside(), true)),
    ("execute", |_| execv(c"/bin/true", &[c"/bin/true"]).map(drop)),
    ("trace", |parent| {
        // SAFETY: without effect on memory.
        Errno::result(unsafe { libc::ptrace(libc::PTRACE_ATTACH, parent.as_raw(), 0, 0) }).map(drop)
    }),
    ("signal", |parent| kill(parent, None)),
    ("signal_by_input", |parent| {
        // SAFETY: without effect on memory.
        Errno::result(unsafe { libc::fcntl(0, libc::F_SETOWN, parent.as_raw()) }).map(drop)
    }),
    ("thread", |_| std::thread::Builder::new().spawn(|| {}).map(drop).map_err(|error| errno(&error))),
    ("executable_memory", |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    ("memory", |_| map(libc::PROT_READ | libc::PROT_WRITE)),
    ("list", |_| fs::read_dir("/").map(drop).map_err(|error| errno(&error))),
];

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn open(path: &Path, write: bool) -> Result<(), Errno> {
    fs::File::options()
        .read(!write)
        .write(write)
        .create(write)
        .truncate(false)
        .open(path)
        .map(drop)
        .map_err(|error| errno(&error))
}

fn map(protection: i32) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, of which nobody knows.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

fn outside() -> PathBuf {
    std::env::temp_dir().join(format!("vfio-user-tpm-sandbox-{}", std::process::id()))
}

/// What is to be confined, and how, in the environment of a process of this test program that tries something.
const ROLE: &str = "SANDBOX_ROLE";
const ATTEMPT: &str = "SANDBOX_ATTEMPT";
/// This kernel has no Landlock.
const UNSUPPORTED: i32 = 200;

/// Not a test by itself: what the other tests run in a process of its own.
#[test]
fn attempt() {
    let (Ok(role), Ok(name)) = (std::env::var(ROLE), std::env::var(ATTEMPT)) else { return };
    let (_, attempt) = ATTEMPTS.iter().find(|(known, _)| *known == name).unwrap();
    let (role, how) = role.split_once(' ').unwrap();
    let (level, on_violation) = match how {
        "kill" => (Level::Full, OnViolation::Kill),
        "errno" => (Level::Full, OnViolation::Errno),
        "log" => (Level::Full, OnViolation::Log),
        "landlock" => (Level::Landlock, OnViolation::Kill),
        _ => (Level::None, OnViolation::Kill),
    };
    let confinement = Confinement { level, on_violation };
    let folder = tempfile::tempdir().unwrap();
    let dir = fs::File::open(folder.path()).unwrap();
    // To ask for it may be forbidden then, and is not what is tried.
    let parent = getppid();
    confinement.give_up_privileges(64).unwrap();
    let (calls, granted) = match role {
        "server" => (SERVER_CALLS, vec![]),
        _ => (WORKER_CALLS, vec![Grant::StateFolder(dir.as_fd())]),
    };
    if confinement.restrict_files(&granted).unwrap() == InForce::Unsupported {
        exit(UNSUPPORTED);
    }
    if role == "worker" {
        let file = folder.path().join("state");
        fs::write(&file, "x").unwrap();
        fs::rename(&file, folder.path().join("renamed")).unwrap();
        assert!(fs::create_dir(folder.path().join("folder")).is_err() || level == Level::None);
    }
    let _ = confinement.restrict_calls(&[calls]).unwrap();
    exit(attempt(parent).err().map_or(0, |errno| errno as i32));
}

fn try_as(role: &str, how: &str, attempt: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "attempt"]).env(ROLE, format!("{role} {how}")).env(ATTEMPT, attempt);
    let output = command.output().unwrap();
    // A panic's, which would look like an error's number.
    assert_ne!(output.status.code(), Some(101), "{}", String::from_utf8_lossy(&output.stdout));
    output.status
}

#[track_caller]
fn assert_killed(role: &str, attempts: &[&str]) {
    for attempt in attempts {
        let status = try_as(role, "kill", attempt);
        if status.code() != Some(UNSUPPORTED) {
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{role}: {attempt}");
        }
    }
}

#[track_caller]
fn assert_gives(role: &str, how: &str, expected: i32, attempts: &[&str]) {
    for attempt in attempts {
        let status = try_as(role, how, attempt);
        if status.code() != Some(UNSUPPORTED) {
            assert_eq!(status.code(), Some(expected), "{role} {how}: {attempt}");
        }
    }
}

#[test]
fn without_confinement_all_attempts_would_succeed() {
    assert_gives("server", "none", 0, &["internet", "unix_pair", "read", "write", "execute", "signal", "thread"]);
    assert_gives("server", "none", 0, &["signal_by_input", "executable_memory", "memory", "list"]);
}

#[test]
fn a_server_that_was_taken_over_reaches_no_file_network_or_process() {
    assert_killed("server", &["internet", "execute", "trace", "signal", "signal_by_input"]);
    assert_killed("server", &["thread", "executable_memory"]);
    assert_gives("server", "kill", libc::EACCES, &["read", "write", "list"]);
    assert_gives("server", "kill", 0, &["unix_pair", "memory"]);
}

#[test]
fn a_worker_that_was_taken_over_reaches_its_state_folder_only() {
    assert_killed("worker", &["internet", "unix_pair", "execute", "trace", "signal", "signal_by_input"]);
    assert_killed("worker", &["thread", "executable_memory"]);
    assert_gives("worker", "kill", libc::EACCES, &["read", "write", "list"]);
    assert_gives("worker", "kill", 0, &["memory"]);
}

#[test]
fn what_is_not_on_the_list_fails_or_is_only_logged_if_that_is_wanted() {
    for role in ["server", "worker"] {
        assert_gives(role, "errno", libc::EPERM, &["internet", "trace", "thread", "executable_memory"]);
        assert_gives(role, "log", 0, &["internet", "thread", "executable_memory"]);
        // Landlock stays.
        assert_gives(role, "log", libc::EACCES, &["read", "write", "list"]);
    }
}

#[test]
fn landlock_alone_keeps_files_from_both() {
    for role in ["server", "worker"] {
        assert_gives(role, "landlock", libc::EACCES, &["read", "write", "list", "execute"]);
        assert_gives(role, "landlock", libc::EPERM, &["trace"]);
        assert_gives(role, "landlock", 0, &["internet", "executable_memory"]);
    }
}
