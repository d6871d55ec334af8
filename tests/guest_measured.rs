//! A guest whose launch is measured by `run --measure auto`: what it finds in its TPM and in its log, what a verifier
//! makes of its quote, and all of that after a reboot.

mod common;
mod guest;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use guest::{Firmware, Guest, GuestConfig, Tpm, kit};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-user-tpm");
const PCRS: [u32; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 11];
const SELECTION: &str = "sha256:0,1,2,3,4,5,6,7,11";
/// The PCRs in a quote: `tpm2_checkquote` takes no more than eight values as they are.
const QUOTED: [u32; 5] = [0, 2, 4, 7, 11];
const QUOTED_SELECTION: &str = "sha256:0,2,4,7,11";
const NONCE: &str = "0123456789abcdef";

/// Values by the index of their PCR.
type Values = BTreeMap<u32, String>;

/// Makes a key that only signs what the TPM says, and has it sign the PCRs. Prints the key's public part, what is signed,
/// and the signature, each in a line.
const QUOTE: &str = "cd /tmp && tpm2_createek -Q -c ek.ctx -G ecc &&
    tpm2_createak -Q -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pem -f pem &&
    tpm2_quote -Q -c ak.ctx -l sha256:0,2,4,7,11 -q 0123456789abcdef -m quote.msg -s quote.sig -g sha256 &&
    for file in ak.pem quote.msg quote.sig; do xxd -p $file | tr -d '\\n'; echo; done";

/// Boots a guest by `run`; `append` is more of its command line.
fn boot(firmware: Firmware, append: &str, flags: &[&str]) -> Guest {
    let run = [&[PROGRAM, "run", "--log-level=error", "--measure=auto"], flags, &["--"]].concat();
    let launcher = run.into_iter().map(Into::into).collect();
    Guest::boot(&GuestConfig { firmware, launcher, append: append.to_owned(), ..GuestConfig::default() })
}

/// The values that a verifier expects, who has the files from elsewhere.
fn expected(firmware: Firmware, append: &str, flags: &[&str]) -> Values {
    let firmware = match firmware {
        Firmware::SeaBios => kit().join("root/usr/share/seabios/bios-256k.bin"),
        _ => kit().join("OVMF_CODE.fd"),
    };
    let file = |what: &str, path: PathBuf| format!("--measure={what}={}", path.display());
    let output = Command::new(PROGRAM)
        .args(["log", "expect", "--json", "--bank=sha256"])
        .arg(file("kernel", kit().join("vmlinuz")))
        .arg(file("initrd", kit().join("initramfs.cpio")))
        .arg(format!("--measure=cmdline=console=ttyS0 panic=-1 iomem=relaxed {append}"))
        .arg(file("firmware", firmware))
        .args(flags)
        .output()
        .expect("log expect");
    values_in(&output)
}

#[track_caller]
fn values_in(output: &Output) -> Values {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    serde_json::from_value(json["sha256"].clone()).expect("values")
}

fn values(guest: &mut Guest) -> Values {
    let text = guest.check(&format!("tpm2_pcrread -Q -o /tmp/pcrs {SELECTION} && xxd -p -c 32 /tmp/pcrs"));
    PCRS.into_iter().zip(text.lines().map(ToOwned::to_owned)).collect()
}

fn write_hex(path: &Path, hex: &str) {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    fs::write(path, (0..hex.len()).step_by(2).map(byte).collect::<Vec<_>>()).expect("file in the temporary folder");
}

/// tpm2-tools of the guest's kit, outside of the guest.
fn tpm2(folder: &Path, arguments: &[&str]) -> Output {
    let root = kit().join("root/usr");
    Command::new(root.join("lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(root.join("lib/x86_64-linux-gnu"))
        .arg(root.join("bin/tpm2"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("tpm2-tools")
}

/// A quote, as it reaches a verifier.
struct Quote(tempfile::TempDir);

impl Quote {
    fn of(guest: &mut Guest) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let text = guest.check(QUOTE);
        for (name, hex) in ["ak.pem", "quote.msg", "quote.sig"].into_iter().zip(text.lines()) {
            write_hex(&folder.path().join(name), hex);
        }
        Self(folder)
    }

    /// Whether `tpm2_checkquote` accepts it for these values, or what it says.
    fn is_of(&self, values: &Values) -> Result<(), String> {
        write_hex(&self.0.path().join("pcrs"), &QUOTED.map(|pcr| values[&pcr].as_str()).concat());
        let key = ["checkquote", "-u", "ak.pem", "-m", "quote.msg", "-s", "quote.sig", "-g", "sha256", "-q", NONCE];
        let output = tpm2(self.0.path(), &[&key[..], &["-f", "pcrs", "-l", QUOTED_SELECTION]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }
}

/// What Linux has found as the firmware's log, and what follows from it.
fn replayed(guest: &mut Guest) -> Values {
    let folder = tempfile::tempdir().expect("temporary folder");
    let log = guest.check("xxd -p /sys/kernel/security/tpm0/binary_bios_measurements | tr -d '\\n'");
    write_hex(&folder.path().join("log"), &log);
    let parsed = tpm2(folder.path(), &["eventlog", "log"]);
    assert!(parsed.status.success(), "{}", String::from_utf8_lossy(&parsed.stderr));
    let text = String::from_utf8_lossy(&parsed.stdout).into_owned();
    assert!(text.contains("EV_S_CRTM_VERSION") && text.contains("EV_IPL"), "{text}");
    let log = folder.path().join("log");
    let replayed = Command::new(PROGRAM).args(["log", "replay", "--json", "--bank=sha256"]).arg(log).output();
    values_in(&replayed.expect("log replay"))
}

#[test]
fn a_verifier_accepts_the_guest_that_was_measured_and_no_other() {
    let expected_of = |append: &str| expected(Firmware::SeaBios, append, &[]);
    let expected = expected_of("word=one");
    let mut guest = boot(Firmware::SeaBios, "word=one", &[]);
    for boots in 1..=2 {
        assert_eq!(values(&mut guest), expected, "boot {boots}");
        assert_eq!(replayed(&mut guest), expected, "boot {boots}");
        let quote = Quote::of(&mut guest);
        assert_eq!(quote.is_of(&expected), Ok(()));
        let refusal = quote.is_of(&expected_of("word=two")).expect_err("another command line");
        assert!(refusal.contains("PCR"), "{refusal}");
        if boots == 1 {
            Tpm::V2_0.extend(&mut guest, 11, "an event");
            assert_ne!(values(&mut guest), expected);
            guest.reboot();
        }
    }
    guest.quit();
}

#[test]
fn another_command_line_is_another_pcr_11_and_nothing_else() {
    let mut guest = boot(Firmware::SeaBios, "word=two", &["--measure-hcrtm"]);
    let found = values(&mut guest);
    assert_eq!(found, expected(Firmware::SeaBios, "word=two", &["--measure-hcrtm"]));
    assert_eq!(replayed(&mut guest), found);
    let other = expected(Firmware::SeaBios, "word=one", &["--measure-hcrtm"]);
    let differ: Vec<_> = found.iter().filter(|(pcr, value)| other[pcr] != **value).map(|(pcr, _)| *pcr).collect();
    assert_eq!(differ, [11]);
    guest.quit();
}

#[test]
fn firmware_in_flash_is_measured_and_starts_from_its_copy() {
    let mut guest = boot(Firmware::Ovmf, "", &[]);
    let found = values(&mut guest);
    assert_eq!(found, expected(Firmware::Ovmf, "", &[]));
    guest.reboot();
    assert_eq!(values(&mut guest), found);
    guest.quit();
}
