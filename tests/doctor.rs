//! `vfio-user-tpm doctor`: the built program on QEMUs that are none, on folders, sockets, and on all that is well.

mod common;
#[allow(dead_code, reason = "of the kits one is used")]
#[path = "guest/kit.rs"]
mod kit;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::crb::{Crb, Start};
use common::raw_client::RawClient;
use common::server::Server;
use common::tpm_commands::{RC_SUCCESS, code_of, get_random};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

/// What a QEMU that is good enough says.
const GOOD_QEMU: &str = r#"case "$*" in
--version) echo "QEMU emulator version 10.1.2 (Debian 1:10.1.2)" ;;
"-device help") echo 'name "vfio-user-pci", bus PCI, desc "VFIO over socket PCI device assignment"' ;;
"-machine help") echo "q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.1)" ;;
esac"#;

/// A program cannot be started while somebody has it open for writing, and a process that is just being started has a copy
/// of whatever this one has: so one or the other at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder with a QEMU.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self::with_qemu(GOOD_QEMU)
    }

    /// With a script in the place of QEMU.
    fn with_qemu(script: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let _turn = turn();
        fs::write(place.path("qemu"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(place.path("qemu"), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `vfio-user-tpm` here, with arguments divided by spaces.
    #[track_caller]
    fn run(&self, arguments: &str) -> Outcome {
        let mut command = Command::new(PROGRAM);
        command.args(arguments.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let turn = turn();
        let process = command.spawn().unwrap();
        drop(turn);
        let output = process.wait_with_output().unwrap();
        Outcome {
            status: output.status.code().expect("it ends by itself"),
            out: String::from_utf8(output.stdout).unwrap(),
            errors: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs the doctor on the QEMU here.
    #[track_caller]
    fn doctor(&self, arguments: &str) -> Outcome {
        self.run(&format!("doctor --qemu ./qemu {arguments}"))
    }

    /// Makes a key.
    fn key(&self, name: &str, first: u8) {
        fs::write(self.path(name), (first..).take(32).collect::<Vec<u8>>()).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Makes a TPM.
    #[track_caller]
    fn make_tpm(&self, arguments: &str) {
        let made = self.run(&format!("state init --no-certificates {arguments}"));
        assert_eq!(made.status, 0, "{made:?}");
    }

    /// Everything in a folder, with contents and times.
    fn snapshot(&self, name: &str) -> BTreeMap<OsString, (Vec<u8>, i64, i64)> {
        let entries = fs::read_dir(self.path(name)).unwrap().map(|entry| entry.unwrap());
        let snapshot = entries.map(|entry| {
            let metadata = entry.metadata().unwrap();
            (entry.file_name(), (fs::read(entry.path()).unwrap(), metadata.mtime(), metadata.mtime_nsec()))
        });
        snapshot.collect()
    }
}

#[derive(Debug)]
struct Outcome {
    status: i32,
    out: String,
    errors: String,
}

impl Outcome {
    /// What is said of a check, as one text each with the words in front: how bad it is, and the check's name.
    fn findings(&self) -> Vec<String> {
        let mut findings: Vec<String> = Vec::new();
        for line in self.out.lines().filter(|line| !line.is_empty()) {
            match findings.last_mut().filter(|_| line.starts_with(' ')) {
                Some(last) => last.extend([" ", line.trim()]),
                None => findings.push(line.split_whitespace().collect::<Vec<_>>().join(" ")),
            }
        }
        findings
    }

    /// Makes sure that a check has found this, and that the exit status fits.
    #[track_caller]
    fn says(self, front: &str, text: &str) -> Self {
        let findings = self.findings();
        let found = findings.iter().any(|finding| finding.starts_with(front) && finding.contains(text));
        assert!(found, "{front} … {text}: {self:#?}");
        assert_eq!(self.status, i32::from(findings.iter().any(|finding| finding.starts_with("problem "))), "{self:?}");
        self
    }

    #[track_caller]
    fn good(self) -> Self {
        assert!(self.status == 0 && self.errors.is_empty() && self.out.contains("\nNo problems"), "{self:#?}");
        self
    }
}

#[test]
fn where_all_is_well_it_says_so() {
    let place = Place::new();
    let outcome = place.doctor("--state-dir state --socket-path socket").good();
    for (front, text) in [
        ("ok qemu", "version 10.1, with vfio-user-pci, machines q35"),
        ("ok kernel", "Linux "),
        ("ok libtpms", "version 0."),
        ("ok TPM 2.0", "starts in a confined process and answers"),
        ("ok TPM 1.2", "starts in a confined process and answers"),
        ("ok limits", "open descriptors"),
        ("ok state folder", "is not there yet"),
        ("ok socket", "socket, free for a server"),
    ] {
        let findings = outcome.findings();
        assert!(
            findings.iter().any(|finding| finding.starts_with(front) && finding.contains(text)),
            "{front}: {outcome:#?}"
        );
    }
    // It was only looked at.
    assert!(!place.path("state").exists() && !place.path("socket").exists());
}

#[test]
fn the_qemu_of_the_guest_kit_is_good() {
    let qemu = kit::kit().join("qemu-system-x86_64");
    let place = Place::new();
    place
        .run(&format!("doctor --qemu {}", qemu.display()))
        .good()
        .says("ok qemu", "vfio-user-pci, machines q35 and pc");
}

#[test]
fn a_qemu_that_cannot_have_the_tpm_is_a_problem_with_what_to_do() {
    let version = r#"echo "QEMU emulator version 9.2.1""#;
    let without = GOOD_QEMU.replace("vfio-user-pci", "vfio-pci");
    let other = GOOD_QEMU.replace("q35", "sun4u");
    for (script, text) in [
        (version, "QEMU 9.2, and 10.1 is the first"),
        (without.as_str(), "without the device vfio-user-pci"),
        (other.as_str(), "another architecture"),
        ("echo Hello, world", "it says \"Hello, world\""),
        ("echo no libfoo.so >&2; exit 127", "exit status: 127): no libfoo.so"),
        ("while :; do echo QEMU emulator version 10.1.2 and so on and so on; done", "does not stop talking"),
        ("kill -SEGV $$", "signal: 11"),
    ] {
        Place::with_qemu(script).doctor("").says("problem qemu", text);
    }
    Place::new().run("doctor --qemu ./no-such-qemu").says("problem qemu", "there is no ./no-such-qemu");
    Place::new().run("doctor --qemu /etc/passwd").says("problem qemu", "cannot be started");
}

#[test]
fn a_qemu_that_hangs_is_not_waited_for_for_ever() {
    Place::with_qemu("sleep 1000").doctor("--patience 1").says("problem qemu", "has not answered within 1 s");
}

#[test]
fn what_other_programs_say_cannot_play_tricks_on_a_terminal() {
    let place = Place::with_qemu(r"printf '\033[2J\033[31mok       qemu\r\nproblem\007'");
    let outcome = place.doctor("").says("problem qemu", "\\u{1b}[2J");
    assert!(outcome.out.chars().all(|character| character == '\n' || !character.is_control()), "{outcome:?}");
    let json: Value = serde_json::from_str(&place.doctor("--json").out).unwrap();
    assert_eq!((&json["checks"][0]["check"], &json["checks"][0]["level"]), (&"qemu".into(), &"problem".into()));
    assert!(json["checks"][0]["advice"].is_string() && json["problems"].as_u64() > Some(0));
}

#[test]
fn flags_that_make_no_sense_are_bad_usage() {
    let place = Place::new();
    for (arguments, text) in [
        ("--nonsense", "--nonsense"),
        ("--key-file key", "--state-dir"),
        ("--backend swtpm", "--swtpm-ctrl"),
        ("--patience 0", "--patience"),
    ] {
        let outcome = place.doctor(arguments);
        assert!(outcome.status == 2 && outcome.out.is_empty() && outcome.errors.contains(text), "{outcome:?}");
    }
}

#[test]
fn a_state_folder_is_looked_at_and_left_as_it_is() {
    let place = Place::new();
    place.make_tpm("--state-dir state");
    let before = place.snapshot("state");
    place
        .doctor("--state-dir state")
        .good()
        .says("ok state folder", "state, free for a server")
        .says("ok state file", "whole");
    assert_eq!(place.snapshot("state"), before);

    fs::set_permissions(place.path("state"), fs::Permissions::from_mode(0o755)).unwrap();
    place.doctor("--state-dir state").says("warning state folder", "chmod 700");
    fs::create_dir(place.path("state/making")).unwrap();
    place.doctor("--state-dir state").says("warning state folder", "state/making was left");
    fs::remove_dir(place.path("state/making")).unwrap();

    let file = place.path("state/tpm2.0-permanent.state");
    let mut bytes = fs::read(&file).unwrap();
    bytes[200] ^= 1;
    fs::write(&file, bytes).unwrap();
    place.doctor("--state-dir state").says("problem state file", "is refused and left as it is");
}

#[test]
fn a_folder_that_no_server_can_use_is_a_problem() {
    let place = Place::new();
    place.doctor("--state-dir nowhere/state").says("problem state folder", "mkdir -p ");
    fs::write(place.path("file"), "").unwrap();
    place.doctor("--state-dir file").says("problem state folder", "give a folder");
    place.doctor("--state-dir /dev/null").says("problem state folder", "stays in its chip");
    fs::create_dir(place.path("swtpm")).unwrap();
    fs::write(place.path("swtpm/tpm2-00.permall"), "swtpm's").unwrap();
    place.doctor("--state-dir swtpm").says("problem state folder", "state import --from-swtpm");
    place.doctor("--state-dir swtpm --backend swtpm --swtpm-exec").says("ok file system", "swtpm is on ");
    place.make_tpm("--state-dir state");
    place.doctor("--state-dir state --backend swtpm --swtpm-exec").says("problem state folder", "beside which swtpm");
}

#[test]
fn a_key_is_tried() {
    let place = Place::new();
    place.key("key", 1);
    place.key("other-key", 101);
    place.make_tpm("--state-dir state --key-file key");
    let before = place.snapshot("state");
    place.doctor("--state-dir state").says("warning state file", "no key was given");
    place
        .doctor("--state-dir state --key-file key")
        .says("ok state file", "the key fits")
        .says("ok key", "can be read");
    place.doctor("--state-dir state --key-file other-key").says("problem state file", "another key");
    place.doctor("--state-dir state --key-file no-key").says("problem key", "cannot read the key");
    fs::set_permissions(place.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    place.doctor("--state-dir state --key-file key").says("warning key", "chmod 600");
    assert_eq!(place.snapshot("state"), before);
}

#[test]
fn an_older_state_than_the_anchor_knows_is_a_problem() {
    let place = Place::new();
    let state = "--state-dir state --rollback-anchor anchor";
    place.make_tpm("--state-dir state");
    place.doctor(state).says("warning anchor", "the next start makes it");
    assert!(!place.path("anchor").exists());
    let accepted = place.run(&format!("state anchor {state}"));
    assert_eq!(accepted.status, 0, "{accepted:?}");
    place.doctor(state).says("ok anchor", "knows no newer state");
    place.make_tpm("--state-dir other");
    fs::copy(place.path("other/tpm2.0-permanent.state"), place.path("state/tpm2.0-permanent.state")).unwrap();
    let before = fs::read(place.path("anchor")).unwrap();
    place.doctor(state).says("problem anchor", "state anchor --force");
    assert_eq!(fs::read(place.path("anchor")).unwrap(), before);
}

#[test]
fn a_server_that_runs_is_told_of_and_notices_nothing() {
    let place = Place::new();
    let state = place.path("state");
    let args: [OsString; 3] = ["--state-dir".into(), state.clone().into(), "--interface=crb".into()];
    let server = {
        let _turn = turn();
        Server::with_args(&args)
    };
    let socket = server.socket();
    let outcome = place.doctor(&format!("--state-dir {} --socket-path {}", state.display(), socket.display()));
    let outcome = outcome.good().says("ok state folder", &format!("in use by process {}", server.pid()));
    outcome.says("ok socket", "somebody listens").says("ok state file", "whole");
    assert!(!server.log().contains("client"), "{}", server.log());
    let mut guest = Crb::mapped(RawClient::connect(&socket), Start::Register);
    assert_eq!(code_of(&guest.run(&get_random(8))), RC_SUCCESS);
}

#[test]
fn a_path_where_no_server_can_listen_is_a_problem() {
    let place = Place::new();
    place.doctor(&format!("--socket-path {}/s", "x".repeat(110))).says("problem socket", "107 is the most");
    place.doctor("--socket-path nowhere/s").says("problem socket", "mkdir -p nowhere");
    fs::write(place.path("file"), "").unwrap();
    place.doctor("--socket-path file").says("problem socket", "is no socket");
    drop(UnixListener::bind(place.path("stale")).unwrap());
    place.doctor("--socket-path stale").good().says("ok socket", "left by a server that is gone");
    assert!(place.path("stale").exists());
}

#[test]
fn another_tpm_behind_the_registers_is_looked_for() {
    let place = Place::new();
    place.doctor("--backend passthrough --tpm-path ./tpm0").says("problem host's TPM", "./tpm0: ");
    place.doctor("--backend swtpm --swtpm-ctrl control").says("problem swtpm", "control is not there");
    let listener = UnixListener::bind(place.path("control")).unwrap();
    place.doctor("--backend swtpm --swtpm-ctrl control").good().says("ok swtpm", "somebody listens");
    drop(listener);
    let missing = place.doctor("--backend swtpm --swtpm-exec ./swtpm --state-dir state");
    missing.says("problem swtpm", "--swtpm-exec");
}

/// Whoever else than root runs this is not root in the other tests.
#[test]
fn root_can_have_it_for_every_user() {
    if !common::root::can_become_others("root_can_have_it_for_every_user") {
        return;
    }
    let place = Place::new();
    place.make_tpm("--state-dir state");
    fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let turn = turn();
    // The program itself may lie where only root can enter.
    fs::copy(PROGRAM, place.path("program")).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "./program", "doctor", "--qemu", "./qemu"]);
    command.args(["--state-dir", "state", "--socket-path", "socket"]).current_dir(place.0.path());
    let process = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(turn);
    let out = String::from_utf8(process.wait_with_output().unwrap().stdout).unwrap();
    assert!(out.contains("number 65534") && out.contains("ok       TPM 2.0"), "{out}");
    assert!(out.contains("problem  state folder") && out.contains("problem  socket"), "{out}");
}

/// The path is shown by the tests above relative to their folder.
#[test]
fn a_path_in_the_output_is_whole_for_state() {
    let place = Place::new();
    let outcome = place.doctor("--state-dir state");
    let whole = place.path("state");
    assert!(outcome.out.split_whitespace().any(|word| Path::new(word) == whole), "{outcome:?}");
}
