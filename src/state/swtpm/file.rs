//! The format of one of swtpm's state files: a header, then parts that each have a tag and a length. All big-endian.
//!
//! | offset | size | content                                                                   |
//! |--------|------|---------------------------------------------------------------------------|
//! | 0      | 1    | format version: 2                                                         |
//! | 1      | 1    | lowest version that a reader must know: 1                                 |
//! | 2      | 2    | size of this header: 10                                                   |
//! | 4      | 2    | flags: 1 encrypted, 8 by a key of 256 bits                                |
//! | 6      | 4    | length of the file in bytes                                               |
//! | 10     |      | parts: tag (2 bytes), length (4 bytes), content                           |
//!
//! A plain file has one part, the blob (tag 1). An encrypted one has three: the blob in AES-CBC (2), padded as in PKCS #7
//! to a multiple of the *key's* length; the HMAC-SHA256 under the same key over the encrypted blob and the initial vector
//! (3); and the initial vector (6), which is as long as the key and of which AES takes the first block. A plain file has
//! no checksum: damage in it can only be found by libtpms.
//!
//! Source: swtpm's `swtpm_nvstore.c`, `swtpm_aes.c` and `tlv.c`.

use aes::cipher::block_padding::NoPadding;
use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use aes::{Aes128, Aes256};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::SwtpmKey;
use crate::state::file::MAX_PAYLOAD;

/// Bytes in the largest file that is read.
pub const MAX_FILE: usize = MAX_PAYLOAD + 1024;

const VERSION: u8 = 2;
const MIN_VERSION: u8 = 1;
const ENCRYPTED: u16 = 0x01;
const KEY_OF_256_BITS: u16 = 0x08;

const DATA: u16 = 1;
const ENCRYPTED_DATA: u16 = 2;
const HMAC: u16 = 3;
const INITIAL_VECTOR: u16 = 6;

const AES_BLOCK: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    version: u8,
    min_version: u8,
    own_size: U16,
    flags: U16,
    length: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PartHeader {
    tag: U16,
    length: U32,
}

/// Why the bytes of a file are not a blob that swtpm has written.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// Not one of swtpm's headers.
    #[error("it does not begin like a state file of swtpm")]
    Foreign,
    /// Another version of the format.
    #[error(
        "its format is version {0}, and this program reads version 2: start it once with a current swtpm, which writes it \
         anew"
    )]
    Version(u8),
    /// Cut off, or with something behind its end.
    #[error("it should be {expected} bytes long and is {found}: it was cut off or added to")]
    Length {
        /// Length that the header says, in bytes.
        expected: u32,
        /// Length found, in bytes.
        found: usize,
    },
    /// The parts are not those that the flags ask for.
    #[error("it does not have the parts that a state file of its kind has: it is damaged")]
    Parts,
    /// No key for an encrypted file.
    #[error("it is encrypted: give its key as swtpm had it, by --swtpm-key file=PATH or --swtpm-key pwdfile=PATH")]
    KeyMissing,
    /// A key for a plain file.
    #[error("it is not encrypted, and a key was given: leave --swtpm-key away if that is as it should be")]
    NotEncrypted,
    /// A key of the other length.
    #[error("it is encrypted by a key of {needed} bits, and the one given has {given}: see --swtpm-key …,mode=")]
    KeyLength {
        /// Bits of the key that the file needs.
        needed: usize,
        /// Bits of the key that was given.
        given: usize,
    },
    /// Not authenticated by the key.
    #[error("it was not written with the key that was given, or it is damaged")]
    Authentication,
}

/// Why a blob cannot be encrypted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum EncodeError {
    /// No initial vector.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// The cipher does not take what it is given.
    #[error("it cannot be encrypted")]
    Encryption,
}

/// The bytes of the file that holds `blob`, as swtpm reads them; encrypted if there is a key.
///
/// # Errors
/// [`EncodeError`].
pub fn encode(blob: &[u8], key: Option<&SwtpmKey>) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    let flags = match key {
        None => {
            put(&mut bytes, DATA, blob);
            0
        }
        Some(key) => {
            let mut vector = vec![0; key.bytes().len()];
            getrandom::fill(&mut vector)?;
            let encrypted = encrypt(blob, key, &vector).ok_or(EncodeError::Encryption)?;
            let hmac = hmac(key, &encrypted, &vector).ok_or(EncodeError::Encryption)?;
            put(&mut bytes, ENCRYPTED_DATA, &encrypted);
            put(&mut bytes, HMAC, &hmac.finalize().into_bytes());
            put(&mut bytes, INITIAL_VECTOR, &vector);
            if key.is_256_bits() { ENCRYPTED | KEY_OF_256_BITS } else { ENCRYPTED }
        }
    };
    let header = Header {
        version: VERSION,
        min_version: MIN_VERSION,
        own_size: U16::new(HEADER_SIZE),
        flags: U16::new(flags),
        length: U32::new(length_of(&bytes).saturating_add(u32::from(HEADER_SIZE))),
    };
    Ok([header.as_bytes(), &bytes].concat())
}

/// The blob in the bytes of a file. It is authentic if there is a key; else it is as it was written, or as somebody has
/// changed it.
///
/// # Errors
/// [`FormatError`].
pub fn decode(bytes: &[u8], key: Option<&SwtpmKey>) -> Result<Vec<u8>, FormatError> {
    let (header, parts) = Header::read_from_prefix(bytes).map_err(|_| FormatError::Foreign)?;
    if header.own_size.get() != HEADER_SIZE || !(MIN_VERSION..=VERSION).contains(&header.min_version) {
        return Err(FormatError::Foreign);
    }
    if header.version != VERSION {
        return Err(FormatError::Version(header.version));
    }
    if usize::try_from(header.length.get()) != Ok(bytes.len()) {
        return Err(FormatError::Length { expected: header.length.get(), found: bytes.len() });
    }
    let parts = Parts::parse(parts).ok_or(FormatError::Parts)?;
    match (header.flags.get(), key) {
        (0, None) => match parts {
            Parts { data: Some(blob), encrypted: None, hmac: None, vector: None } => Ok(blob.to_vec()),
            _ => Err(FormatError::Parts),
        },
        (0, Some(_)) => Err(FormatError::NotEncrypted),
        (flags, key) if flags & !KEY_OF_256_BITS == ENCRYPTED => {
            let key = key.ok_or(FormatError::KeyMissing)?;
            if key.is_256_bits() != (flags & KEY_OF_256_BITS != 0) {
                let (needed, given) = if key.is_256_bits() { (128, 256) } else { (256, 128) };
                return Err(FormatError::KeyLength { needed, given });
            }
            let Parts { data: None, encrypted: Some(encrypted), hmac: Some(tag), vector: Some(vector) } = parts else {
                return Err(FormatError::Parts);
            };
            let authentic = hmac(key, encrypted, vector).is_some_and(|hmac| hmac.verify_slice(tag).is_ok());
            let blob = authentic.then(|| decrypt(encrypted, key, vector));
            blob.flatten().ok_or(FormatError::Authentication)
        }
        _ => Err(FormatError::Foreign),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is 10")]
const HEADER_SIZE: u16 = size_of::<Header>() as u16;

/// The parts of a file; each may be there once.
#[derive(Clone, Copy, Default)]
struct Parts<'a> {
    data: Option<&'a [u8]>,
    encrypted: Option<&'a [u8]>,
    hmac: Option<&'a [u8]>,
    vector: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let mut parts = Self::default();
        while !bytes.is_empty() {
            let (header, rest) = PartHeader::read_from_prefix(bytes).ok()?;
            let (content, rest) = rest.split_at_checked(usize::try_from(header.length.get()).ok()?)?;
            let part = match header.tag.get() {
                DATA => &mut parts.data,
                ENCRYPTED_DATA => &mut parts.encrypted,
                HMAC => &mut parts.hmac,
                INITIAL_VECTOR => &mut parts.vector,
                _ => return None,
            };
            if part.replace(content).is_some() {
                return None;
            }
            bytes = rest;
        }
        Some(parts)
    }
}

fn put(bytes: &mut Vec<u8>, tag: u16, content: &[u8]) {
    let header = PartHeader { tag: U16::new(tag), length: U32::new(length_of(content)) };
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(content);
}

/// Blobs are far below 4 GiB.
fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// HMAC takes keys of any length, so that there always is one.
fn hmac(key: &SwtpmKey, encrypted: &[u8], vector: &[u8]) -> Option<Hmac<Sha256>> {
    Some(Hmac::<Sha256>::new_from_slice(key.bytes()).ok()?.chain_update(encrypted).chain_update(vector))
}

/// AES takes the first block of the initial vector.
fn first_block(vector: &[u8]) -> Option<&[u8; AES_BLOCK]> {
    vector.first_chunk()
}

/// Encrypts; key, vector and length always fit each other, so that there always is a result.
fn encrypt(blob: &[u8], key: &SwtpmKey, vector: &[u8]) -> Option<Vec<u8>> {
    let unit = key.bytes().len();
    let padding = unit.checked_sub(blob.len().checked_rem(unit)?)?;
    let length = blob.len().checked_add(padding)?;
    let mut bytes = blob.to_vec();
    bytes.resize(length, u8::try_from(padding).ok()?);
    let vector = first_block(vector)?;
    match key {
        SwtpmKey::Aes128(key) => {
            let cipher = cbc::Encryptor::<Aes128>::new(key[..].try_into().ok()?, vector.into());
            cipher.encrypt_padded::<NoPadding>(&mut bytes, length).ok()?;
        }
        SwtpmKey::Aes256(key) => {
            let cipher = cbc::Encryptor::<Aes256>::new(key[..].try_into().ok()?, vector.into());
            cipher.encrypt_padded::<NoPadding>(&mut bytes, length).ok()?;
        }
    }
    Some(bytes)
}

/// Decrypts what is authentic; `None` if it is not padded as swtpm pads.
fn decrypt(encrypted: &[u8], key: &SwtpmKey, vector: &[u8]) -> Option<Vec<u8>> {
    let unit = key.bytes().len();
    if vector.len() != unit {
        return None;
    }
    let vector = first_block(vector)?;
    let mut bytes = encrypted.to_vec();
    match key {
        SwtpmKey::Aes128(key) => {
            let cipher = cbc::Decryptor::<Aes128>::new(key[..].try_into().ok()?, vector.into());
            cipher.decrypt_padded::<NoPadding>(&mut bytes).ok()?;
        }
        SwtpmKey::Aes256(key) => {
            let cipher = cbc::Decryptor::<Aes256>::new(key[..].try_into().ok()?, vector.into());
            cipher.decrypt_padded::<NoPadding>(&mut bytes).ok()?;
        }
    }
    let padding = usize::from(*bytes.last()?);
    let blob = bytes.len().checked_sub(padding)?;
    let padded = (1..=unit).contains(&padding) && bytes.get(blob..)?.iter().all(|&byte| usize::from(byte) == padding);
    bytes.truncate(blob);
    padded.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> [Option<SwtpmKey>; 3] {
        [None, Some(SwtpmKey::aes_128([7; 16])), Some(SwtpmKey::aes_256([9; 32]))]
    }

    fn key() -> impl Strategy<Value = Option<SwtpmKey>> {
        (0..3usize).prop_map(|which| keys().into_iter().nth(which).flatten())
    }

    #[test]
    fn a_plain_file_is_a_header_a_part_header_and_the_blob() {
        let bytes = encode(b"blob", None).unwrap();
        assert_eq!(bytes, b"\x02\x01\x00\x0a\x00\x00\x00\x00\x00\x14\x00\x01\x00\x00\x00\x04blob");
    }

    #[test]
    fn an_encrypted_file_is_never_the_same_twice() {
        let [_, key, _] = keys();
        assert_ne!(encode(b"blob", key.as_ref()), encode(b"blob", key.as_ref()));
    }

    #[test]
    fn a_key_is_asked_for_and_must_fit() {
        let [_, short, long] = keys();
        let encrypted = encode(b"blob", short.as_ref()).unwrap();
        assert_eq!(decode(&encrypted, None), Err(FormatError::KeyMissing));
        assert_eq!(decode(&encrypted, long.as_ref()), Err(FormatError::KeyLength { needed: 128, given: 256 }));
        let other = SwtpmKey::aes_128([8; 16]);
        assert_eq!(decode(&encrypted, Some(&other)), Err(FormatError::Authentication));
        let plain = encode(b"blob", None).unwrap();
        assert_eq!(decode(&plain, short.as_ref()), Err(FormatError::NotEncrypted));
    }

    #[test]
    fn the_format_of_the_first_swtpm_is_named() {
        let mut bytes = encode(b"blob", None).unwrap();
        bytes[0] = 1;
        assert_eq!(decode(&bytes, None), Err(FormatError::Version(1)));
    }

    proptest! {
        #[test]
        fn a_blob_survives_the_way_into_a_file_and_back(
            blob in prop::collection::vec(any::<u8>(), 0..300),
            key in key(),
        ) {
            let bytes = encode(&blob, key.as_ref()).unwrap();
            prop_assert_eq!(decode(&bytes, key.as_ref()), Ok(blob));
        }

        #[test]
        fn a_flipped_bit_is_an_error_or_exactly_that_bit_of_a_plain_blob(
            blob in prop::collection::vec(any::<u8>(), 1..100),
            key in key(),
        ) {
            let bytes = encode(&blob, key.as_ref()).unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let blob_begins = size_of::<Header>() + size_of::<PartHeader>();
                match (decode(&flipped, key.as_ref()), key.is_none() && bit / 8 >= blob_begins) {
                    (Err(_), false) => {}
                    (Ok(found), true) => prop_assert_eq!(&found, &flipped[blob_begins..]),
                    (found, _) => prop_assert!(false, "bit {}: {:?}", bit, found),
                }
            }
        }

        #[test]
        fn every_truncation_and_every_addition_is_an_error(
            blob in prop::collection::vec(any::<u8>(), 0..100),
            key in key(),
            more in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            let bytes = encode(&blob, key.as_ref()).unwrap();
            for length in 0..bytes.len() {
                prop_assert!(decode(&bytes[..length], key.as_ref()).is_err());
            }
            prop_assert!(decode(&[&bytes[..], &more].concat(), key.as_ref()).is_err());
        }

        #[test]
        fn any_parts_behind_a_right_header_are_read_or_refused(
            parts in prop::collection::vec((0..8u16, prop::collection::vec(any::<u8>(), 0..40)), 0..5),
            cut in 0..20usize,
            flags in prop::sample::select(&[0, 1, 8, 9][..]),
            key in key(),
        ) {
            let mut body = Vec::new();
            for (tag, content) in parts {
                put(&mut body, tag, &content);
            }
            body.truncate(body.len().saturating_sub(cut));
            let header = Header {
                version: VERSION,
                min_version: MIN_VERSION,
                own_size: U16::new(HEADER_SIZE),
                flags: U16::new(flags),
                length: U32::new(length_of(&body) + u32::from(HEADER_SIZE)),
            };
            let _ = decode(&[header.as_bytes(), &body].concat(), key.as_ref());
        }

        #[test]
        fn any_bytes_are_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), key in key()) {
            let _ = decode(&bytes, key.as_ref());
        }
    }
}
