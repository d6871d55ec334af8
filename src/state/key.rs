//! The key under which state is sealed at rest.
//!
//! Whoever runs the TPM has it in a file (or hands it over by descriptor): random bytes, not a passphrase. A passphrase
//! can be guessed offline by whoever has a copy of the state, and a TPM that starts by itself has nobody who types one.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes in the master key.
pub const MASTER_SIZE: usize = 32;

/// Fewest and most bytes of a key as its owner gives it.
pub const GIVEN_SIZE: std::ops::RangeInclusive<usize> = 32..=4096;

/// Bytes by which sealing makes a payload longer.
pub(super) const TAG_SIZE: usize = 16;

/// A key with fewer different bytes than this is no random key: a file of zeros, for one, that a crash left behind.
const FEWEST_DIFFERENT_BYTES: usize = 8;

const MASTER: &[u8] = b"vfio-user-tpm: master key";

const STATE_FILE: &[u8] = b"vfio-user-tpm: state file";
const ANCHOR: &[u8] = b"vfio-user-tpm: rollback anchor";

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the key from {from}: {reason}")]
    Read {
        /// Where it was to come from.
        from: String,
        /// The system's reason.
        reason: io::Error,
    },
    /// It has the wrong size.
    #[error(
        "the key from {from} must be 32 to 4096 random bytes and {found}: make one with `head -c 32 /dev/urandom > FILE`"
    )]
    Size {
        /// Where it came from.
        from: String,
        /// What was found.
        found: String,
    },
    /// It is not random.
    #[error(
        "the key from {from} is not random, it has only {different} different bytes: make one with `head -c 32 /dev/urandom > FILE`"
    )]
    NotRandom {
        /// Where it came from.
        from: String,
        /// How many of its bytes differ.
        different: usize,
    },
}

/// The master key. Its bytes are wiped when it goes, and never printed.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; MASTER_SIZE]>);

impl Key {
    /// Reads the key from a file, or whatever has that path.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let from = path.display().to_string();
        let failed = |reason| KeyError::Read { from: from.clone(), reason };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() && metadata.mode() & 0o077 != 0 {
            log::warn!("the key file {from} is open to other users (mode {:o}): chmod 600 it", metadata.mode() & 0o777);
        }
        Self::read_from(file, from)
    }

    /// Reads the key from `reader` to its end. `from` says in messages where that is.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read_from(reader: impl Read, from: String) -> Result<Self, KeyError> {
        let limit = GIVEN_SIZE.end().saturating_add(1);
        // As large as it may become: a buffer that grows would leave copies behind.
        let mut given = Zeroizing::new(Vec::with_capacity(limit));
        if let Err(reason) = reader.take(limit as u64).read_to_end(&mut given) {
            return Err(KeyError::Read { from, reason });
        }
        if !GIVEN_SIZE.contains(&given.len()) {
            let found = if given.len() >= limit { "is more".to_owned() } else { format!("is {} bytes", given.len()) };
            return Err(KeyError::Size { from, found });
        }
        let different = (0..=u8::MAX).filter(|byte| given.contains(byte)).count();
        if different < FEWEST_DIFFERENT_BYTES {
            return Err(KeyError::NotRandom { from, different });
        }
        Ok(Self(derive(None, &given, MASTER)))
    }

    /// The key with these bytes, which [`master`](Self::master) gave.
    #[must_use]
    pub fn from_master(master: &[u8; MASTER_SIZE]) -> Self {
        Self(Zeroizing::new(*master))
    }

    /// The bytes of the key, for a process that is to have it too.
    #[must_use]
    pub fn master(&self) -> &[u8; MASTER_SIZE] {
        &self.0
    }

    /// Seals what is in `buffer`, and puts the tag behind it. False if it is too large for the cipher. Nothing else may
    /// ever be sealed with the same salt and nonce.
    pub(super) fn seal(&self, salt: &[u8; 32], nonce: &[u8; 24], header: &[u8], buffer: &mut Vec<u8>) -> bool {
        // A buffer that grows later would leave a copy of the payload behind.
        buffer.reserve_exact(TAG_SIZE);
        self.cipher(salt).encrypt_in_place(&XNonce::from(*nonce), header, buffer).is_ok()
    }

    /// Opens what [`seal`](Self::seal) has sealed. False if that was done with another key, or if it or the header is not
    /// what it was; the buffer is then of no use.
    pub(super) fn open(&self, salt: &[u8; 32], nonce: &[u8; 24], header: &[u8], buffer: &mut Vec<u8>) -> bool {
        self.cipher(salt).decrypt_in_place(&XNonce::from(*nonce), header, buffer).is_ok()
    }

    /// The authentication code of a rollback anchor's record.
    pub(super) fn authenticate(&self, record: &[u8]) -> [u8; 32] {
        self.anchor_code(record).finalize().into_bytes().into()
    }

    /// Whether a record has the right authentication code; compared in constant time.
    pub(super) fn is_authentic(&self, record: &[u8], code: &[u8; 32]) -> bool {
        self.anchor_code(record).verify_slice(code).is_ok()
    }

    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    fn anchor_code(&self, record: &[u8]) -> Hmac<Sha256> {
        let key = derive(None, &*self.0, ANCHOR);
        <Hmac<Sha256> as KeyInit>::new_from_slice(&*key).expect("any length").chain_update(record)
    }

    fn cipher(&self, salt: &[u8; 32]) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*derive(Some(salt), &*self.0, STATE_FILE)).into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// HKDF-SHA256 (RFC 5869), 32 bytes of it.
#[expect(clippy::expect_used, reason = "HKDF-SHA256 gives up to 8160 bytes")]
fn derive(salt: Option<&[u8; 32]>, from: &[u8], purpose: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(salt.map(|salt| &salt[..]), from).expand(purpose, &mut *key).expect("32 bytes");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(length: usize) -> Vec<u8> {
        (0..length).map(|n| u8::try_from(n * 37 % 251).unwrap()).collect()
    }

    fn read(bytes: &[u8]) -> Result<Key, KeyError> {
        Key::read_from(bytes, "a test".to_owned())
    }

    #[test]
    fn a_key_has_32_to_4096_bytes_and_all_of_them_count() {
        for length in [32, 33, 4096] {
            let bytes = random(length);
            let mut other = bytes.clone();
            *other.last_mut().unwrap() ^= 1;
            assert_ne!(read(&bytes).unwrap().master(), read(&other).unwrap().master());
        }
        for length in [0, 31, 4097] {
            assert!(matches!(read(&random(length)), Err(KeyError::Size { .. })), "{length}");
        }
    }

    #[test]
    fn an_endless_key_is_not_read_to_its_end() {
        assert!(matches!(Key::read(Path::new("/dev/zero")), Err(KeyError::Size { .. })));
    }

    #[test]
    fn what_is_obviously_not_random_is_no_key() {
        let error = read(&[0; 32]).unwrap_err().to_string();
        assert!(error.contains("/dev/urandom"), "{error}");
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", read(&random(32)).unwrap()), "Key");
    }

    #[test]
    fn it_is_derived_as_rfc_5869_says() {
        // Appendix A.3, the first 32 bytes.
        let expected = 0x8da4_e775_a563_c18f_715f_802a_063c_5a31_u128.to_be_bytes();
        let then = 0xb8a1_1f5c_5ee1_879e_c345_4e5f_3c73_8d2d_u128.to_be_bytes();
        assert_eq!(derive(None, &[0x0b; 22], &[])[..], [expected, then].concat());
    }

    #[test]
    fn only_the_same_key_salt_nonce_and_header_open_what_was_sealed() {
        let (key, other) = (read(&random(32)).unwrap(), read(&random(40)).unwrap());
        let mut sealed = b"payload".to_vec();
        assert!(key.seal(&[1; 32], &[2; 24], b"header", &mut sealed));
        assert_eq!(sealed.len(), 7 + TAG_SIZE);
        let opens = |key: &Key, salt, nonce, header: &[u8]| {
            let mut buffer = sealed.clone();
            key.open(&[salt; 32], &[nonce; 24], header, &mut buffer).then_some(buffer)
        };
        assert_eq!(opens(&key, 1, 2, b"header").as_deref(), Some(&b"payload"[..]));
        assert_eq!(opens(&Key::from_master(key.master()), 1, 2, b"header").as_deref(), Some(&b"payload"[..]));
        assert!(opens(&other, 1, 2, b"header").is_none());
        assert!(opens(&key, 0, 2, b"header").is_none());
        assert!(opens(&key, 1, 0, b"header").is_none());
        assert!(opens(&key, 1, 2, b"Header").is_none());
    }
}
