//! A state in one file, as `state export` writes it: the state files as they are, sealed ones sealed. Pure.
//!
//! | offset | size | content                                                          |
//! |--------|------|------------------------------------------------------------------|
//! | 0      | 8    | magic `VFUTPMAR`                                                 |
//! | 8      | 4    | format version: 1                                                |
//! | 12     | 4    | number of state files                                            |
//! | 16     | 8    | bytes behind the header                                          |
//! | 24     | 32   | SHA-256 over the bytes 0 to 23 and those behind the header       |
//! | 56     |      | for each: its length in bytes (8), and the whole state file      |
//!
//! Numbers are little-endian. Each state file says itself what it is ([`super::file`]).

use sha2::{Digest, Sha256};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::file::{self, FormatError, MAX_FILE};
use super::{Blob, StateFile};

/// Most state files that there can be: each blob of each version.
const MAX_FILES: usize = 2 * Blob::ALL.len();

/// Bytes in the largest exported file.
pub const MAX_SIZE: usize = size_of::<Header>() + MAX_FILES * (8 + MAX_FILE);

const MAGIC: [u8; 8] = *b"VFUTPMAR";
const FORMAT: u32 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    magic: [u8; 8],
    format: U32,
    files: U32,
    length: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    fields: Fields,
    checksum: [u8; 32],
}

/// Why the bytes of a file are not an exported state.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ArchiveError {
    /// Not written by this program.
    #[error("it does not begin like a file of `vfio-user-tpm state export`")]
    Foreign,
    /// Written by a later version of this program.
    #[error("its format is version {0}, and this program reads version 1: use a newer vfio-user-tpm")]
    Format(u32),
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
    /// Undamaged, and yet not as it should be.
    #[error("its parts do not fit together: it was not written by vfio-user-tpm")]
    Parts,
    /// What is in it is no state file.
    #[error("of a state file in it: {0}")]
    File(FormatError),
}

/// The bytes of the file that holds these state files.
#[must_use]
pub fn encode(files: &[StateFile]) -> Vec<u8> {
    let mut body = Vec::new();
    for file in files {
        body.extend_from_slice(U64::new(file.bytes.len() as u64).as_bytes());
        body.extend_from_slice(&file.bytes);
    }
    let fields = Fields {
        magic: MAGIC,
        format: U32::new(FORMAT),
        files: U32::new(u32::try_from(files.len()).unwrap_or(u32::MAX)),
        length: U64::new(body.len() as u64),
    };
    let header = Header { fields, checksum: checksum(&fields, &body) };
    [header.as_bytes(), &body].concat()
}

/// The state files in the bytes of a file: at least one, each undamaged, and no two of the same blob.
///
/// # Errors
/// [`ArchiveError`].
pub fn decode(bytes: &[u8]) -> Result<Vec<StateFile>, ArchiveError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(ArchiveError::Foreign);
    }
    let found = bytes.len() as u64;
    let header_size = size_of::<Header>() as u64;
    let Ok((header, mut body)) = Header::ref_from_prefix(bytes) else {
        return Err(ArchiveError::Length { expected: header_size, found });
    };
    let fields = &header.fields;
    if fields.format.get() != FORMAT {
        return Err(ArchiveError::Format(fields.format.get()));
    }
    if fields.length.get() != body.len() as u64 {
        return Err(ArchiveError::Length { expected: fields.length.get().saturating_add(header_size), found });
    }
    if checksum(fields, body) != header.checksum {
        return Err(ArchiveError::Checksum);
    }
    let mut files: Vec<StateFile> = Vec::new();
    while !body.is_empty() {
        let (length, rest) = U64::read_from_prefix(body).map_err(|_| ArchiveError::Parts)?;
        let length = usize::try_from(length.get()).map_err(|_| ArchiveError::Parts)?;
        let (bytes, rest) = rest.split_at_checked(length).ok_or(ArchiveError::Parts)?;
        let label = file::inspect(bytes).map_err(ArchiveError::File)?.label;
        let (version, blob) = (label.version, label.blob);
        if files.iter().any(|file| (file.version, file.blob) == (version, blob)) {
            return Err(ArchiveError::Parts);
        }
        files.push(StateFile { version, blob, bytes: bytes.to_vec() });
        body = rest;
    }
    let counted = u32::try_from(files.len()).is_ok_and(|count| count == fields.files.get());
    if counted && !files.is_empty() { Ok(files) } else { Err(ArchiveError::Parts) }
}

fn checksum(fields: &Fields, body: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(fields.as_bytes()).chain_update(body).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Key;
    use crate::state::file::{Identity, Label};
    use crate::tpm::TpmVersion;

    fn state_file(version: TpmVersion, blob: Blob) -> StateFile {
        let label = Label { version, blob, generation: 3, identity: Identity::new([1; 16]), written: None };
        let key = Key::from_master(&[9; 32]);
        StateFile { version, blob, bytes: file::encode(&label, b"payload", Some(&key)).unwrap() }
    }

    fn archive() -> Vec<u8> {
        encode(&[
            state_file(TpmVersion::V2_0, Blob::Permanent),
            state_file(TpmVersion::V2_0, Blob::Volatile),
            state_file(TpmVersion::V1_2, Blob::Permanent),
        ])
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let files = [state_file(TpmVersion::V1_2, Blob::SaveState), state_file(TpmVersion::V1_2, Blob::Permanent)];
        let decoded = decode(&encode(&files)).unwrap();
        assert_eq!(decoded.len(), 2);
        for (before, after) in files.iter().zip(&decoded) {
            assert_eq!((before.version, before.blob, &before.bytes), (after.version, after.blob, &after.bytes));
        }
    }

    #[test]
    fn every_single_bit_flip_is_found() {
        let good = archive();
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "byte {position} bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_and_addition_is_found() {
        let good = archive();
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "{length} bytes");
        }
        assert!(matches!(decode(&[&good[..], b"x"].concat()), Err(ArchiveError::Length { .. })));
    }

    #[test]
    fn nothing_and_twice_the_same_are_refused() {
        let file = state_file(TpmVersion::V2_0, Blob::Permanent);
        assert!(matches!(decode(&encode(&[])), Err(ArchiveError::Parts)));
        assert!(matches!(decode(&encode(&[file.clone(), file])), Err(ArchiveError::Parts)));
    }

    #[test]
    fn lengths_that_lie_are_refused_even_with_a_right_checksum() {
        let good = archive();
        for (length, error) in [(u64::MAX, ArchiveError::Parts), (0, ArchiveError::File(FormatError::Foreign))] {
            let mut bad = good.clone();
            bad[56..64].copy_from_slice(&length.to_le_bytes());
            let checksum = Sha256::new().chain_update(&bad[..24]).chain_update(&bad[56..]).finalize();
            bad[24..56].copy_from_slice(&checksum);
            assert_eq!(decode(&bad).unwrap_err(), error);
        }
    }
}
