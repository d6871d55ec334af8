//! The server, as the built program.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::process::{Process, tail, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

const DEADLINE: Duration = Duration::from_secs(60);

/// A running `vfio-user-tpm`, with its socket and its description in a folder of its own. It is killed when this is dropped;
/// if a test panics, the end of its log is printed.
pub(crate) struct Server {
    process: Process,
    dir: TempDir,
}

impl Server {
    /// Starts a server with an ephemeral TPM and waits until it listens.
    #[track_caller]
    pub(crate) fn start() -> Self {
        Self::with_args(&[])
    }

    /// Starts a server that keeps its TPM in `state_dir`, and waits until it listens.
    #[track_caller]
    pub(crate) fn with_state(state_dir: &Path) -> Self {
        Self::with_args(&["--state-dir".into(), state_dir.into()])
    }

    /// Starts a server with more arguments, and waits until it listens.
    #[track_caller]
    pub(crate) fn with_args(args: &[OsString]) -> Self {
        Self::spawn(args).listening()
    }

    /// Waits until it listens.
    #[track_caller]
    fn listening(mut self) -> Self {
        let listens = until(DEADLINE, || {
            if let Some(status) = self.process.exit_status() {
                panic!("the server ended at start ({status})");
            }
            is_listening(&self.socket()).then_some(())
        });
        assert!(listens.is_some(), "the server does not listen");
        self
    }

    /// Starts a server that serves one connection, handed over as descriptor 3.
    #[track_caller]
    pub(crate) fn on_descriptor(connection: OwnedFd) -> Self {
        let dir = folder();
        // The shell turns its standard input into descriptor 3 and then becomes the program.
        let script = r#"exec "$0" "$@" 3<&0 </dev/null"#;
        let program = Path::new("/bin/sh");
        let args = ["-c", script, PROGRAM, "--fd=3", "--interface=tis"];
        let process = Process::start_with_input(program, args, dir.path().join("log"), connection.into());
        Self { process, dir }
    }

    /// Starts a server that inherits a descriptor which is not meant for it.
    #[track_caller]
    pub(crate) fn with_inherited(other: OwnedFd) -> Self {
        let dir = folder();
        let socket = format!("--socket-path={}", dir.path().join("socket").display());
        let args = ["-c", r#"exec "$0" "$@" 3<&0 </dev/null"#, PROGRAM, &socket, "--interface=tis"];
        let process = Process::start_with_input(Path::new("/bin/sh"), args, dir.path().join("log"), other.into());
        Self { process, dir }.listening()
    }

    /// Starts a server that is to fail; returns its exit status and what it printed.
    #[track_caller]
    pub(crate) fn fail(args: &[OsString]) -> (ExitStatus, String) {
        Self::spawn(args).failed()
    }

    /// As [`fail`](Self::fail), without the flags for socket and description.
    #[track_caller]
    pub(crate) fn fail_without_socket(args: &[OsString]) -> (ExitStatus, String) {
        let dir = folder();
        let process = Process::start(Path::new(PROGRAM), args, dir.path().join("log"));
        Self { process, dir }.failed()
    }

    /// Starts a server with more arguments.
    pub(crate) fn spawn(args: &[OsString]) -> Self {
        Self::spawn_through(&[PROGRAM.into()], args)
    }

    /// Starts a server by a command that runs what follows it, and waits until it listens.
    #[track_caller]
    pub(crate) fn through(command: &[OsString], args: &[OsString]) -> Self {
        Self::spawn_through(&[command, &[PROGRAM.into()]].concat(), args).listening()
    }

    fn spawn_through(command: &[OsString], args: &[OsString]) -> Self {
        let dir = folder();
        let in_dir = |option: &str, name| {
            let mut argument = OsString::from(option);
            argument.push(dir.path().join(name));
            argument
        };
        let own = [in_dir("--socket-path=", "socket"), in_dir("--description=", "description")];
        let (program, before) = command.split_first().expect("a command");
        // Most tests drive the registers of TIS; the others name their interface.
        let tis = OsString::from("--interface=tis");
        let named = args.iter().any(|arg| arg.to_string_lossy().starts_with("--interface"));
        let interface = (!named).then_some(&tis);
        let args = before.iter().chain(&own).chain(interface).chain(args);
        let process = Process::start(Path::new(program), args, dir.path().join("log"));
        Self { process, dir }
    }

    #[track_caller]
    fn failed(mut self) -> (ExitStatus, String) {
        let status = self.process.wait(DEADLINE).expect("the server ends by itself");
        (status, self.log())
    }

    /// The socket it serves.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The folder of its description.
    pub(crate) fn description(&self) -> PathBuf {
        self.dir.path().join("description")
    }

    /// The arguments with which QEMU attaches the device, ready-made by the server.
    #[track_caller]
    pub(crate) fn qemu_args(&self) -> Vec<OsString> {
        let file = std::fs::read(self.description().join("tpm.json"))
            .expect("--description has written tpm.json before the server listens");
        let description: Value = serde_json::from_slice(&file).expect("tpm.json is JSON");
        let arguments = description["qemu"].as_array().expect("tpm.json has QEMU's arguments");
        arguments.iter().map(|argument| argument.as_str().expect("a string").into()).collect()
    }

    /// What the server has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    /// As [`log`](Self::log), byte by byte.
    pub(crate) fn raw_log(&self) -> Vec<u8> {
        self.process.raw_output()
    }

    /// The process that starts the one in which the TPM runs.
    pub(crate) fn spawner(&self) -> Option<Pid> {
        children(self.process.pid()).into_iter().next()
    }

    /// The process in which the TPM runs, as soon as there is one.
    #[track_caller]
    pub(crate) fn running_engine(&self) -> Pid {
        until(DEADLINE, || self.engine()).expect("the server has an engine process")
    }

    /// The process in which the TPM runs; `None` while there is none.
    pub(crate) fn engine(&self) -> Option<Pid> {
        children(self.spawner()?).into_iter().next()
    }

    /// Kills the process in which the TPM runs, as a crash would.
    #[track_caller]
    pub(crate) fn kill_engine(&self) {
        let engine = self.running_engine();
        signal::kill(engine, Signal::SIGKILL).expect("the engine can be killed");
        let gone = until(DEADLINE, || (self.engine() != Some(engine)).then_some(()));
        assert!(gone.is_some(), "the server does not wait for its dead engine");
    }

    /// The server's process id.
    pub(crate) fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Asks the server to end and waits until it has.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.process.signal(Signal::SIGTERM);
        self.wait()
    }

    /// As [`terminate`](Self::terminate), and keeps the folder in which the socket was.
    #[track_caller]
    pub(crate) fn terminate_keeping_folder(mut self) -> TempDir {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(DEADLINE).expect("the server ends after SIGTERM");
        std::mem::replace(&mut self.dir, folder())
    }

    /// Waits until the server has ended.
    #[track_caller]
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.process.wait(DEADLINE).expect("the server ends")
    }

    /// Kills the server, as a crash would.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.process.signal(Signal::SIGKILL);
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log, last lines:\n{}\n---", tail(&self.log(), 60));
        }
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("tpm-").tempdir().expect("temporary folder")
}

/// Whether somebody listens on `socket`. Asked of the kernel, since a connection would be a client for the server.
fn is_listening(socket: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON in the flags means: listens.
    const ACCEPTCON: &str = "00010000";
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    sockets.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&ACCEPTCON) && fields.get(7).is_some_and(|path| Path::new(path) == socket)
    })
}

/// The processes that this one has started.
pub(crate) fn children(of: Pid) -> Vec<Pid> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{of}/task")) else { return Vec::new() };
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok());
    children
        .flat_map(|pids| {
            pids.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect::<Vec<_>>()
        })
        .collect()
}
