//! The format of a state file: a fixed header, then the payload as the TPM engine gave it, or sealed.
//!
//! | offset | size | content                                                                    |
//! |--------|------|----------------------------------------------------------------------------|
//! | 0      | 8    | magic `VFUTPMST`                                                           |
//! | 8      | 4    | format version: 2                                                          |
//! | 12     | 1    | TPM version: 1 (TPM 1.2) or 2 (TPM 2.0)                                    |
//! | 13     | 1    | blob: 1 permanent, 2 savestate, 3 volatile                                 |
//! | 14     | 1    | 0 plain, 1 sealed                                                          |
//! | 15     | 1    | zero                                                                       |
//! | 16     | 8    | length of the body in bytes                                                |
//! | 24     | 8    | generation: grows by one with each write of this blob                      |
//! | 32     | 8    | when it was written: seconds since 1970-01-01 UTC by the machine's clock    |
//! | 40     | 16   | identity of the state that this blob belongs to: random                    |
//! | 56     | 32   | sealed: salt, random; plain: zeros                                         |
//! | 88     | 24   | sealed: nonce, random; plain: zeros                                        |
//! | 112    | 32   | SHA-256 over the bytes 0 to 111 and the body                               |
//! | 144    |      | body: the payload; sealed: XChaCha20-Poly1305's ciphertext and tag of it   |
//!
//! Numbers are little-endian. The sealing key is derived from the master key and the salt; the bytes 0 to 111 are its
//! associated data. The checksum finds damage, not an attacker; since it is over what is in the file, it needs no key,
//! and it tells damage from a wrong key: what is undamaged and yet does not open was sealed with another key.
//!
//! Version 1 is read and never written: magic, format version, TPM version, blob, two zero bytes, length (24 bytes in
//! all), SHA-256 over these and the payload, payload. It counts as generation 0 and has no identity.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Blob;
use super::key::{Key, TAG_SIZE};
use crate::tpm::TpmVersion;

/// Bytes in the largest payload. libtpms' NV memory is far smaller.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// Bytes in the largest state file.
pub const MAX_FILE: usize = size_of::<Header>() + MAX_PAYLOAD + TAG_SIZE;

const MAGIC: [u8; 8] = *b"VFUTPMST";
const FORMAT_1: u32 = 1;
const FORMAT: u32 = 2;

/// What both versions begin with.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Prefix {
    magic: [u8; 8],
    format: U32,
    tpm_version: u8,
    blob: u8,
    sealed: u8,
    zero: u8,
    length: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    prefix: Prefix,
    generation: U64,
    written: U64,
    identity: [u8; 16],
    salt: [u8; 32],
    nonce: [u8; 24],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    fields: Fields,
    checksum: [u8; 32],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header1 {
    prefix: Prefix,
    checksum: [u8; 32],
}

/// What a state is called, to tell it from others: random, made when a TPM is first stored, and never all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity([u8; 16]);

impl Identity {
    /// A new one.
    ///
    /// # Errors
    /// That the system has no random numbers.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Self::new(bytes).ok_or_else(|| io::Error::other("the system's random numbers are all zero"))
    }

    /// The identity with these bytes; `None` if they are all zero.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the header of a state file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Version of the TPM.
    pub version: TpmVersion,
    /// Which of its blobs.
    pub blob: Blob,
    /// How often this blob was written; 0 in files of format version 1.
    pub generation: u64,
    /// The state that it belongs to; `None` in files of format version 1.
    pub identity: Option<Identity>,
    /// When it was written, by the clock of the machine; `None` in files of format version 1.
    pub written: Option<SystemTime>,
}

/// A state file whose checksum is right. Nothing is authenticated yet.
#[derive(Clone, Copy)]
pub struct Undamaged<'a> {
    /// What its header says.
    pub label: Label,
    /// Format version, 1 or 2.
    pub format: u32,
    sealed: Option<&'a Fields>,
    body: &'a [u8],
}

/// Why the bytes of a file are not the state that was asked for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// Not written by this program.
    #[error("it does not begin like a state file of vfio-user-tpm")]
    Foreign,
    /// Written by a later version of this program.
    #[error(
        "its format is version {0}, and this program reads versions 1 and 2: use the vfio-user-tpm that wrote it, or a newer one"
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
    /// Undamaged, and yet with values that there are not.
    #[error("its header has a {0} that there is not: it was not written by vfio-user-tpm")]
    Field(&'static str),
}

/// Why an undamaged state file does not open.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum OpenError {
    /// It is sealed.
    #[error("it is sealed, and no key was given: give its key with --key-file or --key-fd")]
    NoKey,
    /// It is plain.
    #[error(
        "it is not sealed, although a key was given: seal the state with `vfio-user-tpm state rekey --new-key-file`, or \
         give no key"
    )]
    NotSealed,
    /// Sealed with another key.
    #[error("it is sealed with another key than the one given (or somebody has changed it on purpose)")]
    OtherKey,
}

/// The bytes of the file that holds `payload`, sealed if there is a key.
///
/// # Errors
/// A payload larger than [`MAX_PAYLOAD`]; that the system has no random numbers.
pub fn encode(label: &Label, payload: &[u8], key: Option<&Key>) -> io::Result<Vec<u8>> {
    if payload.len() > MAX_PAYLOAD {
        return Err(io::Error::other(format!("{} bytes are more than a state may have: {MAX_PAYLOAD}", payload.len())));
    }
    let mut body = payload.to_vec();
    let length = payload.len().saturating_add(if key.is_some() { TAG_SIZE } else { 0 });
    let since_1970 = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let prefix = Prefix {
        magic: MAGIC,
        format: U32::new(FORMAT),
        tpm_version: version_byte(label.version),
        blob: blob_byte(label.blob),
        sealed: key.is_some().into(),
        zero: 0,
        length: U64::new(length as u64),
    };
    let mut fields = Fields {
        prefix,
        generation: U64::new(label.generation),
        written: U64::new(label.written.map_or(0, since_1970)),
        identity: label.identity.map_or([0; 16], Identity::bytes),
        salt: [0; 32],
        nonce: [0; 24],
    };
    if let Some(key) = key {
        getrandom::fill(&mut fields.salt)?;
        getrandom::fill(&mut fields.nonce)?;
        if !key.seal(&fields.salt, &fields.nonce, fields.as_bytes(), &mut body) {
            return Err(io::Error::other("it cannot be sealed"));
        }
    }
    let header = Header { fields, checksum: checksum(fields.as_bytes(), &body) };
    Ok([header.as_bytes(), &body].concat())
}

/// Finds out whether the bytes of a file are a state file, whole and undamaged. Needs no key.
///
/// # Errors
/// [`FormatError`]; nothing in the file is trusted before the checksum over all of it is right.
pub fn inspect(bytes: &[u8]) -> Result<Undamaged<'_>, FormatError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(FormatError::Foreign);
    }
    let found = bytes.len() as u64;
    let too_short = FormatError::Length { expected: size_of::<Header>() as u64, found };
    let (prefix, _) = Prefix::ref_from_prefix(bytes).map_err(|_| too_short)?;
    let (covered, checksum_found, body, fields) = match prefix.format.get() {
        FORMAT_1 => {
            let (header, body) = Header1::ref_from_prefix(bytes).map_err(|_| too_short)?;
            (header.prefix.as_bytes(), header.checksum, body, None)
        }
        FORMAT => {
            let (header, body) = Header::ref_from_prefix(bytes).map_err(|_| too_short)?;
            (header.fields.as_bytes(), header.checksum, body, Some(&header.fields))
        }
        other => return Err(FormatError::Format(other)),
    };
    if prefix.length.get() != body.len() as u64 {
        let header = found.saturating_sub(body.len() as u64);
        return Err(FormatError::Length { expected: prefix.length.get().saturating_add(header), found });
    }
    if checksum(covered, body) != checksum_found {
        return Err(FormatError::Checksum);
    }
    if prefix.zero != 0 {
        return Err(FormatError::Field("reserved byte"));
    }
    let sealed = match (prefix.sealed, fields) {
        (0, _) => None,
        (1, Some(fields)) => Some(fields),
        _ => return Err(FormatError::Field("kind of protection")),
    };
    let label = Label {
        version: version_of(prefix.tpm_version).ok_or(FormatError::Field("TPM version"))?,
        blob: blob_of(prefix.blob).ok_or(FormatError::Field("kind of blob"))?,
        generation: fields.map_or(0, |fields| fields.generation.get()),
        identity: fields.and_then(|fields| Identity::new(fields.identity)),
        written: fields
            .and_then(|fields| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(fields.written.get()))),
    };
    Ok(Undamaged { label, format: prefix.format.get(), sealed, body })
}

impl Undamaged<'_> {
    /// Whether it is sealed.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// Bytes in the payload.
    #[must_use]
    pub fn payload_length(&self) -> usize {
        self.body.len().saturating_sub(if self.is_sealed() { TAG_SIZE } else { 0 })
    }

    /// The payload. With a key, it and the label are then known to be from somebody who has that key.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(&self, key: Option<&Key>) -> Result<Vec<u8>, OpenError> {
        match (self.sealed, key) {
            (None, None) => Ok(self.body.to_vec()),
            (Some(_), None) => Err(OpenError::NoKey),
            (None, Some(_)) => Err(OpenError::NotSealed),
            (Some(fields), Some(key)) => {
                let mut body = self.body.to_vec();
                let opened = key.open(&fields.salt, &fields.nonce, fields.as_bytes(), &mut body);
                if opened { Ok(body) } else { Err(OpenError::OtherKey) }
            }
        }
    }
}

fn checksum(header: &[u8], body: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(header).chain_update(body).finalize().into()
}

const fn version_byte(version: TpmVersion) -> u8 {
    match version {
        TpmVersion::V1_2 => 1,
        TpmVersion::V2_0 => 2,
    }
}

fn version_of(byte: u8) -> Option<TpmVersion> {
    [TpmVersion::V1_2, TpmVersion::V2_0].into_iter().find(|&version| version_byte(version) == byte)
}

const fn blob_byte(blob: Blob) -> u8 {
    match blob {
        Blob::Permanent => 1,
        Blob::SaveState => 2,
        Blob::Volatile => 3,
    }
}

fn blob_of(byte: u8) -> Option<Blob> {
    Blob::ALL.into_iter().find(|&blob| blob_byte(blob) == byte)
}

#[cfg(test)]
pub(super) mod tests;
