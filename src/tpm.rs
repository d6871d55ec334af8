//! The words every TPM room shares: version, locality, command and response headers, failure responses.
//!
//! Sources: TCG TPM 2.0 Library Part 1 (section 18, command/response structure) and Part 2; TPM Main Part 2 (1.2).

use std::fmt;
use std::ops::{Index, IndexMut};

/// Bytes in the header of a command or response: tag (u16), size (u32), code (u32), all big-endian.
pub const HEADER_SIZE: usize = 10;

/// Bytes in the largest command or response that the device takes, as the usual 2.0 implementations do.
pub const BUFFER_SIZE: usize = 4096;

/// The specification family a TPM implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TpmVersion {
    /// TPM Main Specification 1.2.
    V1_2,
    /// TPM Library Specification 2.0.
    V2_0,
}

impl fmt::Display for TpmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_2 => "1.2",
            Self::V2_0 => "2.0",
        })
    }
}

/// A locality, 0 to 4. Locality 4 belongs to hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality(u8);

impl Locality {
    /// How many localities there are.
    pub const COUNT: usize = 5;
    /// The operating system's ordinary locality.
    pub const ZERO: Self = Self(0);
    /// The locality of the hardware (dynamic launch, H-CRTM).
    pub const FOUR: Self = Self(4);

    /// The locality with this number, if there is one.
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// The locality's number, 0 to 4.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// All localities, lowest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..5).map(Self)
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One `T` for each locality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerLocality<T>([T; Locality::COUNT]);

impl<T: Copy> PerLocality<T> {
    /// The same for all.
    #[must_use]
    pub const fn all(value: T) -> Self {
        Self([value; Locality::COUNT])
    }
}

#[expect(clippy::indexing_slicing, reason = "a locality is always below the count")]
impl<T> Index<Locality> for PerLocality<T> {
    type Output = T;

    fn index(&self, locality: Locality) -> &T {
        &self.0[usize::from(locality.0)]
    }
}

#[expect(clippy::indexing_slicing, reason = "a locality is always below the count")]
impl<T> IndexMut<Locality> for PerLocality<T> {
    fn index_mut(&mut self, locality: Locality) -> &mut T {
        &mut self.0[usize::from(locality.0)]
    }
}

/// The header in front of each command and response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `TPM_ST_*` (2.0) or `TPM_TAG_*` (1.2).
    pub tag: u16,
    /// Size of the whole command or response in bytes, this header included. Not yet compared with what is there.
    pub size: u32,
    /// The command code (ordinal) of a command, the response code of a response.
    pub code: u32,
}

impl Header {
    /// Reads the header of `bytes`; `None` when there are fewer than [`HEADER_SIZE`] bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_SIZE] = bytes.first_chunk()?;
        let [t0, t1, s0, s1, s2, s3, c0, c1, c2, c3] = *header;
        Some(Self {
            tag: u16::from_be_bytes([t0, t1]),
            size: u32::from_be_bytes([s0, s1, s2, s3]),
            code: u32::from_be_bytes([c0, c1, c2, c3]),
        })
    }

    /// Reads the header of `bytes` if they are one whole message: at least a header, and `size` bytes in all.
    #[must_use]
    pub fn of_whole(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes).filter(|header| usize::try_from(header.size) == Ok(bytes.len()))
    }

    /// The header as bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let [t0, t1] = self.tag.to_be_bytes();
        let [s0, s1, s2, s3] = self.size.to_be_bytes();
        let [c0, c1, c2, c3] = self.code.to_be_bytes();
        [t0, t1, s0, s1, s2, s3, c0, c1, c2, c3]
    }
}

/// Errors that the device itself answers when no TPM can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The TPM is in failure mode: `TPM_RC_FAILURE` (2.0), `TPM_FAIL` (1.2).
    Failure,
    /// The command's size field is under a header or over the buffer: `TPM_RC_COMMAND_SIZE` (2.0),
    /// `TPM_BAD_PARAM_SIZE` (1.2).
    CommandSize,
    /// The command was cancelled: `TPM_RC_CANCELED` (2.0), `TPM_FAIL` (1.2 has no code for it).
    Canceled,
    /// Commands from this locality are not taken: `TPM_RC_LOCALITY` (2.0), `TPM_BAD_LOCALITY` (1.2).
    Locality,
    /// The command was not looked at, and is to be sent again: `TPM_RC_RETRY` (2.0), `TPM_RETRY` (1.2).
    Retry,
}

/// The well-formed, header-only response with which a TPM of `version` reports `fault`.
#[must_use]
pub fn fault_response(version: TpmVersion, fault: Fault) -> [u8; HEADER_SIZE] {
    let (tag, code) = match (version, fault) {
        (TpmVersion::V2_0, Fault::Failure) => (0x8001, 0x101),
        (TpmVersion::V2_0, Fault::CommandSize) => (0x8001, 0x142),
        (TpmVersion::V2_0, Fault::Canceled) => (0x8001, 0x909),
        (TpmVersion::V2_0, Fault::Locality) => (0x8001, 0x907),
        (TpmVersion::V2_0, Fault::Retry) => (0x8001, 0x922),
        (TpmVersion::V1_2, Fault::Failure | Fault::Canceled) => (0x00c4, 0x09),
        (TpmVersion::V1_2, Fault::CommandSize) => (0x00c4, 0x19),
        (TpmVersion::V1_2, Fault::Locality) => (0x00c4, 0x3d),
        (TpmVersion::V1_2, Fault::Retry) => (0x00c4, 0x800),
    };
    Header { tag, size: 10, code }.to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_way_to_bytes_and_back() {
        let header = Header { tag: 0x8002, size: 0x1234_5678, code: 0x144 };
        assert_eq!(Header::parse(&header.to_bytes()), Some(header));
    }

    #[test]
    fn nine_bytes_are_no_header() {
        assert_eq!(Header::parse(&[0; 9]), None);
    }

    #[test]
    fn a_message_is_whole_only_when_its_size_field_is_its_length() {
        let response = fault_response(TpmVersion::V2_0, Fault::Failure);
        assert!(Header::of_whole(&response).is_some());
        let longer = [&response[..], &[0]].concat();
        assert_eq!(Header::of_whole(&longer), None);
    }

    #[test]
    fn a_retry_is_the_warning_on_which_drivers_send_again() {
        let retry = |version| fault_response(version, Fault::Retry);
        assert_eq!(retry(TpmVersion::V2_0), [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x22]);
        assert_eq!(retry(TpmVersion::V1_2), [0x00, 0xc4, 0, 0, 0, 10, 0, 0, 0x08, 0x00]);
    }

    #[test]
    fn there_is_no_locality_5() {
        assert_eq!(Locality::new(4), Some(Locality::FOUR));
        assert_eq!(Locality::new(5), None);
    }
}
