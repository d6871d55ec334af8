//! The data of events for people.

use std::fmt::Write as _;

use super::no_action::{HCRTM_COMPONENT, HcrtmComponent, STARTUP_LOCALITY};
use super::parse::{ParseError, Reader};
use super::{Event, EventType};
use crate::measure::Hex;
use crate::pcr_bank::PcrBank;

/// Characters that are shown of a text, and bytes of what is none.
const SHOWN_TEXT: usize = 1000;
const SHOWN_BYTES: usize = 64;

/// What an event's data say, in one line without control characters; empty for no data. Texts are quoted and escaped, what
/// is not understood is hexadecimal, and both end with `…` where they are cut.
#[must_use]
pub fn describe(event: &Event) -> String {
    let data = event.data.as_slice();
    if data.is_empty() {
        return String::new();
    }
    // What is not as its type says is shown as it is: it says nothing about the rest of the log.
    structure(event.event_type, data).ok().flatten().unwrap_or_else(|| plain(data))
}

/// Structures of the profile's sections 10.2 and 10.4.5.
fn structure(event_type: EventType, data: &[u8]) -> Result<Option<String>, ParseError> {
    let mut reader = Reader::at(data, 0);
    Ok(Some(match event_type {
        EventType::NO_ACTION => return no_action(data),
        EventType::SEPARATOR => match data {
            [0, 0, 0, 0] | [0xff, 0xff, 0xff, 0xff] => "separator".to_owned(),
            [1, 0, 0, 0] => "separator after an error".to_owned(),
            _ => return Ok(None),
        },
        EventType::EVENT_TAG => {
            let tag = reader.u32("tag")?;
            let size = reader.size("size")?;
            format!("tag {tag:#010x}: {}", plain(reader.take(size, "data")?))
        }
        EventType::EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EFI_VARIABLE_BOOT
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_AUTHORITY
        | EventType::EFI_SPDM_DEVICE_POLICY
        | EventType::EFI_SPDM_DEVICE_AUTHORITY => {
            let guid = guid(reader.array("GUID")?);
            let (name_size, value_size) = (reader.u64("name")?, reader.u64("value")?);
            let Some(name_size) = usize::try_from(name_size).ok().and_then(|units| units.checked_mul(2)) else {
                return Ok(None);
            };
            let Some(name) = utf_16(reader.take(name_size, "name")?) else { return Ok(None) };
            let value = reader.rest();
            if u64::try_from(value.len()) != Ok(value_size) {
                return Ok(None);
            }
            let value = if value.is_empty() { "empty".to_owned() } else { bytes(value) };
            format!("variable {} of {guid}: {value}", quoted(&name))
        }
        EventType::EFI_PLATFORM_FIRMWARE_BLOB => blob(&mut reader)?,
        EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => {
            let [size] = reader.array("size")?;
            let description = plain(reader.take(size.into(), "description")?);
            format!("{description}, {}", blob(&mut reader)?)
        }
        EventType::EFI_HANDOFF_TABLES2 => {
            let [size] = reader.array("size")?;
            let description = plain(reader.take(size.into(), "description")?);
            format!("{description}, {} tables", reader.u64("tables")?)
        }
        EventType::EFI_HANDOFF_TABLES => format!("{} tables", reader.u64("tables")?),
        EventType::EFI_BOOT_SERVICES_APPLICATION
        | EventType::EFI_BOOT_SERVICES_DRIVER
        | EventType::EFI_RUNTIME_SERVICES_DRIVER => {
            let (address, size) = (reader.u64("address")?, reader.u64("size")?);
            let (_link_address, path_size) = (reader.u64("link address")?, reader.u64("path")?);
            format!("image of {size} bytes at {address:#x}, with a device path of {path_size} bytes")
        }
        EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 => {
            // UEFI, section 5.3.2: the disk's GUID is at 56 of a header of 92 bytes; the number follows it.
            let mut disk = Reader::at(reader.take(92, "partition table")?.get(56..).unwrap_or_default(), 0);
            let disk = guid(disk.array("GUID")?);
            format!("{} partitions on the disk {disk}", reader.u64("partitions")?)
        }
        _ => return Ok(None),
    }))
}

fn no_action(data: &[u8]) -> Result<Option<String>, ParseError> {
    Ok(Some(if let Some(data) = data.strip_prefix(STARTUP_LOCALITY) {
        let [locality] = Reader::at(data, 0).array("locality")?;
        format!("StartupLocality {locality}")
    } else if let Some(data) = data.strip_prefix(HCRTM_COMPONENT) {
        let component = HcrtmComponent::parse(data)?;
        let measured = match component.measurement.split_first_chunk() {
            Some((algorithm, digest)) if component.format == 0 => {
                format!("{} {}", PcrBank::from_algorithm(u16::from_be_bytes(*algorithm)), bytes(digest))
            }
            _ => bytes(&component.measurement),
        };
        format!("H-CRTM component {}: {measured}", plain(&component.description))
    } else {
        // Whichever other signature it is, it is a text of 16 bytes.
        let Some((signature, rest)) = data.split_first_chunk::<16>() else { return Ok(None) };
        let Some(signature) = utf_8(signature) else { return Ok(None) };
        match rest {
            [] => quoted(&signature),
            _ => format!("{}, {}", quoted(&signature), bytes(rest)),
        }
    }))
}

fn blob(reader: &mut Reader<'_>) -> Result<String, ParseError> {
    let (address, size) = (reader.u64("address")?, reader.u64("size")?);
    Ok(match address {
        0 => format!("{size} bytes"),
        _ => format!("{size} bytes at {address:#x}"),
    })
}

/// Data without a known structure.
fn plain(data: &[u8]) -> String {
    if data.is_empty() {
        return quoted("");
    }
    // Texts of UTF-16 have zeros in them where they are not in a script of their own.
    utf_8(data).or_else(|| utf_16(data)).map_or_else(|| bytes(data), |text| quoted(&text))
}

/// A text of UTF-16, as UEFI has them, with or without a terminating zero. It has a character of ASCII in it: else any
/// bytes are a text.
fn utf_16(data: &[u8]) -> Option<String> {
    let data = if data.len() % 2 == 0 { data.strip_suffix(&[0, 0]).unwrap_or(data) } else { return None };
    let units = data.chunks(2).filter_map(|unit| unit.first_chunk()).map(|unit| u16::from_le_bytes(*unit));
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().ok()?;
    let is_text = !text.is_empty() && is_text(&text) && text.chars().any(|c| c.is_ascii());
    is_text.then_some(text)
}

/// A text of UTF-8, with or without terminating zeros.
fn utf_8(data: &[u8]) -> Option<String> {
    let end = data.iter().rposition(|byte| *byte != 0)?.saturating_add(1);
    let text = std::str::from_utf8(data.get(..end)?).ok()?;
    is_text(text).then(|| text.to_owned())
}

/// Lines may be in it, other control characters are not in texts.
fn is_text(text: &str) -> bool {
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'))
}

fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN_TEXT).collect();
    let cut = if shown.len() < text.len() { "…" } else { "" };
    // What has no visible form is escaped, too, among it what turns the direction of writing.
    format!("\"{}\"{cut}", shown.escape_debug())
}

fn bytes(data: &[u8]) -> String {
    let shown = data.get(..SHOWN_BYTES).unwrap_or(data);
    let cut = if shown.len() < data.len() { "…" } else { "" };
    format!("{}{cut}", Hex(shown))
}

/// A GUID as UEFI writes it.
fn guid(bytes: [u8; 16]) -> String {
    let mut text = String::new();
    // The first three fields are little-endian.
    for (index, position) in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{:02x}", bytes.get(position).unwrap_or(&0));
    }
    text
}
