//! The program as a service: its configuration file, its log, and what a service manager hands it.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::process::{Process, until};
use common::raw_client::RawClient;
use common::server::Server;
use common::tis::Tis;
use common::tpm_commands::*;
use nix::fcntl::{FcntlArg, fcntl};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

const DEADLINE: Duration = Duration::from_secs(60);

/// A guest is served.
fn serve(socket: &Path) {
    let mut tis = Tis::new(RawClient::connect(socket));
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
}

fn flag(name: &str, value: &Path) -> OsString {
    format!("--{name}={}", value.display()).into()
}

#[test]
fn a_file_says_what_is_served_and_a_command_line_what_else() {
    let folder = tempfile::tempdir().unwrap();
    let (file, state) = (folder.path().join("vm1.toml"), folder.path().join("state"));
    let text = format!("state-dir = '{}'\nsocket-path = '/nonexistent/socket'\nlog-level = 'debug'\n", state.display());
    fs::write(&file, text).unwrap();
    let server = Server::with_args(&[flag("config", &file)]);
    serve(&server.socket());
    assert!(server.log().contains(&format!("its state in {}", state.display())), "{}", server.log());
    assert!(server.log().contains("DEBUG"), "{}", server.log());
    assert!(server.terminate().success());
}

#[test]
fn what_is_wrong_with_a_file_is_a_wrong_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm1.toml");
    fs::write(&file, "# a TPM\nstate_dir = '/s'\n").unwrap();
    let (status, said) = Server::fail(&[flag("config", &file)]);
    assert_eq!(status.code(), Some(2));
    let expected = format!("the configuration file {}: line 2: state_dir: no flag of the server", file.display());
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn run_hands_the_file_on_to_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let (file, state) = (folder.path().join("vm1.toml"), folder.path().join("state"));
    fs::write(&file, format!("state-dir = '{}'\nmachine = 'pc'\ninterface = 'tis'\n", state.display())).unwrap();
    let output = Command::new(PROGRAM)
        .args([&"run".into(), &flag("config", &file)])
        .args(["--", "sh", "-c", "echo \"$@\"", "qemu"])
        .output()
        .unwrap();
    let (printed, log) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && printed.starts_with("-machine pc "), "{printed}{log}");
    assert!(state.join("tpm2.0-permanent.state").exists(), "{log}");
}

/// Lines of a log of systemd's in which each is to begin with a priority and its text.
fn assert_journal_lines(log: &str) {
    for line in log.lines() {
        let (priority, text) = line.strip_prefix('<').and_then(|line| line.split_once('>')).expect(line);
        assert!(
            "3467".contains(priority) && !text.starts_with(['<', '[']) && !text.contains("vfio-user-tpm: "),
            "{line}"
        );
    }
}

/// Starts a program with the journal as its standard error, as far as it can tell.
fn under_the_journal() -> Vec<OsString> {
    let script = r#"JOURNAL_STREAM=$(stat --dereference --format=%d:%i /proc/self/fd/2) exec "$@""#;
    ["sh", "-c", script, "sh"].map(OsString::from).to_vec()
}

#[test]
fn lines_for_the_journal_have_a_priority_and_no_time_of_their_own_those_of_the_worker_too() {
    let server = Server::through(&under_the_journal(), &["--log-level=debug".into()]);
    serve(&server.socket());
    server.kill_engine();
    let log = until(DEADLINE, || Some(server.log()).filter(|log| log.contains("<3>"))).expect("an error in the log");
    assert_journal_lines(&log);
    for expected in ["<6>listening on /", "<4>TPM 2.0 without --state-dir", "<7>Landlock"] {
        assert!(log.lines().any(|line| line.starts_with(expected)), "{expected}: {log}");
    }
}

#[test]
fn a_failure_to_start_is_an_error_in_the_journal() {
    let output = Command::new("sh")
        .args(&under_the_journal()[1..])
        .args([PROGRAM, "--socket-path=/nonexistent/socket", "--state-dir=/proc/nowhere"])
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_journal_lines(&log);
    assert!(log.starts_with("<3>") && output.status.code() == Some(1), "{log}");
}

#[test]
fn a_stream_that_is_not_the_journals_has_lines_as_always() {
    let server = Server::through(&["env".into(), "JOURNAL_STREAM=1:2".into()], &[]);
    assert!(server.log().starts_with("vfio-user-tpm: ["), "{}", server.log());
}

#[test]
fn the_systems_log_has_the_lines_of_all_processes_though_they_are_confined() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let server = Server::with_args(&[flag("syslog", &path), "--log-level=debug".into()]);
    let mut lines = Vec::new();
    let mut wait_for = |expected: &str| {
        let found = until(DEADLINE, || {
            let mut line = [0; 4096];
            while let Ok(length) = socket.recv(&mut line) {
                lines.push(String::from_utf8(line[..length].to_vec()).unwrap());
            }
            lines.iter().any(|line| line.starts_with(expected)).then_some(())
        });
        assert!(found.is_some(), "{expected} in {lines:?}");
    };
    serve(&server.socket());
    let worker = server.running_engine();
    wait_for(&format!("<30>vfio-user-tpm[{}]: listening on ", server.pid()));
    wait_for(&format!("<31>vfio-user-tpm[{worker}]: Landlock"));
    // The server is confined by now.
    server.kill_engine();
    wait_for(&format!("<27>vfio-user-tpm[{}]: ", server.pid()));
    assert_eq!(server.log(), "");
}

#[test]
fn a_system_without_a_log_is_said_before_anything_is_served() {
    let (status, said) = Server::fail(&["--syslog=/nonexistent/log".into()]);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("cannot reach the system's log at /nonexistent/log; leave --syslog out"), "{said}");
}

/// What the shell makes of its standard input and becomes.
fn activated(exports: &str, flags: &str) -> [String; 2] {
    ["-c".to_owned(), format!("export LISTEN_PID=$$ {exports}; exec {PROGRAM} {flags} 3<&0 </dev/null")]
}

#[test]
fn a_socket_of_the_service_manager_is_served_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let args = activated("LISTEN_FDS=1 LISTEN_FDNAMES=tpm NOTIFY_SOCKET=", "--socket-activation --interface=tis");
    let mut process = Process::start_with_input(
        Path::new("sh"),
        args,
        folder.path().join("log"),
        listener.try_clone().unwrap().into(),
    );
    for _ in 0..2 {
        serve(&path);
    }
    // None of it is in the environment of what runs below: the spawner and the worker.
    let below = |pid| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().trim().to_owned();
    let spawner = below(process.pid().to_string());
    let worker = below(spawner.clone());
    for pid in [spawner, worker] {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(environment.contains("PATH=") && !environment.contains("LISTEN_"), "{environment}");
        assert!(!environment.contains("NOTIFY_SOCKET"), "{environment}");
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let open: Vec<_> = open.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
        let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
        assert!(open.iter().all(|link| link != Path::new(&format!("socket:[{inode}]"))), "{open:?}");
    }
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(DEADLINE).unwrap().success(), "{}", process.output());
    assert!(path.exists());
}

#[test]
fn a_socket_named_control_is_asked_how_the_tpm_is() {
    let folder = tempfile::tempdir().unwrap();
    let (path, control) = (folder.path().join("socket"), folder.path().join("control"));
    let listener = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let questions = UnixListener::bind(&control).unwrap();
    // The one that is not the standard input gets its place from the shell, by a number that nobody else has.
    let inherited = fcntl(&questions, FcntlArg::F_DUPFD(100)).unwrap();
    let script = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=vfio-user:control
         exec {PROGRAM} --socket-activation --interface=tis 3<&0 4<&{inherited} {inherited}<&- </dev/null"
    );
    let log = folder.path().join("log");
    let process = Process::start_with_input(Path::new("bash"), ["-c", &script], log, listener.into());
    // SAFETY: it was made above, and nobody else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(inherited) });
    serve(&path);
    let output = Command::new(PROGRAM).arg("status").arg("--control").arg(&control).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("TPM 2.0"), "{told}{}", process.output());
}

#[test]
fn what_a_service_manager_cannot_have_meant_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let listener = OwnedFd::from(UnixListener::bind(folder.path().join("socket")).unwrap());
    let (connection, _other) = UnixStream::pair().unwrap();
    let datagram = UnixDatagram::unbound().unwrap();
    let inet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = fs::File::open("/dev/null").unwrap();
    let flags = "--socket-activation";
    for (descriptor, exports, flags, expected) in [
        (connection.into(), "LISTEN_FDS=1", flags, "nobody listens on descriptor 3"),
        (datagram.into(), "LISTEN_FDS=1", flags, "nobody listens on descriptor 3"),
        (inet.into(), "LISTEN_FDS=1", flags, "no UNIX socket"),
        (file.into(), "LISTEN_FDS=1", flags, "descriptor 3 is no socket"),
        (listener.try_clone().unwrap(), "LISTEN_FDS=2", flags, "exactly one ListenStream="),
        (listener.try_clone().unwrap(), "X=1", flags, "LISTEN_FDS is not set"),
        (listener.try_clone().unwrap(), "LISTEN_PID=1 LISTEN_FDS=1", flags, "are for process 1,"),
    ] {
        let descriptor: OwnedFd = descriptor;
        let args = activated(exports, flags);
        let mut process =
            Process::start_with_input(Path::new("sh"), args, folder.path().join("log"), descriptor.into());
        assert_eq!(process.wait(DEADLINE).unwrap().code(), Some(1), "{exports}");
        assert!(process.output().contains(expected), "{exports}: {}", process.output());
    }
}

/// A unit does not start them again (`RestartPreventExitStatus=2`).
#[test]
fn keys_that_contradict_the_units_flags_are_a_wrong_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let listener = OwnedFd::from(UnixListener::bind(folder.path().join("socket")).unwrap());
    let (file, control) = (folder.path().join("vm1.toml"), folder.path().join("control"));
    for (key, exports, expected) in [
        ("socket-mode = '0660'".to_owned(), "LISTEN_FDS=1", "need --socket-path"),
        ("description = '/nonexistent'".to_owned(), "LISTEN_FDS=1", "--socket-path"),
        (
            "startup = 'none'\nbackend = 'passthrough'\ntpm-version = '2.0'".to_owned(),
            "LISTEN_FDS=1",
            "--startup does not go",
        ),
        ("backend = 'swtpm'".to_owned(), "LISTEN_FDS=1", "needs --swtpm-ctrl"),
        (
            format!("control = '{}'", control.display()),
            "LISTEN_FDS=2 LISTEN_FDNAMES=tpm:control",
            "leave one of them out",
        ),
    ] {
        fs::write(&file, &key).unwrap();
        let flags = format!("--config={} --socket-activation", file.display());
        // The same socket twice, which nobody serves.
        let [flag, script] = activated(exports, &flags);
        let args = [flag, script.replace("3<&0", "3<&0 4<&0")];
        let socket = listener.try_clone().unwrap().into();
        let mut process = Process::start_with_input(Path::new("sh"), args, folder.path().join("log"), socket);
        assert_eq!(process.wait(DEADLINE).unwrap().code(), Some(2), "{key}: {}", process.output());
        assert!(process.output().contains(expected), "{key}: {}", process.output());
    }
    assert!(!control.exists());
}
