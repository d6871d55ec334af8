//! The program as it is built, measuring a launch: the PCRs of its TPM have the values that `log expect` prints, after
//! each reset, whatever has become of the files.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use common::hex;
use common::raw_client::RawClient;
use common::server::Server;
use common::swtpm::programs;
use common::tis::{BAR0, Tis};
use common::tpm_commands::*;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

/// Where the log's area is.
const LOG: u64 = 0x1_0000;

/// Files to launch.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for (name, size) in [("vmlinuz", 300_000), ("initrd", 100_001), ("OVMF.fd", 70_000), ("config", 9)] {
            fs::write(files.path(name), vec![name.as_bytes()[0]; size]).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn flags(&self, more: &[&str]) -> Vec<OsString> {
        let file = |what: &str, name| format!("--measure={what}={}", self.path(name).display());
        let files = [
            file("kernel", "vmlinuz"),
            file("initrd", "initrd"),
            file("firmware", "OVMF.fd"),
            file("file:1", "config"),
        ];
        let cmdline = "--measure=cmdline=root=/dev/vda ro".to_owned();
        files.into_iter().chain([cmdline]).map(OsString::from).chain(more.iter().map(OsString::from)).collect()
    }
}

/// The values that `log expect` prints for these flags.
fn expected(flags: &[OsString]) -> BTreeMap<u32, String> {
    by_bank(&[&["log", "expect", "--json"].map(OsString::from)[..], flags].concat())
}

/// The values of SHA-256 that the program prints.
fn by_bank(arguments: &[OsString]) -> BTreeMap<u32, String> {
    let output = Command::new(PROGRAM).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(json["sha256"].clone()).unwrap()
}

/// Those of the PCRs 0 to 15 that a TPM has, without those that are as at power-on.
fn values(tis: &mut Tis) -> BTreeMap<u32, String> {
    let value = |pcr| (pcr, hex(digest_of(&tis.run(&pcr_read(pcr)))));
    (0..16).map(value).filter(|(_, value)| value.bytes().any(|digit| digit != b'0')).collect()
}

/// What the guest finds in the log's area, as `log replay` understands it.
fn replayed(tis: &mut Tis, folder: &Path) -> BTreeMap<u32, String> {
    let page = |page: u64| tis.client.region_read(BAR0, LOG + page * 4096, 4096);
    let log = folder.join("log");
    fs::write(&log, (0..16).flat_map(page).collect::<Vec<u8>>()).unwrap();
    by_bank(&["log", "replay", "--json", log.to_str().unwrap()].map(OsString::from))
}

fn backends(state: &Path) -> Vec<Vec<OsString>> {
    let owned = |(number, program): (usize, &PathBuf)| {
        let folder = state.join(number.to_string());
        vec!["--backend=swtpm".into(), "--swtpm-exec".into(), program.into(), "--state-dir".into(), folder.into()]
    };
    std::iter::once(vec![]).chain(programs().iter().enumerate().map(owned)).collect()
}

#[test]
fn the_tpm_has_the_values_that_are_expected_after_each_reset() {
    for more in [&[][..], &["--measure-hcrtm"]] {
        let state = tempfile::tempdir().unwrap();
        for (number, backend) in backends(state.path()).into_iter().enumerate() {
            let files = Files::new();
            let flags = files.flags(more);
            let expected = expected(&flags);
            assert_eq!(expected.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 11]);
            let server = Server::with_args(&[backend, flags].concat());
            let mut tis = Tis::new(RawClient::connect(&server.socket()));
            assert_eq!(values(&mut tis), expected, "backend {number}, {more:?}");
            assert_eq!(replayed(&mut tis, state.path()), expected);
            tis.client.region_write(BAR0, LOG, b"the guest's");
            // What happens to the files now is nothing to the TPM.
            fs::write(files.path("vmlinuz"), "another").unwrap();
            fs::remove_file(files.path("initrd")).unwrap();
            assert_eq!(code_of(&tis.run(&pcr_extend(11, [7; 32]))), RC_SUCCESS);
            assert_ne!(values(&mut tis), expected);
            tis.reset();
            tis.take_locality(0);
            assert_eq!(values(&mut tis), expected, "backend {number} after a reset, {more:?}");
            assert_eq!(replayed(&mut tis, state.path()), expected);
            // The hierarchy is closed behind it.
            assert_ne!(code_of(&tis.run(&clear_by_platform())), RC_SUCCESS);
            let begin = Instant::now();
            for _ in 0..10 {
                tis.reset();
                tis.take_locality(0);
                tis.run(&pcr_read(0));
            }
            println!("backend {number}, {more:?}: a reset takes {:?}", begin.elapsed() / 10);
        }
    }
}

#[test]
fn a_tpm_that_nobody_used_is_left_as_it_is() {
    let files = Files::new();
    let flags = files.flags(&[]);
    let server = Server::with_args(&flags);
    let mut tis = Tis::new(RawClient::connect(&server.socket()));
    let boots = |tis: &mut Tis| reset_count(&tis.run(&read_clock()));
    let before = boots(&mut tis);
    for _ in 0..3 {
        tis.reset();
    }
    tis.take_locality(0);
    assert_eq!(boots(&mut tis), before + 1);
    assert_eq!(values(&mut tis), expected(&flags));
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is_served() {
    let files = Files::new();
    let missing = format!("--measure=kernel={}", files.path("missing").display());
    // A file may be there the next time; what contradicts itself stays a wrong command line.
    for (args, code, expected) in [
        (vec![missing.as_str()], Some(1), "cannot read"),
        (vec!["--measure=auto"], None, "for `run`"),
        (vec!["--measure=cmdline=quiet", "--measure-hcrtm"], None, "add firmware=PATH"),
        (vec!["--measure=cmdline=quiet", "--tpm-version=1.2"], Some(2), "TPM 2.0"),
        (vec!["--measure=cmdline=quiet", "--startup=none"], Some(2), "firmware"),
    ] {
        let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        let (status, log) = Server::fail(&args);
        assert!(!status.success() && log.contains(expected), "{args:?}: {log}");
        assert!(code.is_none() || status.code() == code, "{args:?}: {status}");
    }
}

/// More names than there is room for in a log.
#[test]
fn a_launch_whose_log_has_no_room_is_not_served() {
    let files = Files::new();
    let name = "n".repeat(250);
    fs::write(files.path(&name), "x").unwrap();
    let file = OsString::from(format!("--measure=file:9={}", files.path(&name).display()));
    let (status, log) = Server::fail(&vec![file; 200]);
    assert!(status.code() == Some(1) && log.contains("measure fewer files"), "{log}");
}
