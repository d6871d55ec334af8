//! `vfio-user-tpm log`, and what it says against what others say: real firmware's logs with the PCR values of the TPM that
//! they were extended in, `tpm2_eventlog`, systemd-measure, and a TPM.
//!
//! `event_logs/` has what Linux 7.3 shows as `binary_bios_measurements` under QEMU 11.1 with its own TPM device and swtpm
//! 0.7.1, with OVMF 2025.02 and SeaBIOS 1.17.0, and beside each log the PCRs 0 to 15 of the bank SHA-256 (of a TPM 1.2
//! SHA-1), without PCR 10, which is Linux' own (IMA).

mod common;
#[path = "guest/kit.rs"]
mod kit;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::hex;
use common::swtpm::{Client, Listening, programs};
use common::tpm_commands::*;
use serde_json::Value;
use tempfile::TempDir;
use vfio_user_tpm::backend::swtpm::control::Request;
use vfio_user_tpm::measure::launch::{Launch, Source};
use vfio_user_tpm::measure::replay::replay;
use vfio_user_tpm::pcr_bank::PcrBank;
use vfio_user_tpm::tpm::TpmVersion;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");

/// Values by the index of their PCR.
type Values = BTreeMap<u32, String>;

/// A folder with files that a launch could consist of.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, size) in [("vmlinuz", 3_000_000), ("initrd", 1_000_001), ("OVMF.fd", 700_000), ("config", 0)] {
            let content: Vec<u8> = (0..=250).cycle().take(size).collect();
            fs::write(place.path(name), content).unwrap();
        }
        fs::write(place.path("cmdline"), "root=/dev/vda ro quiet").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `vfio-user-tpm log` in that folder.
    fn log(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM)
            .arg("log")
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.log(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], expected: &str) {
        let output = self.log(arguments);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && log.contains(expected), "{arguments:?}: {log}");
    }
}

const LINUX: [&str; 6] =
    ["--measure", "initrd=initrd", "--measure", "kernel=vmlinuz", "--measure", "cmdline=root=/dev/vda ro quiet"];
const ALL: [&str; 8] = [
    "--measure",
    "firmware=OVMF.fd",
    "--measure",
    "file:1=config",
    "--measure",
    "file:2=initrd",
    "--measure",
    "file:14=config",
];

/// Values by bank.
fn banks(json: &Value) -> BTreeMap<String, Values> {
    serde_json::from_value(json.clone()).unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/event_logs").join(name)
}

#[test]
fn logs_of_real_firmware_imply_what_their_tpm_had() {
    let place = Place::new();
    for (name, bank, extended) in
        [("ovmf-tpm-2.0", "sha256", 9), ("seabios-tpm-2.0", "sha256", 8), ("seabios-tpm-1.2", "sha1", 8)]
    {
        let log = fixture(&format!("{name}.log"));
        let replayed = banks(&place.json(&["replay", "--json", log.to_str().unwrap()]));
        let pcrs = fs::read_to_string(fixture(&format!("{name}.pcrs"))).unwrap();
        let values = &replayed[bank];
        assert_eq!(values.len(), extended, "{name}");
        for line in pcrs.lines() {
            let (pcr, value) = line.split_once(' ').unwrap();
            match values.get(&pcr.parse().unwrap()) {
                Some(replayed) => assert_eq!(replayed, value, "{name}: PCR {pcr}"),
                None => assert_eq!(value, "0".repeat(value.len()), "{name}: PCR {pcr}"),
            }
        }
    }
}

#[test]
fn a_real_log_is_shown_with_names_and_texts() {
    let place = Place::new();
    let log = fixture("ovmf-tpm-2.0.log");
    let output = place.log(&["show", log.to_str().unwrap()]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "format crypto-agile 2.0 errata 0, banks sha1, sha256, sha384, sha512\n",
        "event 1: PCR 0, EV_S_CRTM_VERSION, 36 bytes: \"2025.02-8+deb13u1\"\n",
        "PCR 0, EV_EFI_PLATFORM_FIRMWARE_BLOB, 16 bytes: 917504 bytes at 0x820000\n",
        "EV_EFI_VARIABLE_DRIVER_CONFIG, 52 bytes: variable \"SecureBoot\" of 8be4df61-93ca-11d2-aa0d-00e098032b8c: empty\n",
        "PCR 5, EV_EFI_ACTION, 29 bytes: \"Exit Boot Services Invocation\"\n",
        "PCR 9, EV_EVENT_TAG, 34 bytes: tag 0x8f3b22ed: \"LOADED_IMAGE::LoadOptions\"\n",
    ] {
        assert!(text.contains(expected), "{expected}{text}");
    }
    let shown = place.json(&["show", "--json", log.to_str().unwrap()]);
    assert_eq!(shown["events"].as_array().unwrap().len(), 29);
    assert_eq!(shown["events"][18]["type"], "EV_SEPARATOR");
    assert_eq!(shown["events"][18]["data"], "00000000");
    assert_eq!(shown["events"][18]["digests"]["sha1"], "9069ca78e7450a285173431b3e52c5c25299e473");
}

/// The values that tpm2-tools computes: those of the guest kit, which know the H-CRTM.
fn by_tpm2_eventlog(log: &Path) -> BTreeMap<String, Values> {
    let root = kit::kit().join("root/usr");
    let output = Command::new(root.join("lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(root.join("lib/x86_64-linux-gnu"))
        .arg(root.join("bin/tpm2"))
        .arg("eventlog")
        .arg(log)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut banks = BTreeMap::new();
    let mut bank = String::new();
    for line in text.lines().skip_while(|line| *line != "pcrs:").skip(1) {
        match line.trim().split_once(':').unwrap() {
            (name, "") => name.clone_into(&mut bank),
            (pcr, value) => {
                let value = value.trim().strip_prefix("0x").unwrap().to_owned();
                let values: &mut Values = banks.entry(bank.clone()).or_default();
                values.insert(pcr.trim().parse().unwrap(), value);
            }
        }
    }
    banks
}

#[test]
fn tpm2_eventlog_reads_our_log_and_computes_the_same() {
    let place = Place::new();
    for (more, only) in [(&[][..], &[][..]), (&["--measure-hcrtm"], &["--bank", "sha256,sha384"])] {
        let arguments = [&["expect", "--json", "--log", "log", "--force"][..], &LINUX, &ALL, more, only].concat();
        let expected = banks(&place.json(&arguments));
        assert_eq!(by_tpm2_eventlog(&place.path("log")), expected);
        assert_eq!(banks(&place.json(&["replay", "--json", "log"])), expected);
        assert_eq!(expected.len(), if only.is_empty() { 4 } else { 2 });
        let pcrs: Vec<_> = expected["sha256"].keys().copied().collect();
        assert_eq!(pcrs, [0, 1, 2, 3, 4, 5, 6, 7, 11, 14]);
    }
}

#[test]
fn systemd_measure_calculates_the_same_pcr_11() {
    let place = Place::new();
    let expected = banks(&place.json(&[&["expect", "--json"][..], &LINUX].concat()));
    let programs = ["/usr/lib/systemd/systemd-measure", "/lib/systemd/systemd-measure"];
    let program = programs.iter().find(|program| Path::new(program).exists()).expect("systemd-measure (systemd)");
    let output = Command::new(program)
        .args(["calculate", "--phase=:", "--json=short", "--linux=vmlinuz", "--initrd=initrd", "--cmdline=cmdline"])
        .current_dir(place.0.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calculated: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (bank, values) in expected {
        assert_eq!(calculated[&bank][0]["pcr"], 11);
        assert_eq!(calculated[&bank][0]["hash"], values[&11], "{bank}");
    }
}

/// The hash sequence and the commands of a launch on a TPM give the values that its log implies.
#[test]
fn a_tpm_has_the_values_that_are_expected() {
    let place = Place::new();
    let cmdline = "cmdline=quiet".to_owned();
    let path = |word: &str, name: &str| format!("{word}={}", place.path(name).display());
    let sources = [cmdline, path("kernel", "vmlinuz"), path("firmware", "OVMF.fd"), path("file:5", "config")];
    let sources = sources.map(|source| Source::parse(source.as_ref()).unwrap());
    for (hcrtm, program) in [false, true].into_iter().flat_map(|hcrtm| programs().iter().map(move |it| (hcrtm, it))) {
        let launch = Launch::measure(&sources, hcrtm).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let swtpm = Listening::start(program, TpmVersion::V2_0, folder.path(), &[]);
        let mut client = Client::connect(&swtpm.control());
        client.set_data_channel();
        client.done(Request::Init { delete_volatile: false });
        if let Some(hashed) = launch.hash_sequence() {
            client.done(Request::HashStart);
            client.done(Request::HashData(hashed));
            client.done(Request::HashEnd);
        }
        assert_eq!(code_of(&client.run(&startup_clear())), RC_SUCCESS);
        let banks = [PcrBank::SHA256];
        for extend in launch.extends(&banks).unwrap() {
            let digest = extend.digests[0].value.as_slice().try_into().unwrap();
            assert_eq!(code_of(&client.run(&pcr_extend(extend.pcr, digest))), RC_SUCCESS);
        }
        let expected = replay(&launch.event_log(&banks).unwrap()).unwrap().remove(0).pcrs.unwrap();
        for pcr in 0..16 {
            let found = hex(digest_of(&client.run(&pcr_read(pcr))));
            assert_eq!(found, expected.get(&pcr).map_or("0".repeat(64), hex), "PCR {pcr}, H-CRTM: {hcrtm}");
        }
    }
}

#[test]
fn a_log_can_come_by_standard_input_and_is_said_to_prove_nothing() {
    let log = fs::read(fixture("seabios-tpm-1.2.log")).unwrap();
    let mut replaying = Command::new(PROGRAM)
        .args(["log", "replay", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    replaying.stdin.take().unwrap().write_all(&log).unwrap();
    let output = replaying.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("sha1:\n  0 : 0x3a3f780f11a4b49969fcaa80cd6e3957c33b2275\n"), "{text}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("a log without a quote proves nothing"));
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do() {
    let place = Place::new();
    place.fails(&["expect"], "nothing is measured");
    place.fails(&["expect", "--measure", "kernel=missing"], "cannot read missing");
    place.fails(&["expect", "--measure", "kernel=."], "no regular file");
    place.fails(&["expect", "--measure", "kernel=vmlinuz", "--bank", "sm3_256"], "sm3_256");
    place.fails(&["expect", "--measure", "kernel=vmlinuz", "--log", "initrd"], "--force to replace it");
    place.fails(&["show", "missing"], "cannot read missing");
    place.fails(&["show", "config"], "it is empty");
    place.fails(&["show", "vmlinuz"], "at offset ");
    place.fails(
        &["replay", fixture("seabios-tpm-1.2.log").to_str().unwrap(), "--bank", "sha256"],
        "expected some of sha1",
    );
    // What is too large is not read to its end.
    place.fails(&["show", "/dev/zero"], "larger than any event log");
}
