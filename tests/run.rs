//! `vfio-user-tpm run`: what happens to processes, signals, statuses and files. QEMU is a shell script here, except in
//! `tests/guests.rs`.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use common::process::{Process, until};
use common::server::Server;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getpgid, mkfifo};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");
const DEADLINE: Duration = Duration::from_secs(60);

/// A `run` with a script in the place of QEMU. `TMPDIR` is `tmp` in the script's working directory.
struct Run {
    process: Process,
    dir: TempDir,
    /// Processes to kill if the test fails.
    known: Vec<Pid>,
}

impl Run {
    /// Starts `run` with flags of its own and a script, which finds QEMU's arguments in `"$@"`.
    #[track_caller]
    fn script(flags: &[&str], script: &str) -> Self {
        Self::command(flags, &["/bin/sh", "-c", script, "qemu"])
    }

    #[track_caller]
    fn command(flags: &[&str], command: &[&str]) -> Self {
        Self::start(folder(), flags, command, &[], Stdio::null())
    }

    /// `launcher` is what starts the program, if it is not the test.
    #[track_caller]
    fn start(dir: TempDir, flags: &[&str], command: &[&str], launcher: &[&str], input: Stdio) -> Self {
        let args = [
            // A shell cannot trap what was ignored when it was started, as by a test runner in the background.
            &[
                "--default-signal",
                "--chdir",
                dir.path().to_str().unwrap(),
                &format!("TMPDIR={}", dir.path().join("tmp").display()),
            ],
            launcher,
            &[PROGRAM, "run"],
            flags,
            &["--"],
            command,
        ];
        let process = Process::start_with_input(Path::new("env"), args.concat(), dir.path().join("output"), input);
        Self { process, dir, known: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn output(&self) -> String {
        self.process.output()
    }

    /// Waits until somebody has written `text`.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let said = until(DEADLINE, || {
            let ended = self.process.exit_status();
            let said = self.output().contains(text);
            assert!(said || ended.is_none(), "it has ended ({ended:?}) without saying {text:?}: {}", self.output());
            said.then_some(())
        });
        assert!(said.is_some(), "nobody says {text:?}: {}", self.output());
    }

    fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// The child processes of `run`: the server and QEMU, as far as they run.
    fn children(&self) -> Vec<Pid> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap_or_default();
        children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    /// The server's process.
    #[track_caller]
    fn server(&mut self) -> Pid {
        let is_server = |pid: &Pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| cmdline.starts_with(b"vfio-user-tpm\0"))
        };
        let server = self.children().into_iter().find(is_server).expect("run has started a server");
        self.known.push(server);
        server
    }

    /// QEMU's process.
    #[track_caller]
    fn qemu(&mut self) -> Pid {
        let server = self.server();
        let qemu = self.children().into_iter().find(|pid| *pid != server).expect("run has started QEMU");
        self.known.push(qemu);
        qemu
    }

    /// QEMU's process, once there is one.
    #[track_caller]
    fn qemu_when_started(&mut self) -> Pid {
        let started = until(DEADLINE, || (self.children().len() == 2).then_some(()));
        assert!(started.is_some(), "QEMU is not started: {}", self.output());
        self.qemu()
    }

    /// Lets a script go on that waits for the pipe `name`.
    fn release(&self, name: &str) {
        fs::write(self.path(name), "\n").unwrap();
    }

    /// Waits for the end. No process and no file may be left; gives status and output.
    #[track_caller]
    fn end(&mut self) -> (ExitStatus, String) {
        let status = self.process.wait(DEADLINE).unwrap_or_else(|| panic!("run does not end: {}", self.output()));
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
        for pid in self.known.drain(..) {
            assert!(kill(pid, None).is_err(), "process {pid} is left");
        }
        (status, self.process.output())
    }

    #[track_caller]
    fn ends_with(&mut self, code: i32) -> String {
        let (status, output) = self.end();
        assert_eq!(status.code(), Some(code), "{status}: {output}");
        output
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for pid in self.children().into_iter().chain(self.known.drain(..)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// A folder with an empty `tmp` and a pipe `go`, for which scripts wait.
fn folder() -> TempDir {
    let dir = tempfile::Builder::new().prefix("run-").tempdir().unwrap();
    fs::create_dir(dir.path().join("tmp")).unwrap();
    mkfifo(&dir.path().join("go"), Mode::S_IRWXU).unwrap();
    dir
}

/// Shell: says `started` and waits until it is released.
const WAIT: &str = "echo qemu is there; read x <go;";

/// Shell: waits for signals; `$!` has to be killed at the end.
const IDLE: &str = "sleep 600 & echo qemu is there; while :; do wait; done";

#[test]
fn qemu_gets_the_users_arguments_and_then_what_attaches_the_tpm() {
    let script = r#"
        for argument; do echo "<$argument>"; done
        test -S "$TMPDIR"/vfio-user-tpm-*/socket && test -s "$TMPDIR"/vfio-user-tpm-*/ssdt.aml && echo all there"#;
    let mut run = Run::command(&["--pci-address=6"], &["/bin/sh", "-c", script, "qemu", "-m", "1G", "a disk.img"]);
    let output = run.ends_with(0);
    let arguments: Vec<_> = output.lines().filter_map(|line| line.strip_prefix('<')?.strip_suffix('>')).collect();
    assert_eq!(arguments[..6], ["-m", "1G", "a disk.img", "-machine", "q35", "-device"], "{output}");
    let device: serde_json::Value = serde_json::from_str(arguments[6]).unwrap();
    assert_eq!((&device["driver"], &device["addr"]), (&"vfio-user-pci".into(), &"06.0".into()));
    let folder = Path::new(device["socket"]["path"].as_str().unwrap()).parent().unwrap();
    let table = |name| format!("file={}", folder.join(name).display());
    assert_eq!(
        arguments[7..],
        ["-acpitable", &table("ssdt.aml"), "-acpitable", &table("tpm2.aml"), "-global", "ICH9-LPC.disable_s3=1"]
    );
    assert!(folder.starts_with(run.path("tmp")) && output.contains("all there"), "{output}");
}

#[test]
fn qemu_gets_the_machine_and_the_tables_that_the_flags_say() {
    let flags = ["--machine=pc", "--tpm-version=1.2"];
    let output = Run::script(&flags, "for argument; do echo \"<$argument>\"; done").ends_with(0);
    for argument in ["<-machine>\n<pc>\n", "/tcpa.aml>", "<PIIX4_PM.disable_s3=1>"] {
        assert!(output.contains(argument), "{output}");
    }
    assert!(output.contains("TPM 1.2"), "{output}");
}

#[test]
fn the_exit_status_is_qemus() {
    Run::script(&[], "exit 0").ends_with(0);
    Run::script(&[], "exit 7").ends_with(7);
}

#[test]
fn a_qemu_that_died_of_a_signal_gives_128_and_its_number() {
    Run::script(&[], "kill -KILL $$").ends_with(128 + 9);
    Run::script(&[], "kill -SEGV $$").ends_with(128 + 11);
}

#[test]
fn a_qemu_that_cannot_be_started_is_told_as_shells_do() {
    let output = Run::command(&[], &["./no-such-qemu", "-m", "1G"]).ends_with(127);
    assert!(output.contains("cannot start \"./no-such-qemu\": No such file"), "{output}");
    let output = Run::command(&[], &["/etc/passwd"]).ends_with(126);
    assert!(output.contains("cannot start \"/etc/passwd\": Permission denied"), "{output}");
}

#[test]
fn signals_are_passed_on_to_qemu() {
    for (signal, name) in [
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
    ] {
        let mut run = Run::script(&[], &format!("trap 'kill $!; echo caught {name}; exit 3' {name}; {IDLE}"));
        run.wait_for("qemu is there");
        run.server();
        kill(run.pid(), signal).unwrap();
        let output = run.ends_with(3);
        assert!(output.contains(&format!("caught {name}")), "{output}");
    }
}

#[test]
fn a_qemu_that_ignores_signals_keeps_its_tpm() {
    let mut run = Run::script(&[], &format!("trap '' TERM INT; {WAIT} test -S \"$TMPDIR\"/*/socket && exit 5"));
    run.wait_for("qemu is there");
    run.server();
    kill(run.pid(), Signal::SIGTERM).unwrap();
    kill(run.pid(), Signal::SIGINT).unwrap();
    run.release("go");
    run.ends_with(5);
}

#[test]
fn a_signal_while_the_server_starts_leaves_nothing_behind() {
    let mut run = Run::command(&[], &["sleep", "600"]);
    // From here on signals are taken in order; the outcome is the same whether or not QEMU has been started.
    let blocked = until(DEADLINE, || {
        let status = fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim().to_owned();
        (u64::from_str_radix(&mask, 16).unwrap() & 1 << (Signal::SIGTERM as i32 - 1) != 0).then_some(())
    });
    assert!(blocked.is_some());
    kill(run.pid(), Signal::SIGTERM).unwrap();
    run.ends_with(128 + 15);
}

#[test]
fn the_server_shuts_its_tpm_down_after_qemu() {
    let mut run = Run::script(&["--log-level=debug"], &format!("{WAIT} echo qemu ends"));
    run.wait_for("qemu is there");
    run.server();
    run.release("go");
    let output = run.ends_with(0);
    let at = |text| output.find(text).unwrap_or_else(|| panic!("{text:?} is not in {output}"));
    assert!(at("the TPM is up") < at("qemu is there") && at("qemu is there") < at("qemu ends"), "{output}");
    assert!(at("qemu ends") < at("INFO ] ending, for signal 15") && output.contains("INFO ] ended"), "{output}");
}

#[test]
fn lines_of_the_log_are_told_apart_from_qemus() {
    let output = Run::script(&["--log-level=debug"], "echo from QEMU").ends_with(0);
    for line in output.lines() {
        assert!(line == "from QEMU" || line.starts_with("vfio-user-tpm: ["), "{line}");
    }
}

#[test]
fn qemu_goes_on_when_the_server_dies_and_the_status_tells() {
    for (qemu_ends, status) in [(0, 1), (4, 4)] {
        let mut run = Run::script(&["--log-level=error"], &format!("{WAIT} exit {qemu_ends}"));
        run.wait_for("qemu is there");
        kill(run.server(), Signal::SIGKILL).unwrap();
        run.wait_for("THE TPM IS LOST");
        run.release("go");
        run.ends_with(status);
    }
}

/// As when a service manager ends all processes of a service.
#[test]
fn a_signal_to_all_processes_ends_the_tpm_after_qemu() {
    let mut run =
        Run::script(&[], "trap 'echo qemu was told; exit 0' TERM; echo qemu is there; while :; do sleep 0.1; done");
    run.wait_for("qemu is there");
    let server = run.server();
    for _ in 0..3 {
        kill(server, Signal::SIGTERM).unwrap();
    }
    kill(run.pid(), Signal::SIGTERM).unwrap();
    let output = run.ends_with(0);
    assert!(output.contains("qemu was told"), "{output}");
    assert!(!output.contains("LOST"), "{output}");
}

#[test]
fn the_end_of_qemu_is_noticed_by_a_process_that_was_started_to_ignore_its_children() {
    let launcher = ["env", "--ignore-signal=CHLD"];
    let mut run = Run::start(folder(), &[], &["/bin/sh", "-c", "exit 5"], &launcher, Stdio::null());
    run.ends_with(5);
}

#[test]
fn without_a_tpm_qemu_is_not_started() {
    let dir = folder();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let damaged = state.join("tpm2.0-permanent.state");
    fs::write(&damaged, "damaged").unwrap();

    let mut run = Run::start(dir, &["--state-dir=state"], &["touch", "qemu-was-started"], &[], Stdio::null());
    let output = run.ends_with(1);
    assert!(output.contains("is refused and left as it is"), "{output}");
    assert!(output.contains("the server has ended before its TPM was up"), "{output}");
    assert!(!run.path("qemu-was-started").exists());
    assert_eq!(fs::read_to_string(damaged).unwrap(), "damaged");
}

#[test]
fn a_state_folder_in_use_is_told_with_its_holder() {
    let state = tempfile::tempdir().unwrap();
    let server = Server::with_state(state.path());
    let output = Run::script(&["--state-dir", state.path().to_str().unwrap()], "exit 0").ends_with(1);
    assert!(output.contains(&format!("in use by process {}", server.pid())), "{output}");
}

#[test]
fn the_state_outlives_the_run() {
    let state = tempfile::tempdir().unwrap();
    Run::script(&["--state-dir", state.path().to_str().unwrap()], "exit 0").ends_with(0);
    assert!(state.path().join("tpm2.0-permanent.state").exists());
}

#[test]
fn a_key_by_descriptor_reaches_the_server_and_not_qemu() {
    let dir = folder();
    fs::write(dir.path().join("key"), (0..32).collect::<Vec<u8>>()).unwrap();
    let launcher = ["/bin/sh", "-c", r#"exec "$@" 3<key"#, "sh"];
    let script = "if [ -e /proc/self/fd/3 ]; then echo leaked; fi";
    let flags = ["--state-dir=state", "--key-fd=3"];
    let mut run = Run::start(dir, &flags, &["/bin/sh", "-c", script, "qemu"], &launcher, Stdio::null());
    let output = run.ends_with(0);
    assert!(!output.contains("leaked"), "{output}");
    let shown = Command::new(PROGRAM).args(["state", "show", "--state-dir"]).arg(run.path("state")).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains(", sealed"), "{shown:?}");
}

#[test]
fn a_key_descriptor_that_is_not_there_is_told_before_anything_starts() {
    let output = Run::script(&["--state-dir=state", "--key-fd=9"], "echo qemu is there").ends_with(1);
    assert!(output.contains("--key-fd=9") && !output.contains("qemu is there"), "{output}");
}

#[test]
fn standard_input_is_qemus() {
    let (reader, writer) = std::io::pipe().unwrap();
    let command = ["/bin/sh", "-c", "read line; echo \"got $line\"; read x <go"];
    let mut run = Run::start(folder(), &[], &command, &[], reader.into());
    let (qemu, server) = (run.qemu_when_started(), run.server());
    assert_eq!(fs::read_link(format!("/proc/{server}/fd/0")).unwrap(), Path::new("/dev/null"));
    assert_eq!(fs::read_link(format!("/proc/{server}/fd/1")).unwrap(), Path::new("/dev/null"));
    // QEMU stays where a terminal finds it; the server does not.
    assert_eq!(getpgid(Some(qemu)), getpgid(Some(run.pid())));
    assert_eq!(getpgid(Some(server)), Ok(server));
    std::io::Write::write_all(&mut &writer, b"typed\n").unwrap();
    run.wait_for("got typed");
    run.release("go");
    run.ends_with(0);
}

#[test]
fn qemu_begins_as_if_it_had_been_started_alone() {
    for script in
        ["exec grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status", "exec ls /proc/self/fd", "echo \"<$NOTIFY_SOCKET>\""]
    {
        let mut alone = Command::new("env");
        alone.env_remove("NOTIFY_SOCKET");
        let alone = alone.args(["--default-signal", "sh", "-c", script]).output().unwrap();
        let as_qemu = Run::script(&["--log-level=error"], script).ends_with(0);
        assert_eq!(as_qemu, String::from_utf8(alone.stdout).unwrap(), "{script}");
    }
}

#[test]
fn ctrl_c_reaches_qemu_once_and_the_server_not_at_all() {
    let pty = openpty(None, None).unwrap();
    let script = format!("trap 'n=x$n; echo interrupted $n' INT; trap 'kill $!; echo in all $n; exit 3' TERM; {IDLE}");
    // In a session of its own, with the terminal.
    let launcher = ["setsid", "--ctty"];
    let mut run = Run::start(folder(), &[], &["/bin/sh", "-c", &script], &launcher, pty.slave.into());
    run.wait_for("qemu is there");
    run.server();
    let terminal: OwnedFd = pty.master;
    nix::unistd::write(&terminal, b"\x03").unwrap();
    run.wait_for("interrupted x");
    kill(run.pid(), Signal::SIGTERM).unwrap();
    let output = run.ends_with(3);
    assert!(output.contains("in all x\n") && !output.contains("LOST"), "{output}");
}

#[test]
fn a_socket_and_a_description_can_be_the_users() {
    let mut run = Run::script(
        &["--socket-path=tpm.sock", "--description=described"],
        "for argument; do echo \"<$argument>\"; done; test -S tpm.sock && test -s described/tpm.json",
    );
    let output = run.ends_with(0);
    let socket = run.path("tpm.sock");
    assert!(output.contains(socket.to_str().unwrap()), "{output}");
    assert!(output.contains(&format!("<file={}>", run.path("described/ssdt.aml").display())), "{output}");
    assert!(!socket.exists() && run.path("described/tpm.json").exists());
}

#[test]
fn arguments_with_which_the_tpm_would_not_work_are_refused_before_anything_starts() {
    let device = r#"{"driver":"vfio-user-pci","socket":{"type":"unix","path":"tpm.sock"}}"#;
    for (arguments, says) in [
        (["-machine", "microvm"], "give `run` the --machine that fits"),
        (["-m", "-daemonize"], "leave it out"),
        (["-device", device], "attach the TPM of \"tpm.sock\" already"),
    ] {
        let command = [&["touch", "qemu-was-started"][..], &arguments].concat();
        let mut run = Run::command(&["--socket-path=tpm.sock"], &command);
        let output = run.ends_with(1);
        assert!(output.contains(says), "{output}");
        assert!(!output.contains("listening") && !run.path("qemu-was-started").exists(), "{output}");
    }
}

#[test]
fn another_user_for_the_server_alone_is_refused_with_what_to_do() {
    let mut run = Run::command(&["--user=nobody"], &["touch", "qemu-was-started"]);
    let output = run.ends_with(1);
    assert!(output.contains("runuser -u USER"), "{output}");
    assert!(!output.contains("listening") && !run.path("qemu-was-started").exists(), "{output}");
}

#[test]
fn a_server_tells_who_started_it_that_its_tpm_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let (notify, socket) = (dir.path().join("notify"), dir.path().join("socket"));
    let listener = UnixDatagram::bind(&notify).unwrap();
    listener.set_read_timeout(Some(DEADLINE)).unwrap();
    let variable = |name: &str| OsString::from(format!("NOTIFY_SOCKET={name}"));
    let flag = OsString::from(format!("--socket-path={}", socket.display()));
    let args = [variable(notify.to_str().unwrap()), PROGRAM.into(), flag];
    let _server = Process::start(Path::new("env"), args, dir.path().join("log"));
    let mut message = [0; 64];
    let length = listener.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1");
    assert!(socket.exists());
}

#[test]
fn run_tells_who_started_it_when_qemu_is_there_and_qemu_cannot() {
    let dir = folder();
    let notify = dir.path().join("notify");
    let listener = UnixDatagram::bind(&notify).unwrap();
    listener.set_read_timeout(Some(DEADLINE)).unwrap();
    let variable = format!("NOTIFY_SOCKET={}", notify.display());
    let script = format!("echo \"told by <$NOTIFY_SOCKET>\"; {IDLE}");
    let command = ["/bin/sh", "-c", &script, "qemu"];
    let mut run = Run::start(dir, &[], &command, &["env", &variable], Stdio::null());
    let mut message = [0; 64];
    let length = listener.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1");
    run.wait_for("told by <>");
    kill(run.pid(), Signal::SIGTERM).unwrap();
    run.process.wait(DEADLINE).unwrap();
}

#[test]
fn capabilities_are_printed_whatever_else_is_given() {
    for args in [&["--print-capabilities"][..], &["--nonsense", "--print-capabilities", "--state-dir=/nowhere"]] {
        let output = Command::new(PROGRAM).args(args).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["type"], "tpm");
        assert!(json["features"].as_array().unwrap().contains(&"description".into()), "{json}");
    }
}
