//! Blocks of a capture file, as far as they are needed here.
//!
//! Source: PCAP Next Generation Capture File Format (draft-ietf-opsawg-pcapng), sections 3.5 (options), 4.1 (section header),
//! 4.2 (interface description), 4.3 (enhanced packet). All numbers are little-endian, as the section header says.

use std::time::{SystemTime, UNIX_EPOCH};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const VERSION: [u16; 2] = [1, 0];
/// The length of the section is not told.
const UNKNOWN_LENGTH: u64 = u64::MAX;
/// IPv4 or IPv6 packets without anything in front.
const LINKTYPE_RAW: u16 = 101;
/// Packets are never cut.
const UNLIMITED: u32 = 0;

const OPT_ENDOFOPT: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
/// Times are in 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Bytes of an enhanced packet block besides packet and comment, at most.
pub(super) const PACKET_OVERHEAD: usize = 32 + 3 + 4 + 3 + 4;

/// Appends what a file begins with: the section, and the only interface in it.
pub(super) fn begin(file: &mut Vec<u8>, program: &str, interface: &str, comment: &str) {
    block(file, SECTION_HEADER, |body| {
        body.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        body.extend(VERSION.iter().flat_map(|number| number.to_le_bytes()));
        body.extend(UNKNOWN_LENGTH.to_le_bytes());
        option(body, OPT_COMMENT, comment.as_bytes());
        option(body, SHB_USERAPPL, program.as_bytes());
        option(body, OPT_ENDOFOPT, &[]);
    });
    block(file, INTERFACE_DESCRIPTION, |body| {
        body.extend(LINKTYPE_RAW.to_le_bytes());
        body.extend([0, 0]);
        body.extend(UNLIMITED.to_le_bytes());
        option(body, IF_NAME, interface.as_bytes());
        option(body, IF_TSRESOL, &[NANOSECONDS]);
        option(body, OPT_ENDOFOPT, &[]);
    });
}

/// Appends a packet, which is given in parts.
pub(super) fn packet(file: &mut Vec<u8>, time: SystemTime, parts: &[&[u8]], comment: Option<&str>) {
    // Until 2554; a time before 1970 is none that a clock in order shows.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let [high, low] =
        [nanoseconds >> 32, nanoseconds & 0xffff_ffff].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    let length = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    block(file, ENHANCED_PACKET, |body| {
        // Of the first interface; its length in the file and on the wire.
        for number in [0, high, low, length, length] {
            body.extend(number.to_le_bytes());
        }
        for part in parts {
            body.extend_from_slice(part);
        }
        pad(body);
        if let Some(comment) = comment {
            option(body, OPT_COMMENT, comment.as_bytes());
            option(body, OPT_ENDOFOPT, &[]);
        }
    });
}

/// A block's length stands before and behind its body.
fn block(file: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    file.extend(kind.to_le_bytes());
    let start = file.len();
    file.extend([0; 4]);
    write(file);
    // Kind, and this length.
    let length = u32::try_from(file.len().saturating_sub(start).saturating_add(8)).unwrap_or(u32::MAX).to_le_bytes();
    if let Some(place) = file.get_mut(start..).and_then(<[u8]>::first_chunk_mut) {
        *place = length;
    }
    file.extend(length);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..u16::MAX.into()).unwrap_or(value);
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
    body.extend_from_slice(value);
    pad(body);
}

/// Blocks begin at multiples of 4, and so does everything in them.
fn pad(file: &mut Vec<u8>) {
    file.resize(file.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The kinds and bodies of the blocks in a file.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let number = |at: usize| u32::from_le_bytes(*file[at..].first_chunk().unwrap());
            let length = number(4) as usize;
            assert_eq!(number(length - 4) as usize, length);
            assert_eq!(length % 4, 0);
            blocks.push((number(0), file[8..length - 4].to_vec()));
            file = &file[length..];
        }
        blocks
    }

    #[test]
    fn a_file_begins_with_a_section_and_an_interface() {
        let mut file = Vec::new();
        begin(&mut file, "p", "if", "what");
        let blocks = blocks(&file);
        assert_eq!(blocks.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [SECTION_HEADER, INTERFACE_DESCRIPTION]);
        assert_eq!(blocks[0].1[..16], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(blocks[0].1[16..24], *b"\x01\x00\x04\x00what");
        assert_eq!(blocks[1].1, *b"\x65\0\0\0\0\0\0\0\x02\0\x02\0if\0\0\x09\0\x01\0\x09\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_packet_has_its_time_its_bytes_and_perhaps_a_comment() {
        let mut file = Vec::new();
        let time = UNIX_EPOCH + Duration::new(0x1_0000_0000, 7);
        packet(&mut file, time, &[b"ab", b"cde"], None);
        packet(&mut file, UNIX_EPOCH - Duration::from_secs(1), &[], Some("note"));
        let blocks = blocks(&file);
        let nanoseconds = (0x1_0000_0000_u64 * 1_000_000_000 + 7).to_le_bytes();
        let body = &blocks[0].1;
        assert_eq!(body[4..12], [&nanoseconds[4..], &nanoseconds[..4]].concat());
        assert_eq!(body[12..], *b"\x05\0\0\0\x05\0\0\0abcde\0\0\0");
        assert_eq!(blocks[1].1, [&[0; 20][..], b"\x01\0\x04\0note\0\0\0\0"].concat());
    }

    #[test]
    fn a_packet_takes_no_more_than_it_is_said_to() {
        for length in 0..8 {
            for text in ["", "a", "four", "seven.."] {
                let mut file = Vec::new();
                packet(&mut file, UNIX_EPOCH, &[&vec![1; length]], Some(text));
                assert!(file.len() <= PACKET_OVERHEAD + length + text.len(), "{}", file.len());
            }
        }
    }
}
