//! What is measured of a launch, as events and as values.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::measure::Hex;
use crate::measure::digests;
use crate::measure::event_log::{describe, parse};
use crate::measure::replay::replay;

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        for (name, content) in
            [("vmlinuz", "a kernel"), ("initrd", "an initrd"), ("fw.fd", "firmware"), ("conf", "x=1")]
        {
            fs::write(files.path(name), content).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn section(&self, section: Section, name: &str) -> Source {
        Source::Section(section, Content::Path(self.path(name)))
    }

    fn firmware(&self) -> Source {
        Source::Firmware(self.path("fw.fd").into())
    }

    fn file(&self, pcr: u8) -> Source {
        Source::File(FilePcr::new(pcr).unwrap(), self.path("conf").into())
    }

    /// Kernel, command line and initrd, not in their order.
    fn linux(&self) -> Vec<Source> {
        let cmdline = Content::Bytes(b"console=ttyS0".to_vec());
        vec![
            self.section(Section::Initrd, "initrd"),
            self.section(Section::Kernel, "vmlinuz"),
            Source::Section(Section::CommandLine, cmdline),
        ]
    }
}

fn value(launch: &Launch, bank: PcrBank, pcr: u32) -> String {
    let replayed = replay(&launch.event_log(&BANKS).unwrap()).unwrap();
    let replayed = replayed.iter().find(|one| one.bank == bank).unwrap();
    Hex(&replayed.pcrs.as_ref().unwrap()[&pcr]).to_string()
}

/// PCR, type, and what the data say.
fn events(launch: &Launch) -> Vec<(u32, &'static str, String)> {
    let log = launch.event_log(&[PcrBank::SHA256]).unwrap();
    log.events.iter().map(|event| (event.pcr, event.event_type.name().unwrap(), describe(event))).collect()
}

/// As systemd-measure of systemd 252.39 calculates it: `systemd-measure calculate --phase=: --linux= --initrd= --cmdline=`
/// with files of these contents.
#[test]
fn kernel_command_line_and_initrd_give_the_value_of_systemd_measure() {
    let launch = Launch::measure(&Files::new().linux(), false).unwrap();
    let expected = [
        (PcrBank::SHA1, "c8a82ef18fe517813bfb176f3e5db84f20dbc71e"),
        (PcrBank::SHA256, "b04bd70c415ac06f0ee3e933a8211abf8236bcf6df59915ecf25cf29df6b90e4"),
        (
            PcrBank::SHA384,
            "61567e5cb0acb0e7ca12eb0e2512092634366ef7f1a0be6112f340ef459ef3670d4f0d255c094c6ab80d4cfd05568a76",
        ),
        (
            PcrBank::SHA512,
            "fd797f1659a1f9e36011cd1afd79639d44955c57bd8a11061d384a104fdc2f88422376dcfdee5441a3ac2202a2e0244327de466fc465ffc9cb71b80f6fd51adb",
        ),
    ];
    for (bank, expected) in expected {
        assert_eq!(value(&launch, bank, 11), expected, "{bank}");
    }
}

#[test]
fn a_launch_is_firmware_files_separators_and_sections_in_that_order() {
    let files = Files::new();
    let sources = [vec![files.file(9), files.file(1)], files.linux(), vec![files.firmware(), files.file(2)]].concat();
    let version = format!("\"vfio-user-tpm {}\"", env!("CARGO_PKG_VERSION"));
    let mut expected = vec![
        (0, "EV_S_CRTM_VERSION", version.as_str()),
        (0, "EV_EFI_PLATFORM_FIRMWARE_BLOB2", "\"fw.fd\", 8 bytes"),
        (9, "EV_IPL", "\"conf\""),
        (1, "EV_PLATFORM_CONFIG_FLAGS", "\"conf\""),
        (2, "EV_EFI_PLATFORM_FIRMWARE_BLOB2", "\"conf\", 3 bytes"),
    ];
    expected.extend((0..8).map(|pcr| (pcr, "EV_SEPARATOR", "separator")));
    for name in ["\".linux\"", "\".cmdline\"", "\".initrd\""] {
        expected.extend([(11, "EV_IPL", name); 2]);
    }
    let found = events(&Launch::measure(&sources, false).unwrap());
    let found: Vec<_> = found.iter().map(|(pcr, name, text)| (*pcr, *name, text.as_str())).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_file_pcr_below_8_is_closed_behind_the_file() {
    let files = Files::new();
    for pcr in (0..=15).filter(|pcr| *pcr != 7) {
        let found = events(&Launch::measure(&[files.file(pcr)], false).unwrap());
        let of_pcr: Vec<_> = found.iter().filter(|(index, ..)| *index == u32::from(pcr)).collect();
        let is_closed = of_pcr.last().unwrap().1 == "EV_SEPARATOR";
        assert_eq!(is_closed, FilePcr::new(pcr).unwrap().is_of_firmware(), "PCR {pcr}");
    }
}

#[test]
fn an_h_crtm_measures_the_firmware_before_everything_else_and_only_then() {
    let files = Files::new();
    let launch = Launch::measure(&[files.firmware()], true).unwrap();
    let hashed = launch.hash_sequence().unwrap();
    let firmware = Digests::of(b"firmware");
    assert_eq!(hashed, [&[0, 0x0d][..], firmware.get(PcrBank::SHA512).unwrap()].concat());

    let found = events(&launch);
    assert_eq!((found[0].1, found[0].2.as_str()), ("EV_NO_ACTION", "StartupLocality 4"));
    assert!(found[1].2.starts_with("H-CRTM component \"fw.fd\": sha512 "), "{found:?}");
    assert_eq!((found[2].1, found[2].2.as_str()), ("EV_EFI_HCRTM_EVENT", "\"HCRTM\""));
    assert_eq!(found[3].1, "EV_S_CRTM_VERSION");
    assert!(found.iter().all(|(_, name, _)| *name != "EV_EFI_PLATFORM_FIRMWARE_BLOB2"));

    // What the hash sequence does is not done by a command as well.
    let extends = launch.extends(&[PcrBank::SHA256]).unwrap();
    assert_eq!(extends.iter().filter(|one| one.pcr == 0).count(), 2);
    let mut pcr_0 = vec![0; 32];
    pcr_0[31] = 4;
    let sequence = Digests::of(hashed).get(PcrBank::SHA256).unwrap().to_vec();
    let by_command = extends.iter().filter(|one| one.pcr == 0).map(|one| one.digests[0].value.clone());
    for digest in std::iter::once(sequence).chain(by_command) {
        pcr_0 = digests::extend(PcrBank::SHA256, &pcr_0, &digest).unwrap();
    }
    assert_eq!(value(&launch, PcrBank::SHA256, 0), Hex(&pcr_0).to_string());
}

#[test]
fn digests_are_pinned() {
    let files = Files::new();
    let launch = Launch::measure(&files.linux(), false).unwrap();
    let before = launch.log_bytes(&BANKS, 1 << 16).unwrap();
    fs::write(files.path("vmlinuz"), "another kernel").unwrap();
    assert_eq!(launch.log_bytes(&BANKS, 1 << 16).unwrap(), before);
    let again = Launch::measure(&files.linux(), false).unwrap();
    assert_ne!(value(&again, PcrBank::SHA256, 11), value(&launch, PcrBank::SHA256, 11));
}

#[test]
fn log_and_extends_have_the_banks_that_the_tpm_has() {
    let launch = Launch::measure(&Files::new().linux(), false).unwrap();
    let banks = [PcrBank::SHA384, PcrBank::SHA256];
    let log = parse(&launch.log_bytes(&banks, 1 << 16).unwrap()).unwrap();
    assert_eq!(log.banks(), [PcrBank::SHA256, PcrBank::SHA384]);
    let extends = launch.extends(&banks).unwrap();
    assert_eq!(extends.len(), log.events.len());
    for (extend, event) in extends.iter().zip(&log.events) {
        assert_eq!((extend.pcr, &extend.digests), (event.pcr, &event.digests));
    }
    assert!(matches!(launch.log_bytes(&banks, 100), Err(LaunchLogError::Write(WriteError::NoRoom { .. }))));
    let sm3 = "sm3_256".parse().unwrap();
    let message = launch.extends(&[PcrBank::SHA256, sm3]).unwrap_err().to_string();
    assert!(message.contains("sm3_256"), "{message}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let files = Files::new();
    let kernel = files.section(Section::Kernel, "vmlinuz");
    let message = Launch::measure(&[kernel.clone(), kernel.clone()], false).unwrap_err().to_string();
    assert!(message.contains("one kernel, and two"), "{message}");
    let message = Launch::measure(&[kernel], true).unwrap_err().to_string();
    assert!(message.contains("firmware=PATH"), "{message}");
    let message = Launch::measure(&[files.section(Section::Initrd, "missing")], false).unwrap_err().to_string();
    assert!(message.contains("missing"), "{message}");
}

#[test]
fn names_are_without_folders_printable_and_not_too_long() {
    let files = Files::new();
    let long = "n".repeat(200) + "\u{e9}\n" + &"m".repeat(48);
    fs::write(files.path(&long), "").unwrap();
    let source = Source::Firmware(SourceFile { name: long.clone() + &long, ..files.path(&long).into() });
    let launch = Launch::measure(&[source, files.file(0)], false).unwrap();
    let written = launch.event_log(&[PcrBank::SHA256]).unwrap();
    let data = &written.events[1].data;
    assert_eq!((usize::from(data[0]), data.len()), (255, 1 + 255 + 16));
    assert!(data[1..256].iter().all(u8::is_ascii_graphic));
    assert_eq!(written.events[2].data[..5], *b"\x04conf");
}
