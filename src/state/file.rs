//! The format of a state file: a fixed header, then the payload as the TPM engine gave it.
//!
//! | offset | size | content                                                         |
//! |--------|------|-----------------------------------------------------------------|
//! | 0      | 8    | magic `VFUTPMST`                                                |
//! | 8      | 4    | format version, little-endian: 1                                |
//! | 12     | 1    | TPM version: 1 (TPM 1.2) or 2 (TPM 2.0)                         |
//! | 13     | 1    | blob: 1 permanent, 2 savestate, 3 volatile                      |
//! | 14     | 2    | zero                                                            |
//! | 16     | 8    | payload length in bytes, little-endian                          |
//! | 24     | 32   | SHA-256 over the bytes 0 to 23 and the payload                  |
//! | 56     |      | payload                                                         |
//!
//! The checksum finds damage, not an attacker.

use sha2::{Digest, Sha256};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Blob;
use crate::tpm::TpmVersion;

/// Bytes in the largest payload. libtpms' NV memory is far smaller.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// Bytes in the largest state file.
pub const MAX_FILE: usize = size_of::<Header>() + MAX_PAYLOAD;

const MAGIC: [u8; 8] = *b"VFUTPMST";
const FORMAT: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Prefix {
    magic: [u8; 8],
    format: U32,
    tpm_version: u8,
    blob: u8,
    zero: [u8; 2],
    length: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    prefix: Prefix,
    checksum: [u8; 32],
}

/// Why the bytes of a file are not the state that was asked for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// Not written by this program.
    #[error("it does not begin like a state file of vfio-user-tpm")]
    Foreign,
    /// Written by a later version of this program.
    #[error(
        "its format is version {0}, and this program reads version 1: use the vfio-user-tpm that wrote it, or a newer one"
    )]
    Format(u32),
    /// Another TPM's state, or another blob, under this name.
    #[error("it holds another blob, or the state of another TPM version, than its name says")]
    OtherContent,
    /// Cut off, or with something behind its end.
    #[error("it should be {expected} bytes long and is {found}: it was cut off or added to")]
    Length {
        /// Length that the header implies, in bytes.
        expected: u64,
        /// Length found, in bytes.
        found: u64,
    },
    /// Damaged.
    #[error("its checksum does not match its content: it is damaged")]
    Checksum,
}

/// The bytes of the file that holds `payload`.
#[must_use]
pub fn encode(version: TpmVersion, blob: Blob, payload: &[u8]) -> Vec<u8> {
    let prefix = Prefix {
        magic: MAGIC,
        format: U32::new(FORMAT),
        tpm_version: version_byte(version),
        blob: blob_byte(blob),
        zero: [0; 2],
        length: U64::new(payload.len() as u64),
    };
    let header = Header { prefix, checksum: checksum(&prefix, payload) };
    [header.as_bytes(), payload].concat()
}

/// The payload in the bytes of a file, if it is `blob` of a TPM of `version`, whole and undamaged.
///
/// # Errors
/// [`FormatError`]; nothing in the file is trusted before the checksum over all of it is right.
pub fn decode(version: TpmVersion, blob: Blob, bytes: &[u8]) -> Result<&[u8], FormatError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(FormatError::Foreign);
    }
    let found = bytes.len() as u64;
    let Ok((header, payload)) = Header::ref_from_prefix(bytes) else {
        return Err(FormatError::Length { expected: size_of::<Header>() as u64, found });
    };
    let prefix = &header.prefix;
    if prefix.format.get() != FORMAT {
        return Err(FormatError::Format(prefix.format.get()));
    }
    if prefix.length.get() != payload.len() as u64 {
        let expected = prefix.length.get().saturating_add(size_of::<Header>() as u64);
        return Err(FormatError::Length { expected, found });
    }
    if checksum(prefix, payload) != header.checksum {
        return Err(FormatError::Checksum);
    }
    if prefix.tpm_version != version_byte(version) || prefix.blob != blob_byte(blob) {
        return Err(FormatError::OtherContent);
    }
    Ok(payload)
}

fn checksum(prefix: &Prefix, payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(prefix.as_bytes()).chain_update(payload).finalize().into()
}

const fn version_byte(version: TpmVersion) -> u8 {
    match version {
        TpmVersion::V1_2 => 1,
        TpmVersion::V2_0 => 2,
    }
}

const fn blob_byte(blob: Blob) -> u8 {
    match blob {
        Blob::Permanent => 1,
        Blob::SaveState => 2,
        Blob::Volatile => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: &[u8] = b"seeds and secrets";

    fn file() -> Vec<u8> {
        encode(TpmVersion::V2_0, Blob::Permanent, PAYLOAD)
    }

    fn read(bytes: &[u8]) -> Result<&[u8], FormatError> {
        decode(TpmVersion::V2_0, Blob::Permanent, bytes)
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        assert_eq!(read(&file()), Ok(PAYLOAD));
        assert_eq!(
            decode(TpmVersion::V1_2, Blob::SaveState, &encode(TpmVersion::V1_2, Blob::SaveState, &[])),
            Ok(&[][..])
        );
    }

    #[test]
    fn every_single_bit_flip_is_found() {
        let good = file();
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(read(&bad).is_err(), "byte {position} bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let good = file();
        for length in 0..good.len() {
            assert!(read(&good[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn bytes_behind_the_end_are_found() {
        let mut longer = file();
        longer.push(0);
        assert!(matches!(read(&longer), Err(FormatError::Length { .. })));
    }

    #[test]
    fn another_blob_or_version_under_this_name_is_refused() {
        assert_eq!(read(&encode(TpmVersion::V2_0, Blob::Volatile, PAYLOAD)), Err(FormatError::OtherContent));
        assert_eq!(read(&encode(TpmVersion::V1_2, Blob::Permanent, PAYLOAD)), Err(FormatError::OtherContent));
    }

    #[test]
    fn a_foreign_file_is_named_as_such() {
        assert_eq!(read(b"\x00\x01swtpm"), Err(FormatError::Foreign));
        assert_eq!(read(b""), Err(FormatError::Foreign));
    }

    #[test]
    fn a_later_format_says_what_to_do() {
        let mut later = file();
        later[8] = 2;
        let error = read(&later).unwrap_err();
        assert_eq!(error, FormatError::Format(2));
        assert!(error.to_string().contains("newer"));
    }
}
