//! TPMs that move between the real swtpm and the built program, there and back.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::process::{Process, until};
use common::raw_client::RawClient;
use common::server::Server;
use common::tis::Tis;
use common::tpm_commands::*;
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// Nothing that is expected takes this long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const NV: u32 = 0x0150_0001;
const OTHER_NV: u32 = 0x0150_0002;
const PERSISTENT: u32 = 0x8100_0001;

/// Something that runs TPM commands.
trait RunsCommands {
    fn run(&mut self, command: &[u8]) -> Vec<u8>;

    #[track_caller]
    fn ok(&mut self, command: &[u8]) -> Vec<u8> {
        let response = self.run(command);
        assert_eq!(code_of(&response), RC_SUCCESS, "{command:02x?}");
        response
    }
}

impl RunsCommands for Tis {
    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        Self::run(self, command)
    }
}

/// The TPM's version in the words of both programs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1_2,
    V2_0,
}

/// A real swtpm, with a connection to its TPM. It is killed when this is dropped.
struct Swtpm {
    process: Process,
    connection: UnixStream,
    version: Version,
    _dir: TempDir,
}

impl Swtpm {
    #[track_caller]
    fn start(version: Version, state: &Path, key: Option<&str>) -> Self {
        Self::start_program(Path::new("swtpm"), version, state, key)
    }

    #[track_caller]
    fn start_program(program: &Path, version: Version, state: &Path, key: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let mut args = vec![
            "socket".to_owned(),
            format!("--tpmstate=dir={}", state.display()),
            format!("--server=type=unixio,path={}", socket.display()),
            "--flags=not-need-init,startup-clear".to_owned(),
        ];
        args.extend((version == Version::V2_0).then(|| "--tpm2".to_owned()));
        args.extend(key.map(|key| format!("--key={key}")));
        let mut process = Process::start(program, args, dir.path().join("log"));
        let connection = until(PATIENCE, || {
            let ended = process.exit_status();
            assert!(ended.is_none(), "swtpm (Debian package swtpm) ended: {ended:?}\n{}", process.output());
            UnixStream::connect(&socket).ok()
        });
        let connection = connection.expect("swtpm listens");
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { process, connection, version, _dir: dir }
    }

    /// Shuts the TPM down as its VM would, and ends swtpm.
    fn stop(mut self) {
        if self.version == Version::V2_0 {
            self.ok(&shutdown_clear());
        }
        self.process.signal(Signal::SIGTERM);
        self.process.wait(PATIENCE).expect("swtpm ends");
    }
}

impl RunsCommands for Swtpm {
    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.connection.write_all(command).unwrap();
        let mut response = vec![0; 10];
        self.connection.read_exact(&mut response).unwrap();
        response.resize(u32_at(&response, 2) as usize, 0);
        self.connection.read_exact(&mut response[10..]).unwrap();
        response
    }
}

/// Gives a TPM 2.0 what is to move with it.
fn furnish(tpm: &mut impl RunsCommands) {
    tpm.ok(&nv_define(NV, 16));
    tpm.ok(&nv_write(NV, b"written in swtpm"));
    let key = tpm.ok(&create_primary_ecc());
    tpm.ok(&evict_control(u32_at(&key, 10), PERSISTENT));
    tpm.ok(&flush(u32_at(&key, 10)));
}

/// What of a TPM 2.0 can be seen: its persistent handles, the key with its name, the hierarchies' keys.
fn view(tpm: &mut impl RunsCommands) -> Vec<Vec<u8>> {
    let primary = tpm.ok(&create_primary_ecc());
    tpm.ok(&flush(u32_at(&primary, 10)));
    // Behind handle and sizes comes the public area. The ticket at the end differs after a TPM2_Clear only.
    vec![tpm.ok(&persistent_handles()), tpm.ok(&read_public(PERSISTENT)), primary]
}

fn folders() -> (TempDir, PathBuf, PathBuf, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let [from, state, to] = ["from", "state", "to"].map(|name| temp.path().join(name));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    (temp, from, state, to)
}

fn state<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vfio-user-tpm")).arg("state").args(args).output().unwrap()
}

fn arguments<'a>(command: &'a str, state: &'a Path, option: &'a str, swtpm: &'a Path) -> [&'a OsStr; 5] {
    [command.as_ref(), "--state-dir".as_ref(), state.as_ref(), option.as_ref(), swtpm.as_ref()]
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{log}");
    log
}

#[track_caller]
fn fails(output: &Output, expected: &str) {
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains(expected), "{log}");
}

/// With how swtpm encrypts its state, if it does.
fn there_and_back(key: Option<&str>) {
    let (_temp, from, folder, to) = folders();
    let mut tpm = Swtpm::start(Version::V2_0, &from, key);
    furnish(&mut tpm);
    let before = view(&mut tpm);
    tpm.stop();
    let key_args: Vec<&OsStr> = key.iter().flat_map(|key| [OsStr::new("--swtpm-key"), OsStr::new(key)]).collect();

    let import = arguments("import", &folder, "--from-swtpm", &from);
    let log = succeeds(&state(import.iter().chain(&key_args)));
    assert!(log.contains("never run both"), "{log}");
    assert!(!log.contains("suspended"), "{log}");

    let server = Server::with_state(&folder);
    let mut tpm = Tis::new(RawClient::connect(&server.socket()));
    assert_eq!(view(&mut tpm), before);
    assert_eq!(nv_data(&tpm.ok(&nv_read(NV, 16))), b"written in swtpm");
    tpm.ok(&nv_write(NV, b"changed with us!"));
    tpm.ok(&nv_define(OTHER_NV, 3));
    tpm.ok(&nv_write(OTHER_NV, b"new"));
    assert!(server.terminate().success());

    let export = arguments("export", &folder, "--to-swtpm", &to);
    succeeds(&state(export.iter().chain(&key_args)));
    let mut tpm = Swtpm::start(Version::V2_0, &to, key);
    assert_eq!(view(&mut tpm), before);
    assert_eq!(nv_data(&tpm.ok(&nv_read(NV, 16))), b"changed with us!");
    assert_eq!(nv_data(&tpm.ok(&nv_read(OTHER_NV, 3))), b"new");
    tpm.stop();
}

#[test]
fn a_tpm_2_0_moves_in_and_out_again() {
    there_and_back(None);
}

#[test]
fn an_encrypted_tpm_moves_in_and_out_again() {
    let keys = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        fs::write(keys.path().join(name), content).unwrap();
        keys.path().join(name).display().to_string()
    };
    let hex = file("hex", b"0x00112233445566778899aabbccddeeff\n");
    let binary = file("binary", b"thirty-two bytes that are random");
    let passphrase = file("passphrase", b"correct horse battery staple\n");
    for key in [
        format!("file={hex}"),
        format!("file={binary},format=binary,mode=aes-256-cbc"),
        format!("pwdfile={passphrase},mode=aes-256-cbc"),
        format!("pwdfile={passphrase},kdf=sha512"),
    ] {
        there_and_back(Some(&key));
    }
}

/// Whether our libtpms is new enough for such a state is not asked here: it stays what it is on its way.
#[test]
fn a_tpm_of_a_newer_swtpm_moves_through_a_state_folder() {
    let [_, program] = common::swtpm::programs() else {
        println!("there is only one swtpm here: run ./test to fetch another");
        return;
    };
    let (temp, from, folder, to) = folders();
    let passphrase = temp.path().join("passphrase");
    fs::write(&passphrase, b"correct horse battery staple\n").unwrap();
    let key = format!("pwdfile={},mode=aes-256-cbc", passphrase.display());
    for key in [None, Some(&*key)] {
        let key_args: Vec<&OsStr> = key.iter().flat_map(|key| [OsStr::new("--swtpm-key"), OsStr::new(key)]).collect();
        let force = OsStr::new("--force");
        let mut tpm = Swtpm::start_program(program, Version::V2_0, &from, key);
        furnish(&mut tpm);
        let before = view(&mut tpm);
        tpm.stop();
        let import = arguments("import", &folder, "--from-swtpm", &from);
        succeeds(&state(import.iter().chain(&key_args).chain([&force])));
        fs::remove_dir_all(&from).unwrap();
        fs::create_dir(&from).unwrap();
        let export = arguments("export", &folder, "--to-swtpm", &to);
        succeeds(&state(export.iter().chain(&key_args).chain([&force])));
        let mut tpm = Swtpm::start_program(program, Version::V2_0, &to, key);
        assert_eq!(view(&mut tpm), before);
        assert_eq!(nv_data(&tpm.ok(&nv_read(NV, 16))), b"written in swtpm");
        tpm.stop();
    }
}

#[test]
fn a_tpm_1_2_moves_in_and_out_again() {
    a_tpm_1_2_there_and_back(None);
}

#[test]
fn an_encrypted_tpm_1_2_moves_in_and_out_again() {
    let keys = tempfile::tempdir().unwrap();
    let file = keys.path().join("key");
    fs::write(&file, b"0x00112233445566778899aabbccddeeff\n").unwrap();
    a_tpm_1_2_there_and_back(Some(&format!("file={}", file.display())));
}

fn a_tpm_1_2_there_and_back(swtpm_key: Option<&str>) {
    const INDEX: u32 = 0x16;
    let (_temp, from, folder, to) = folders();
    let key_args: Vec<&OsStr> = swtpm_key.iter().flat_map(|key| [OsStr::new("--swtpm-key"), OsStr::new(key)]).collect();
    let mut tpm = Swtpm::start(Version::V1_2, &from, swtpm_key);
    tpm.ok(&tpm_1_2::create_endorsement_key([0; 20]));
    tpm.ok(&tpm_1_2::nv_define(INDEX, 16));
    tpm.ok(&tpm_1_2::nv_write(INDEX, b"written in swtpm"));
    let key = tpm.ok(&tpm_1_2::read_pubek([1; 20]));
    tpm.stop();

    succeeds(&state(arguments("import", &folder, "--from-swtpm", &from).iter().chain(&key_args)));
    let server = Server::with_args(&["--state-dir".into(), folder.clone().into(), "--tpm-version=1.2".into()]);
    let mut tpm = Tis::new(RawClient::connect(&server.socket()));
    assert_eq!(tpm.ok(&tpm_1_2::read_pubek([1; 20])), key);
    assert_eq!(tpm_1_2::nv_data(&tpm.ok(&tpm_1_2::nv_read(INDEX, 16))), b"written in swtpm");
    tpm.ok(&tpm_1_2::nv_write(INDEX, b"changed with us!"));
    assert!(server.terminate().success());

    succeeds(&state(arguments("export", &folder, "--to-swtpm", &to).iter().chain(&key_args)));
    let mut tpm = Swtpm::start(Version::V1_2, &to, swtpm_key);
    assert_eq!(tpm.ok(&tpm_1_2::read_pubek([1; 20])), key);
    assert_eq!(tpm_1_2::nv_data(&tpm.ok(&tpm_1_2::nv_read(INDEX, 16))), b"changed with us!");
    tpm.stop();
}

#[test]
fn a_sealed_state_moves_out_with_its_key_and_not_without() {
    let (temp, from, folder, to) = folders();
    let mut tpm = Swtpm::start(Version::V2_0, &from, None);
    furnish(&mut tpm);
    let before = view(&mut tpm);
    tpm.stop();
    let key = temp.path().join("key");
    fs::write(&key, (0..64).collect::<Vec<u8>>()).unwrap();
    let with_key = [OsStr::new("--key-file"), key.as_ref()];
    let import = arguments("import", &folder, "--from-swtpm", &from);
    succeeds(&state(import.iter().chain(&with_key)));
    let export = arguments("export", &folder, "--to-swtpm", &to);
    fails(&state(export), "key");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0, "nothing half-done");
    succeeds(&state(export.iter().chain(&with_key)));
    let mut tpm = Swtpm::start(Version::V2_0, &to, None);
    assert_eq!(view(&mut tpm), before);
}

#[test]
fn a_folder_that_swtpm_uses_is_refused() {
    let (_temp, from, folder, _) = folders();
    let mut tpm = Swtpm::start(Version::V2_0, &from, None);
    tpm.ok(&get_random(1));
    fails(&state(arguments("import", &folder, "--from-swtpm", &from)), "in use");
    assert!(!folder.exists());
    tpm.stop();
    succeeds(&state(arguments("import", &folder, "--from-swtpm", &from)));
    let running = Swtpm::start(Version::V2_0, &from, None);
    fails(&state(arguments("export", &folder, "--to-swtpm", &from)), "in use");
    running.stop();
}

#[test]
fn a_tpm_that_is_there_is_never_replaced_unless_it_is_asked_for() {
    let (_temp, from, folder, _) = folders();
    Swtpm::start(Version::V2_0, &from, None).stop();
    let import = arguments("import", &folder, "--from-swtpm", &from);
    succeeds(&state(import));
    let ours = folder.join("tpm2.0-permanent.state");
    let before = fs::read(&ours).unwrap();
    fails(&state(import), "--force");
    assert_eq!(fs::read(&ours).unwrap(), before);
    let theirs = from.join("tpm2-00.permall");
    let before = fs::read(&theirs).unwrap();
    let export = arguments("export", &folder, "--to-swtpm", &from);
    fails(&state(export), "--force");
    assert_eq!(fs::read(&theirs).unwrap(), before);
    succeeds(&state(import.iter().chain([&OsStr::new("--force")])));
    succeeds(&state(export.iter().chain([&OsStr::new("--force")])));
    assert_eq!(fs::read(&theirs).unwrap(), before, "swtpm would write the same");
}

#[test]
fn the_vm_of_a_folder_with_volatile_state_is_said_to_be_suspended() {
    let (_temp, from, folder, _) = folders();
    Swtpm::start(Version::V2_0, &from, None).stop();
    fs::copy(from.join("tpm2-00.permall"), from.join("tpm2-00.volatilestate")).unwrap();
    let log = succeeds(&state(arguments("import", &folder, "--from-swtpm", &from)));
    assert!(log.contains("suspended"), "{log}");
}

#[test]
fn what_is_no_state_of_swtpms_or_damaged_is_refused() {
    let (_temp, from, folder, _) = folders();
    let import = arguments("import", &folder, "--from-swtpm", &from);
    fails(&state(import), "tpm2-00.permall");
    Swtpm::start(Version::V2_0, &from, None).stop();
    let file = from.join("tpm2-00.permall");
    let good = fs::read(&file).unwrap();
    fs::write(&file, &good[..good.len() - 1]).unwrap();
    fails(&state(import), "cut off");
    fs::write(&file, b"something else altogether").unwrap();
    fails(&state(import), "does not begin like");
    fs::write(&file, &good).unwrap();
    fails(&state(import.iter().chain([&OsStr::new("--swtpm-key"), &OsStr::new("pwdfile=/dev/null")])), "not encrypted");
    assert!(!folder.exists(), "nothing half-done");
}
