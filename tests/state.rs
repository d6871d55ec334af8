//! `vfio-user-tpm state`: the built program on state folders, exported files, keys and rollback anchors.

mod common;

use std::ffi::OsString;
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::root;
use common::server::Server;
use serde_json::Value;
use tempfile::TempDir;
use vfio_user_tpm::state::{Blob, Contents, Key, StateFolder};
use vfio_user_tpm::tpm::TpmVersion;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

/// Large enough that a limit on file sizes hits it and not the lock file.
const SIZE: usize = 100_000;

fn contents(byte: u8) -> Contents {
    let mut contents = Contents::default();
    contents.insert(TpmVersion::V2_0, Blob::Permanent, vec![byte; SIZE]);
    contents.insert(TpmVersion::V2_0, Blob::Volatile, vec![byte; 10]);
    contents
}

/// A folder in which the commands work, with two keys, and with a state of the bytes 1 in `state`.
struct Place(TempDir);

impl Place {
    fn empty() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, first) in [("key", 1), ("other-key", 101)] {
            fs::write(place.path(name), (first..).take(32).collect::<Vec<u8>>()).unwrap();
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        place
    }

    fn plain() -> Self {
        let place = Self::empty();
        place.open("state", None).replace_contents(&contents(1), false).unwrap();
        place
    }

    fn sealed() -> Self {
        let place = Self::empty();
        place.open("state", Some("key")).replace_contents(&contents(1), false).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str, key: Option<&str>) -> OpenFolder {
        let key = key.map(|key| Key::read(&self.path(key)).unwrap());
        let turn = turn();
        OpenFolder { folder: StateFolder::open(&self.path(name)).unwrap().with_key(key), _turn: turn }
    }

    #[track_caller]
    fn holds(&self, name: &str, key: Option<&str>, byte: u8) {
        assert!(self.open(name, key).contents().unwrap() == contents(byte), "{name}");
    }

    /// Runs `vfio-user-tpm state` with arguments divided by spaces.
    fn run(&self, arguments: &str) -> Outcome {
        self.run_under(&[], arguments)
    }

    /// As [`run`](Self::run), started by something else.
    fn run_under(&self, launcher: &[&str], arguments: &str) -> Outcome {
        self.run_line(&[launcher, &[PROGRAM, "state"]].concat(), arguments)
    }

    /// Runs a command with more arguments, divided by spaces.
    fn run_line(&self, command: &[&str], arguments: &str) -> Outcome {
        let line = [command, &arguments.split_whitespace().collect::<Vec<_>>()].concat();
        let (program, arguments) = line.split_first().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let turn = turn();
        let process = command.spawn().unwrap();
        drop(turn);
        let output = process.wait_with_output().unwrap();
        Outcome {
            good: output.status.success(),
            out: String::from_utf8(output.stdout).unwrap(),
            log: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// All files below a folder with their contents.
    fn snapshot(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.path(name)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        files.retain(|(path, _)| !path.ends_with("lock"));
        files.sort();
        files
    }
}

/// A folder that this process has open. Meanwhile no other is started, which would have a copy of its lock until it runs its
/// program.
struct OpenFolder {
    folder: StateFolder,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for OpenFolder {
    type Target = StateFolder;

    fn deref(&self) -> &StateFolder {
        &self.folder
    }
}

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_turn<T>(start: impl FnOnce() -> T) -> T {
    let _turn = turn();
    start()
}

#[derive(Debug)]
struct Outcome {
    good: bool,
    out: String,
    log: String,
}

impl Outcome {
    #[track_caller]
    fn ok(self) -> String {
        assert!(self.good, "{self:?}");
        self.out
    }

    /// It has failed and says all of these.
    #[track_caller]
    fn fails(self, expected: &[&str]) {
        assert!(!self.good, "{self:?}");
        let missing: Vec<_> = expected.iter().filter(|text| !self.log.contains(**text)).collect();
        assert!(missing.is_empty(), "{missing:?}: {}", self.log);
    }
}

#[test]
fn show_tells_what_is_there_without_a_key() {
    let place = Place::sealed();
    let text = place.run("show --state-dir state").ok();
    assert!(text.contains("TPM 2.0 permanent: 100000 bytes, generation 1, sealed, written 2"), "{text}");
    let json: Value = serde_json::from_str(&place.run("show --json --state-dir state").ok()).unwrap();
    assert_eq!(json["blobs"].as_array().unwrap().len(), 2);
    assert_eq!(json["identity"].as_str().unwrap().len(), 32);
    let blob = &json["blobs"][0];
    assert_eq!((&blob["tpm-version"], &blob["blob"]), (&"2.0".into(), &"permanent".into()));
    assert_eq!((&blob["sealed"], &blob["generation"], &blob["payload-bytes"]), (&true.into(), &1.into(), &SIZE.into()));
}

#[test]
fn show_tells_of_damage_and_creates_nothing() {
    let place = Place::plain();
    fs::write(place.path("state/tpm2.0-volatile.state"), b"broken").unwrap();
    let text = place.run("show --state-dir state").ok();
    assert!(text.contains("tpm2.0-volatile.state: the state file") && text.contains("permanent: 100000"), "{text}");
    place.run("show --state-dir nowhere").fails(&["nowhere"]);
    assert!(!place.path("nowhere").exists());
}

#[test]
fn verify_finds_every_change() {
    for (place, key) in [(Place::plain(), ""), (Place::sealed(), "--key-file key")] {
        place.run(&format!("verify --state-dir state {key}")).ok();
        place.run(&format!("export --state-dir state {key} exported")).ok();
        place.run(&format!("verify {key} exported")).ok();
        for name in ["state/tpm2.0-permanent.state", "exported"] {
            let what = if name == "exported" { name } else { "--state-dir state" };
            let good = fs::read(place.path(name)).unwrap();
            // The formats' own tests change every bit.
            for position in [0, 12, 30, 60, 100, 130, 50_000, good.len() - 1] {
                let mut bad = good.clone();
                bad[position] ^= 1;
                fs::write(place.path(name), &bad).unwrap();
                place.run(&format!("verify {key} {what}")).fails(&["refused"]);
                // Damage is found without the key too.
                place.run(&format!("verify {what}")).fails(&["refused"]);
            }
            fs::write(place.path(name), &good[..good.len() / 2]).unwrap();
            place.run(&format!("verify {key} {what}")).fails(&["cut off"]);
            fs::write(place.path(name), &good).unwrap();
        }
    }
}

#[test]
fn verify_needs_the_right_key_to_try_a_seal_and_says_if_it_has_none() {
    let place = Place::sealed();
    let text = place.run("verify --state-dir state").ok();
    assert!(text.contains("no key was given"), "{text}");
    place.run("verify --state-dir state --key-file other-key").fails(&["another key"]);
    Place::plain().run("verify --state-dir state --key-file key").fails(&["not sealed", "state rekey"]);
    Place::empty().run("verify --state-dir .").fails(&["no state"]);
    let place = Place::plain();
    place.run("verify --state-dir state --rollback-anchor mistyped").fails(&["mistyped is not there"]);
    assert!(!place.path("mistyped").exists());
}

#[test]
fn a_state_goes_through_a_file_and_stays_what_it_was() {
    for (place, key, flag) in [(Place::plain(), None, ""), (Place::sealed(), Some("key"), "--key-file key")] {
        place.run("export --state-dir state exported").ok();
        assert_eq!(fs::metadata(place.path("exported")).unwrap().permissions().mode() & 0o777, 0o600);
        place.run(&format!("import --state-dir new {flag} exported")).ok();
        place.holds("new", key, 1);
        let names =
            |name| place.snapshot(name).into_iter().map(|(path, bytes)| (path.file_name().unwrap().to_owned(), bytes));
        assert!(names("state").eq(names("new")));
    }
}

#[test]
fn nothing_is_replaced_without_force() {
    let place = Place::plain();
    place.run("export --state-dir state exported").ok();
    let exported = fs::read(place.path("exported")).unwrap();
    place.open("other", None).replace_contents(&contents(2), false).unwrap();
    place.run("export --state-dir other exported").fails(&["--force"]);
    assert_eq!(fs::read(place.path("exported")).unwrap(), exported);
    place.run("import --state-dir other exported").fails(&["--force", "nothing was changed"]);
    place.holds("other", None, 2);
    place.run("import --state-dir other --force exported").ok();
    place.holds("other", None, 1);
    place.run("export --state-dir other --force exported").ok();
}

#[test]
fn an_import_that_cannot_be_checked_writes_nothing() {
    let place = Place::sealed();
    place.run("export --state-dir state exported").ok();
    place.run("import --state-dir new exported").fails(&["--key-file"]);
    place.run("import --state-dir new --key-file other-key exported").fails(&["another key"]);
    let mut bad = fs::read(place.path("exported")).unwrap();
    bad[SIZE / 2] ^= 1;
    fs::write(place.path("exported"), bad).unwrap();
    place.run("import --state-dir new --key-file key exported").fails(&["damaged"]);
    assert!(place.snapshot("new").is_empty());
    let plain = Place::plain();
    plain.run("export --state-dir state exported").ok();
    plain.run("import --state-dir new --key-file key exported").fails(&["not sealed"]);
    plain.run("import --state-dir new nothing").fails(&["nothing"]);
    plain.run("import --state-dir new /dev/zero").fails(&["larger"]);
}

#[test]
fn keys_change_and_the_old_one_then_opens_nothing() {
    let place = Place::plain();
    place.run("rekey --state-dir state --new-key-file key").ok();
    place.holds("state", Some("key"), 1);
    place.run("rekey --state-dir state --new-key-file other-key").fails(&["--key-file"]);
    place.run("rekey --state-dir state --key-file key --new-key-file other-key").ok();
    place.holds("state", Some("other-key"), 1);
    place.run("verify --state-dir state --key-file key").fails(&["another key"]);
    // As after an interruption: what is done is no error.
    place.run("rekey --state-dir state --key-file key --new-key-file other-key").ok();
    place.run("rekey --state-dir state --key-file other-key --plain").ok();
    place.holds("state", None, 1);
}

#[test]
fn keys_come_by_descriptor_too() {
    let place = Place::sealed();
    let launcher = ["/bin/sh", "-c", r#"exec "$@" 3<key 4<other-key"#, "sh"];
    place.run_under(&launcher, "rekey --state-dir state --key-fd 3 --new-key-fd 4").ok();
    place.holds("state", Some("other-key"), 1);
    place.run_under(&launcher, "verify --state-dir state --key-fd 4").ok();
    place.run("verify --state-dir state --key-fd 9").fails(&["--key-fd=9", "inherited"]);
    place.run_under(&launcher, "rekey --state-dir state --key-fd 4 --new-key-fd 4").fails(&["same descriptor"]);
}

#[test]
fn a_bad_key_says_how_to_make_a_good_one() {
    let place = Place::sealed();
    fs::write(place.path("short"), b"a passphrase").unwrap();
    place.run("verify --state-dir state --key-file short").fails(&["/dev/urandom", "12 bytes"]);
    place.run("verify --state-dir state --key-file nowhere").fails(&["nowhere"]);
    fs::set_permissions(place.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let outcome = place.run("verify --state-dir state --key-file key");
    assert!(outcome.good && outcome.log.contains("chmod 600"), "{outcome:?}");
}

#[test]
fn what_root_does_in_a_services_folder_is_the_services() {
    const USER: u32 = 1234;
    if !root::can_become_others("what_root_does_in_a_services_folder_is_the_services") {
        return;
    }
    let place = Place::plain();
    // The program itself may lie where only root can enter.
    fs::copy(PROGRAM, place.path("program")).unwrap();
    fs::remove_file(place.path("state/lock")).unwrap();
    fs::create_dir(place.path("anchors")).unwrap();
    let entries =
        ["state", "anchors"].map(|name| fs::read_dir(place.path(name)).unwrap().map(|file| file.unwrap().path()));
    let of_root = ["", "program", "key", "other-key", "state", "anchors"].map(|name| place.path(name));
    for path in of_root.into_iter().chain(entries.into_iter().flatten()) {
        chown(path, Some(USER), Some(USER + 1)).unwrap();
    }
    let user = ["setpriv", "--reuid=1234", "--regid=1235", "--clear-groups", "--", "./program", "state"];
    let anchored = "--state-dir state --rollback-anchor anchors/anchor";
    for (as_root, key) in [
        (format!("anchor {anchored}"), ""),
        (format!("rekey {anchored} --new-key-file key"), "--key-file key"),
        (format!("anchor {anchored} --key-file key --force"), "--key-file key"),
        (format!("rekey {anchored} --key-file key --plain"), ""),
        ("export --state-dir state exported".to_owned(), ""),
        (format!("import {anchored} --force exported"), ""),
    ] {
        place.run(&as_root).ok();
        for folder in ["state", "anchors"] {
            for file in fs::read_dir(place.path(folder)).unwrap().map(|file| file.unwrap()) {
                let metadata = file.metadata().unwrap();
                let owner = (metadata.uid(), metadata.gid(), metadata.mode() & 0o777);
                assert_eq!(owner, (USER, USER + 1, 0o600), "{as_root}: {}", file.path().display());
            }
        }
        place.run_line(&user, &format!("verify {anchored} {key}")).ok();
    }
    // A copy of its secrets is root's, wherever it lies.
    assert_eq!(fs::metadata(place.path("exported")).unwrap().uid(), 0);
}

#[test]
fn a_rollback_is_refused_until_it_is_accepted_on_purpose() {
    for (place, key, flag) in [(Place::plain(), None, ""), (Place::sealed(), Some("key"), "--key-file key")] {
        let anchored = format!("--state-dir state --rollback-anchor anchor {flag}");
        place.run(&format!("anchor {anchored}")).ok();
        place.run(&format!("export {anchored} old")).ok();
        place.open("state", key).store(TpmVersion::V2_0, Blob::Permanent, &vec![2; SIZE]).unwrap();
        place.run(&format!("anchor {anchored}")).ok();
        place.run(&format!("verify {anchored}")).ok();
        // The old state, put back behind the anchor's back.
        place.run(&format!("import --force --state-dir state {flag} old")).ok();
        let before = place.snapshot("state");
        for command in ["verify", "anchor"] {
            place.run(&format!("{command} {anchored}")).fails(&["generation 1", "seen generation 2", "--force"]);
        }
        place.run(&format!("export {anchored} again")).fails(&["--force"]);
        assert_eq!(place.snapshot("state"), before);
        place.run(&format!("anchor --force {anchored}")).ok();
        place.run(&format!("verify {anchored}")).ok();
    }
}

#[test]
fn an_import_answers_to_the_anchor_too() {
    let place = Place::plain();
    let anchored = "--state-dir state --rollback-anchor anchor";
    place.run(&format!("anchor {anchored}")).ok();
    place.run("export --state-dir state old").ok();
    place.open("state", None).store(TpmVersion::V2_0, Blob::Permanent, &vec![2; SIZE]).unwrap();
    place.run(&format!("anchor {anchored}")).ok();
    place.run("export --state-dir state newest").ok();
    fs::remove_dir_all(place.path("state")).unwrap();

    place.run(&format!("import {anchored} old")).fails(&["generation"]);
    place.run(&format!("import {anchored} newest")).ok();
    place.run(&format!("import --force {anchored} old")).ok();
    place.run(&format!("verify {anchored}")).ok();
}

#[test]
fn a_wrong_key_makes_no_anchor() {
    let place = Place::sealed();
    let anchored = "--state-dir state --rollback-anchor anchor";
    for (key, expected) in [("--key-file other-key", "another key"), ("", "no key was given")] {
        place.run(&format!("anchor {anchored} {key}")).fails(&[expected]);
        assert!(!place.path("anchor").exists());
    }
    place.run(&format!("anchor {anchored} --key-file key")).ok();
    place.run(&format!("verify {anchored} --key-file key")).ok();
}

#[test]
fn a_new_tpm_gets_an_anchor_of_its_own() {
    let place = Place::plain();
    place.run("anchor --state-dir state --rollback-anchor anchor").ok();
    place.run("init --state-dir new --ca-dir ca --rollback-anchor anchor").fails(&["an anchor of its own"]);
    assert!(!place.path("new").exists() && !place.path("ca").exists());
    place.run("init --state-dir new --no-certificates --rollback-anchor new-anchor").ok();
    place.run("verify --state-dir new --rollback-anchor new-anchor").ok();
}

#[test]
fn an_exported_file_has_no_anchor_to_be_held_against() {
    let place = Place::plain();
    place.run("export --state-dir state file").ok();
    place.run("verify file --rollback-anchor anchor").fails(&["--rollback-anchor", "--state-dir"]);
    assert!(!place.path("anchor").exists());
}

#[test]
fn a_key_change_takes_the_anchor_along() {
    let place = Place::sealed();
    place.run("anchor --state-dir state --key-file key --rollback-anchor anchor").ok();
    place.run("rekey --state-dir state --key-file key --new-key-file other-key --rollback-anchor anchor").ok();
    place.run("verify --state-dir state --key-file other-key --rollback-anchor anchor").ok();
    // Forgotten at the next change, it is told, and the same again makes up for it.
    place.run("rekey --state-dir state --key-file other-key --new-key-file key").ok();
    place.run("verify --state-dir state --key-file key --rollback-anchor anchor").fails(&["rekey", "another key"]);
    place.run("rekey --state-dir state --key-file other-key --new-key-file key --rollback-anchor anchor").ok();
    place.run("verify --state-dir state --key-file key --rollback-anchor anchor").ok();
}

#[test]
fn a_folder_in_use_is_told_with_its_holder_and_not_worked_on() {
    let place = Place::plain();
    place.run("export --state-dir state exported").ok();
    let _folder = StateFolder::open(&place.path("state")).unwrap();
    let holder = format!("process {}", std::process::id());
    for command in [
        "show --state-dir state",
        "verify --state-dir state",
        "export --state-dir state --force exported",
        "import --state-dir state --force exported",
        "rekey --state-dir state --new-key-file key",
        "anchor --state-dir state --rollback-anchor anchor",
    ] {
        place.run(command).fails(&[&holder]);
    }
}

/// A limit on the size of files in the place of a full disk; the signal that comes with it is ignored.
const FULL: [&str; 4] = ["/bin/sh", "-c", r#"trap "" XFSZ; ulimit -f 20; exec "$@""#, "sh"];

#[test]
fn what_has_no_room_changes_nothing_and_leaves_nothing() {
    let place = Place::plain();
    place.run("export --state-dir state exported").ok();
    place.open("other", None).replace_contents(&contents(2), false).unwrap();
    place.run_under(&FULL, "import --state-dir other --force exported").fails(&["cannot write"]);
    place.run_under(&FULL, "rekey --state-dir state --new-key-file key").fails(&["cannot write"]);
    place.run_under(&FULL, "export --state-dir state second").fails(&["cannot write"]);
    place.holds("other", None, 2);
    place.holds("state", None, 1);
    assert_eq!((place.snapshot("other").len(), place.snapshot("state").len()), (2, 2));
    assert!(!place.path("second").exists());
    place.run("import --state-dir other --force exported").ok();
    place.holds("other", None, 1);
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_and_stays() {
    let place = Place::plain();
    place.run("export --state-dir state exported").ok();
    // Root may write anywhere, unless it has none of root's powers.
    let root = nix::unistd::geteuid().is_root();
    let launcher: &[&str] = if root { &["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"] } else { &[] };
    let before = place.snapshot("state");
    fs::set_permissions(place.path("state"), fs::Permissions::from_mode(0o500)).unwrap();
    place.run_under(launcher, "import --state-dir state --force exported").fails(&["cannot write", "still there"]);
    place.run_under(launcher, "rekey --state-dir state --new-key-file key").fails(&["cannot write"]);
    place.run_under(launcher, "anchor --state-dir state --rollback-anchor state/anchor").fails(&["cannot open"]);
    place.run_under(launcher, "import --state-dir state/new exported").fails(&["cannot open the state folder"]);
    fs::set_permissions(place.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(place.snapshot("state"), before);
}

/// The same limit kills by its signal.
const KILLED: [&str; 4] = ["/bin/sh", "-c", r#"ulimit -c 0; ulimit -f 20; exec "$@""#, "sh"];

/// Wherever it hits, the state is whole.
#[test]
fn what_dies_in_the_middle_changes_nothing() {
    let place = Place::plain();
    place.run("export --state-dir state exported").ok();
    place.open("other", None).replace_contents(&contents(2), false).unwrap();
    assert!(!place.run_under(&KILLED, "import --state-dir other --force exported").good);
    assert!(!place.run_under(&KILLED, "rekey --state-dir state --new-key-file key").good);
    place.holds("other", None, 2);
    place.holds("state", None, 1);
    place.run("import --state-dir other --force exported").ok();
    place.holds("other", None, 1);
}

#[test]
fn a_tpm_that_was_half_made_is_told_of_with_what_to_do() {
    let place = Place::plain();
    let making = place.path("state/making");
    fs::create_dir(&making).unwrap();
    let told = |log: &str, times| assert_eq!(log.matches("state/making was left").count(), times, "{log}");
    for command in ["show --state-dir state", "verify --state-dir state", "export --state-dir state exported"] {
        told(&place.run(command).log, 1);
    }
    // Its TPM is none, but that it finds out later.
    let (_, log) = in_turn(|| Server::fail(&["--state-dir".into(), place.path("state").into()]));
    told(&log, 1);
    fs::remove_dir(&making).unwrap();
    told(&place.run("show --state-dir state").log, 0);
    // Who makes one clears it away.
    fs::create_dir_all(place.path("new/making")).unwrap();
    told(&place.run("clone --state-dir state new").log, 0);
    assert!(!place.path("new/making").exists());
}

#[test]
fn a_half_written_export_is_told_of_with_what_to_do() {
    let place = Place::plain();
    assert!(!place.run_under(&KILLED, "export --state-dir state exported").good);
    for name in [".exported.new", ".exported.1a.new", ".other.1.new", "exported.1.new"] {
        fs::write(place.path(name), "somebody's").unwrap();
    }
    for command in ["export --state-dir state exported", "verify exported", "import --state-dir new exported"] {
        let outcome = place.run(command);
        assert!(outcome.good && outcome.log.contains("exported."), "{command}: {outcome:?}");
        assert_eq!(outcome.log.matches(".new was left").count(), 1, "{outcome:?}");
    }
}

#[test]
fn the_server_keeps_a_sealed_state_with_an_anchor() {
    let place = Place::empty();
    let arguments = |key: &str| -> Vec<OsString> {
        [("--state-dir", "state"), ("--key-file", key), ("--rollback-anchor", "anchor")]
            .into_iter()
            .flat_map(|(flag, name)| [flag.into(), place.path(name).into()])
            .collect()
    };
    assert!(in_turn(|| Server::with_args(&arguments("key"))).terminate().success());
    place.run("verify --state-dir state --key-file key --rollback-anchor anchor").ok();
    let before = place.snapshot("state");
    let (status, log) = in_turn(|| Server::fail(&arguments("other-key")));
    assert!(!status.success() && log.contains("another key"), "{log}");
    let (_, log) = in_turn(|| Server::fail(&arguments("key")[..2]));
    assert!(log.contains("--key-file"), "{log}");
    let (_, log) = in_turn(|| Server::fail(&arguments("key")[2..]));
    assert!(log.contains("--state-dir"), "{log}");
    assert_eq!(place.snapshot("state"), before);
    assert!(in_turn(|| Server::with_args(&arguments("key"))).terminate().success());
}

#[test]
fn the_server_refuses_a_folder_of_an_swtpm() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tpm2-00.permall"), b"swtpm's").unwrap();
    let (status, log) = in_turn(|| Server::fail(&["--state-dir".into(), folder.path().into()]));
    assert!(!status.success() && log.contains("state import --from-swtpm"), "{log}");
    assert!(!folder.path().join("tpm2.0-permanent.state").exists());
}
