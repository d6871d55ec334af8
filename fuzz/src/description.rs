//! What a user says of the device and its place, and what is made of it for others to read: tables, JSON, a shell's words,
//! XML.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vfio_user_tpm::acpi::{BehindBridge, Interface, Machine, PciPath, Placement, TpmDevice, initramfs_ssdt, tables};
use vfio_user_tpm::description::{Config, Description, Source};
use vfio_user_tpm::device;
use vfio_user_tpm::tpm::TpmVersion;

use super::tape::Tape;

const SOURCES: [Source; 5] =
    [Source::Ephemeral, Source::Embedded, Source::SwtpmAttached, Source::SwtpmOwned, Source::Host];

pub fn run(data: &[u8]) {
    let mut tape = Tape::new(data);
    let machine = tape.choose(&Machine::ALL);
    let address = address(&mut tape);
    let path = match address.parse::<PciPath>() {
        Ok(path) => path,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(path.to_string().parse::<PciPath>().as_ref(), Ok(&path), "shown as it is read");
    assert!(path.device.slot() <= 0x1f && path.device.devfn() % 8 == 0);

    let bridge = (tape.flag() || path.bridge.is_some()).then(|| BehindBridge { bridge_id: text(&mut tape) });
    let placement = match Placement::new(machine, path, bridge) {
        Ok(placement) => placement,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let version = if tape.flag() { TpmVersion::V2_0 } else { TpmVersion::V1_2 };
    let identity = device::identity(tape.u16(), tape.u16());
    let device = match TpmDevice::new(placement, identity, tape.choose(&Interface::ALL), version) {
        Ok(device) => device,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let device = match device.clone().with_interrupt() {
        Ok(with_interrupt) if tape.flag() => with_interrupt,
        _ => device,
    };
    for table in tables(&device).into_iter().chain(initramfs_ssdt(&device)) {
        let length = u32::from_le_bytes(table.bytes[4..8].try_into().expect("four"));
        assert_eq!(length as usize, table.bytes.len());
        assert_eq!(table.bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0, "checksum");
    }
    let source = tape.choose(&SOURCES);
    let (socket, folder) = (file_path(&mut tape), file_path(&mut tape));
    describe(Config { program_version: "0".to_owned(), device, socket_path: socket, source }, &folder);
}

fn describe(config: Config, folder: &Path) {
    let bus = config.device.placement().bus().to_owned();
    let socket = std::path::absolute(&config.socket_path);
    let Ok(description) = Description::new(config) else {
        assert!(socket.is_err() || socket.is_ok_and(|path| path.to_str().is_none()));
        return;
    };
    let socket = socket.expect("it is described").into_os_string().into_string().expect("it is UTF-8");
    let Ok(arguments) = description.qemu_arguments(folder) else { return };
    let device: Value = serde_json::from_str(&arguments[1]).expect("QEMU reads JSON");
    assert_eq!(device["socket"]["path"], Value::from(socket));
    assert_eq!(device["bus"], Value::from(bus));
    let files = description.files(folder).expect("as the arguments");
    let tpm_json = files.iter().find(|file| file.name == "tpm.json").expect("it is there");
    serde_json::from_slice::<Value>(&tpm_json.contents).expect("JSON");

    let line = description.qemu_command_line(folder).expect("as the arguments");
    assert_eq!(words(line.strip_suffix('\n').expect("one line")), arguments);
    if let Ok(xml) = description.libvirt_xml(folder) {
        let values: Vec<_> = xml.split("<qemu:arg value='").skip(1).map(attribute).collect();
        assert_eq!(values, arguments);
    }
}

/// The words of a POSIX shell's line in which nothing but single quotes and backslashes outside them is special.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (vec![], None::<String>, false, false);
    for character in line.chars() {
        match character {
            '\'' if !escaped => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if !quoted && !escaped => escaped = true,
            ' ' if !quoted && !escaped => words.extend(word.take()),
            _ => {
                let plain = character.is_ascii_alphanumeric() || "-_=./,:+@%".contains(character);
                assert!(quoted || escaped || plain, "{character:?} is special outside quotes");
                word.get_or_insert_default().push(character);
                escaped = false;
            }
        }
    }
    words.extend(word);
    words
}

/// The value of an attribute up to its closing single quote.
fn attribute(xml: &str) -> String {
    let (value, _) = xml.split_once("'/>\n").expect("it ends");
    assert!(!value.contains(['<', '\'']) && !value.chars().any(|c| c.is_ascii_control() && c != '\x7f'), "{value:?}");
    let entities = [("&#9;", "\t"), ("&#10;", "\n"), ("&#13;", "\r"), ("&apos;", "'"), ("&lt;", "<"), ("&amp;", "&")];
    entities.iter().fold(value.to_owned(), |value, (entity, character)| value.replace(entity, character))
}

fn address(tape: &mut Tape<'_>) -> String {
    match tape.below(4) {
        0 => text(tape),
        1 => format!("{:02x}.{:x}/{:x}.0", tape.below(33), tape.below(9), tape.below(33)),
        _ => format!("{:02x}.0", tape.below(34)),
    }
}

fn text(tape: &mut Tape<'_>) -> String {
    String::from_utf8_lossy(tape.short()).into_owned()
}

fn file_path(tape: &mut Tape<'_>) -> PathBuf {
    OsString::from_vec(tape.short().to_vec()).into()
}
