//! The units in dist/systemd: what systemd's own tools say of them, that their system calls are enough, and that their
//! command lines do what they are for.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::process::Process;
use common::raw_client::RawClient;
use common::tis::Tis;
use common::tpm_commands::*;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use vfio_user_tpm::sandbox::{SERVER_CALLS, SERVER_CALLS_TO_ATTACH, WORKER_CALLS};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");
const INSTALLED: &str = "/usr/bin/vfio-user-tpm";
const SERVICE: &str = "vfio-user-tpm@.service";
const SOCKET: &str = "vfio-user-tpm@.socket";
const CONTROL: &str = "vfio-user-tpm-control@.socket";
const DEADLINE: Duration = Duration::from_secs(60);

/// The most exposure that the service may have by systemd's count, in tenths, of 100.
const EXPOSURE: &str = "--threshold=10";

fn unit(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/systemd").join(name)).unwrap()
}

/// All values of a setting, in their order.
fn values(unit: &str, setting: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

/// A folder with the units of a virtual machine `vm1`, for the program as it is built.
fn installed() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in [SERVICE, SOCKET, CONTROL] {
        let text = unit(name).replace(INSTALLED, PROGRAM);
        for name in [name, &name.replace('@', "@vm1")] {
            fs::write(folder.path().join(name), &text).unwrap();
        }
    }
    folder
}

fn analyze(folder: &TempDir, args: &[&str]) -> Output {
    Command::new("systemd-analyze").args(args).current_dir(folder.path()).output().expect("systemd-analyze (systemd)")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn systemd_finds_no_fault_with_the_units() {
    let folder = installed();
    for name in ["./vfio-user-tpm@vm1.service", "./vfio-user-tpm@vm1.socket", "./vfio-user-tpm-control@vm1.socket"] {
        let output = analyze(&folder, &["verify", "--man=no", name]);
        assert!(output.status.success() && text(&output).is_empty(), "{}", text(&output));
    }
}

#[test]
fn the_service_is_exposed_as_little_as_it_was() {
    let args = ["security", "--offline=true", "--no-pager", EXPOSURE, "./vfio-user-tpm@vm1.service"];
    let output = analyze(&installed(), &args);
    let told = text(&output);
    println!("{}", told.lines().last().unwrap_or_default());
    assert!(output.status.success() && told.contains("Overall exposure level"), "{told}");
}

/// Each line was tried with systemd: the socket for questions is there while the service is, and after a restart of either
/// of the two, and gone when one is stopped, fails, or ends by itself.
#[test]
fn the_socket_for_questions_comes_and_goes_with_the_service() {
    let (service, socket) = ("vfio-user-tpm@%i.service", "vfio-user-tpm@%i.socket");
    for (name, setting, expected) in [
        (SERVICE, "Sockets", "vfio-user-tpm@%i.socket vfio-user-tpm-control@%i.socket"),
        (SERVICE, "Requires", socket),
        (CONTROL, "Service", service),
        (CONTROL, "BindsTo", service),
        (CONTROL, "PartOf", socket),
        (CONTROL, "After", socket),
        (CONTROL, "FileDescriptorName", "control"),
    ] {
        assert_eq!(values(&unit(name), setting), [expected], "{name}: {setting}");
    }
    // Nobody enables it alone.
    assert!(!unit(CONTROL).contains("[Install]"));
}

/// The system calls of a group, as this version of systemd has them.
fn group(name: &str) -> BTreeSet<String> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", name]).output().unwrap();
    assert!(output.status.success(), "{name}: {}", text(&output));
    let listed = String::from_utf8(output.stdout).unwrap();
    let members = listed.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    members.flat_map(calls).collect()
}

/// The system calls that a word in a filter stands for.
fn calls(word: &str) -> BTreeSet<String> {
    if word.starts_with('@') { group(word) } else { BTreeSet::from([word.to_owned()]) }
}

/// The system calls that the service may make (systemd.exec(5), `SystemCallFilter=`).
fn allowed() -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for line in values(&unit(SERVICE), "SystemCallFilter") {
        let (words, takes_away) = line.strip_prefix('~').map_or((&*line, false), |words| (words, true));
        for call in words.split_whitespace().flat_map(calls) {
            if takes_away {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
    }
    allowed
}

#[test]
fn the_services_filter_lets_through_what_the_program_confines_itself_to() {
    let allowed = allowed();
    let lists = [SERVER_CALLS, SERVER_CALLS_TO_ATTACH, WORKER_CALLS];
    let wanted: BTreeSet<_> = lists.into_iter().flatten().map(|call| call.name().to_owned()).collect();
    assert_eq!(wanted.difference(&allowed).collect::<Vec<_>>(), [""; 0]);
    for call in ["ptrace", "mount", "setuid", "bpf", "kexec_load", "init_module", "reboot"] {
        assert!(!allowed.contains(call), "{call}");
    }
}

/// A folder in the place of /run and /var/lib, and a unit's command in it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// The arguments of a command of a unit, after the program's name.
    fn arguments(&self, unit: &str, setting: &str) -> Vec<String> {
        let [command] = &*values(unit, setting) else { panic!("one {setting}=") };
        let words = command.strip_prefix(INSTALLED).expect(command).split_whitespace();
        let root = self.folder.path().to_str().unwrap();
        let expand = |word: &str| {
            let word = word.replace("/etc/", &format!("{root}/")).replace("%t", root).replace("%S", root);
            word.replace("%i", "vm1")
        };
        words.map(expand).inspect(|word| assert!(!word.contains('%'), "{word}")).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("vfio-user-tpm/vm1").join(name)
    }
}

#[test]
fn the_sockets_command_writes_what_a_vmm_reads() {
    let place = Place::new();
    let output = Command::new(PROGRAM).args(place.arguments(&unit(SOCKET), "ExecStartPre")).output().unwrap();
    assert!(output.status.success() && text(&output).is_empty(), "{}", text(&output));
    let json = fs::read_to_string(place.path("tpm.json")).unwrap();
    assert!(json.contains(place.path("socket").to_str().unwrap()), "{json}");
    assert!(place.path("qemu.cfg").exists());
}

/// As the service is started, watched from its first system call on.
#[test]
fn the_services_command_serves_the_socket_and_makes_no_other_system_calls() {
    let place = Place::new();
    let (trace, path) = (place.folder.path().join("trace"), place.folder.path().join("socket"));
    fs::create_dir(place.folder.path().join("vfio-user-tpm")).unwrap();
    fs::write(place.folder.path().join("vfio-user-tpm/vm1.toml"), "interface = 'tis'\n").unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let control = place.folder.path().join("control");
    let questions = UnixListener::bind(&control).unwrap();
    // The one that is not the standard input gets its place from the shell, by a number that nobody else has.
    let inherited = fcntl(&questions, FcntlArg::F_DUPFD(100)).unwrap();
    // strace would be another process than the one that it starts: the shell that becomes the program knows its number.
    let script = format!(
        r#"export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=vfio-user:control
        exec "$@" 3<&0 4<&{inherited} {inherited}<&- </dev/null"#
    );
    let before =
        ["-f", "-qq", "-o", trace.to_str().unwrap(), "bash", "-c", &script, "bash", PROGRAM].map(str::to_owned);
    let args = [&before[..], &place.arguments(&unit(SERVICE), "ExecStart")].concat();
    let log = place.folder.path().join("log");
    let mut process = Process::start_with_input(Path::new("strace"), args, log, OwnedFd::from(listener).into());
    // SAFETY: it was made above, and nobody else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(inherited) });
    let mut tis = Tis::new(RawClient::connect(&path));
    assert_eq!(code_of(&tis.run(&get_random(8))), RC_SUCCESS);
    drop(tis);
    let status = Command::new(PROGRAM).arg("status").arg("--control").arg(&control).output().unwrap();
    assert!(status.status.success(), "{}{}", text(&status), process.output());
    // The server's process is strace's child: the first that the trace names.
    let first = fs::read_to_string(&trace).unwrap();
    let pid = first.split_whitespace().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(process.wait(DEADLINE).unwrap().success(), "{}", process.output());
    assert!(place.path("tpm2.0-permanent.state").exists());

    let trace = fs::read_to_string(trace).unwrap();
    let program = trace.lines().skip_while(|line| !line.contains(&format!(" execve(\"{PROGRAM}\"")));
    let name = |line: &str| {
        let (name, _) = line.split_once(char::is_whitespace)?.1.trim_start().split_once('(')?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        is_name.then(|| name.to_owned())
    };
    let made: BTreeSet<_> = program.filter_map(name).collect();
    assert!(made.contains("landlock_restrict_self") && made.contains("epoll_ctl"), "{made:?}");
    assert_eq!(made.difference(&allowed()).collect::<Vec<_>>(), [""; 0]);
}
