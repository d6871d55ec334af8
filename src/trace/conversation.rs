//! What a client and TCG's TPM simulator would send each other over TCP: the framing that Wireshark's dissector of TPM 2.0
//! knows.
//!
//! Sources: the TPM 2.0 reference code's simulator (TpmTcpProtocol.h: `TPM_SEND_COMMAND`); Wireshark's packet-tpm20.c, which
//! takes each segment for one piece, wants a command in a segment of its own, and knows the client by its higher port; RFC 791,
//! RFC 9293, RFC 1071.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::tpm::Locality;

/// The simulator's port for commands.
const SIMULATOR_PORT: u16 = 2321;
const TPM_SEND_COMMAND: u32 = 8;
/// What follows each response: all is well.
const ACKNOWLEDGEMENT: [u8; 4] = [0; 4];

/// Client and simulator are on one machine.
const LOCALHOST: [u8; 4] = [127, 0, 0, 1];
const TCP: u8 = 6;
const DO_NOT_FRAGMENT: u16 = 0x4000;
const TIME_TO_LIVE: u8 = 64;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Ipv4Header {
    /// Version, and the header's size in words.
    version_and_words: u8,
    service: u8,
    /// Of the whole packet in bytes.
    length: U16,
    identification: U16,
    fragment: U16,
    time_to_live: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct TcpHeader {
    source: U16,
    destination: U16,
    sequence: U32,
    acknowledged: U32,
    /// The header's size in words, in the upper half.
    words: u8,
    flags: u8,
    window: U16,
    checksum: U16,
    urgent: U16,
}

/// Bytes of both headers.
pub(super) const HEADERS_SIZE: usize = size_of::<Ipv4Header>() + size_of::<TcpHeader>();

/// One connection, which was there before the capture began.
#[derive(Debug)]
pub(super) struct Conversation {
    client_port: u16,
    /// Sequence numbers of the next byte from each side.
    client_next: u32,
    simulator_next: u32,
}

#[derive(Clone, Copy)]
enum Side {
    Client,
    Simulator,
}

impl Conversation {
    pub(super) fn new(client_port: u16) -> Self {
        Self { client_port, client_next: 1, simulator_next: 1 }
    }

    /// Gives the packets of a command to `packet`.
    pub(super) fn command(&mut self, locality: Locality, command: &[u8], packet: &mut impl FnMut(&[&[u8]])) {
        let [l0, l1, l2, l3] = size(command);
        let [c0, c1, c2, c3] = TPM_SEND_COMMAND.to_be_bytes();
        self.send(Side::Client, &[c0, c1, c2, c3, locality.number(), l0, l1, l2, l3], packet);
        self.send(Side::Client, command, packet);
    }

    /// Gives the packets of a response to `packet`.
    pub(super) fn response(&mut self, response: &[u8], packet: &mut impl FnMut(&[&[u8]])) {
        self.send(Side::Simulator, &size(response), packet);
        self.send(Side::Simulator, response, packet);
        self.send(Side::Simulator, &ACKNOWLEDGEMENT, packet);
    }

    /// Gives the packet to `packet` with which the client goes.
    pub(super) fn end(&mut self, packet: &mut impl FnMut(&[&[u8]])) {
        self.packet(Side::Client, FIN | ACK, &[], packet);
    }

    fn send(&mut self, from: Side, payload: &[u8], packet: &mut impl FnMut(&[&[u8]])) {
        if payload.is_empty() {
            return;
        }
        self.packet(from, PSH | ACK, payload, packet);
        let next = match from {
            Side::Client => &mut self.client_next,
            Side::Simulator => &mut self.simulator_next,
        };
        *next = next.wrapping_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    }

    fn packet(&self, from: Side, flags: u8, payload: &[u8], packet: &mut impl FnMut(&[&[u8]])) {
        let (ports, sequence, acknowledged) = match from {
            Side::Client => ([self.client_port, SIMULATOR_PORT], self.client_next, self.simulator_next),
            Side::Simulator => ([SIMULATOR_PORT, self.client_port], self.simulator_next, self.client_next),
        };
        let tcp = tcp_header(ports, sequence, acknowledged, flags, payload);
        packet(&[ipv4_header(payload.len()).as_bytes(), tcp.as_bytes(), payload]);
    }
}

fn size(message: &[u8]) -> [u8; 4] {
    u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// What no IP packet could hold comes with a length that is wrong; nothing here is as long.
fn length(header: usize, payload: usize) -> U16 {
    u16::try_from(header.saturating_add(payload)).unwrap_or(u16::MAX).into()
}

fn ipv4_header(payload: usize) -> Ipv4Header {
    let mut header = Ipv4Header {
        version_and_words: 4 << 4 | 5,
        service: 0,
        length: length(HEADERS_SIZE, payload),
        identification: 0.into(),
        fragment: DO_NOT_FRAGMENT.into(),
        time_to_live: TIME_TO_LIVE,
        protocol: TCP,
        checksum: 0.into(),
        source: LOCALHOST,
        destination: LOCALHOST,
    };
    header.checksum = checksum(&[header.as_bytes()]);
    header
}

fn tcp_header(
    [source, destination]: [u16; 2],
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    payload: &[u8],
) -> TcpHeader {
    let mut header = TcpHeader {
        source: source.into(),
        destination: destination.into(),
        sequence: sequence.into(),
        acknowledged: acknowledged.into(),
        words: 5 << 4,
        flags,
        window: u16::MAX.into(),
        checksum: 0.into(),
        urgent: 0.into(),
    };
    let length = length(size_of::<TcpHeader>(), payload.len());
    header.checksum = checksum(&[&LOCALHOST, &LOCALHOST, &[0, TCP], length.as_bytes(), header.as_bytes(), payload]);
    header
}

/// The Internet checksum of parts, all of which but the last are even in length.
fn checksum(parts: &[&[u8]]) -> U16 {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|word| match *word {
        [high, low] => u32::from_be_bytes([0, 0, high, low]),
        [high] => u32::from_be_bytes([0, 0, high, 0]),
        _ => 0,
    });
    let mut sum = words.fold(0_u32, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff).wrapping_add(sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or(u16::MAX).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(act: impl FnOnce(&mut Conversation, &mut dyn FnMut(&[&[u8]]))) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        act(&mut Conversation::new(50_000), &mut |parts| packets.push(parts.concat()));
        packets
    }

    fn payload(packet: &[u8]) -> &[u8] {
        &packet[HEADERS_SIZE..]
    }

    fn numbers(packet: &[u8]) -> (u32, u32) {
        let number = |at: usize| u32::from_be_bytes(*packet[at..].first_chunk().unwrap());
        (number(24), number(28))
    }

    #[test]
    fn checksums_are_those_of_rfc_1071() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), U16::new(0x220d));
        assert_eq!(checksum(&[&[0xff, 0xff], &[0x80]]), U16::new(0x7fff));
    }

    #[test]
    fn a_command_and_its_response_are_framed_as_the_simulator_does() {
        let packets = packets(|conversation, mut packet| {
            conversation.command(Locality::FOUR, b"0123456789ab", &mut packet);
            conversation.response(b"0123456789", &mut packet);
        });
        let payloads: Vec<_> = packets.iter().map(|packet| payload(packet)).collect();
        assert_eq!(
            payloads,
            [&[0, 0, 0, 8, 4, 0, 0, 0, 12][..], b"0123456789ab", &[0, 0, 0, 10], b"0123456789", &[0, 0, 0, 0]]
        );
    }

    #[test]
    fn sequence_numbers_count_the_bytes_of_each_side() {
        let packets = packets(|conversation, mut packet| {
            for _ in 0..2 {
                conversation.command(Locality::ZERO, b"0123456789", &mut packet);
                conversation.response(b"012345678901", &mut packet);
            }
            conversation.end(&mut packet);
        });
        let numbers: Vec<_> = packets.iter().map(|packet| numbers(packet)).collect();
        assert_eq!(numbers[..5], [(1, 1), (10, 1), (1, 20), (5, 20), (17, 20)]);
        assert_eq!(numbers[5..], [(20, 21), (29, 21), (21, 39), (25, 39), (37, 39), (39, 41)]);
    }

    #[test]
    fn headers_are_in_order() {
        for packet in packets(|conversation, mut packet| {
            conversation.command(Locality::ZERO, b"an odd one.", &mut packet);
            conversation.response(&[0xff; 4096], &mut packet);
            conversation.end(&mut packet);
        }) {
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            assert_eq!(checksum(&[&packet[..20]]), U16::ZERO);
            let length = u16::try_from(packet.len() - 20).unwrap().to_be_bytes();
            assert_eq!(checksum(&[&packet[12..20], &[0, TCP], &length, &packet[20..]]), U16::ZERO);
        }
    }
}
