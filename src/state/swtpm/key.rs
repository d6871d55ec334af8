//! The key of an encrypted swtpm state, named in the words of swtpm's own option `--key`.
//!
//! Source: swtpm(8), option `--key`; swtpm's `key.c` and `common.c`.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;

use sha2::{Digest, Sha512};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes in the largest key file: what swtpm reads of one, `0x` and 64 digits and the end of the line.
const MAX_KEY_FILE: usize = 67;
/// Bytes in the largest passphrase file that is read. swtpm knows no limit; nobody types this.
const MAX_PASSPHRASE: usize = 64 * 1024;

/// swtpm's key derivation has the same salt for everybody.
const PBKDF2_SALT: &[u8] = b"swtpm";
const PBKDF2_ROUNDS: u32 = 1000;

/// The key of an encrypted swtpm state.
#[derive(Clone)]
pub enum SwtpmKey {
    /// For AES-128-CBC.
    Aes128(Zeroizing<[u8; 16]>),
    /// For AES-256-CBC.
    Aes256(Zeroizing<[u8; 32]>),
}

/// A key is a secret.
impl std::fmt::Debug for SwtpmKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_256_bits() { "SwtpmKey(256 bits)" } else { "SwtpmKey(128 bits)" })
    }
}

impl SwtpmKey {
    /// A key of 128 bits.
    #[must_use]
    pub fn aes_128(key: [u8; 16]) -> Self {
        Self::Aes128(Zeroizing::new(key))
    }

    /// A key of 256 bits.
    #[must_use]
    pub fn aes_256(key: [u8; 32]) -> Self {
        Self::Aes256(Zeroizing::new(key))
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let short = bytes.try_into().ok().map(Self::aes_128);
        short.or_else(|| bytes.try_into().ok().map(Self::aes_256))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Aes128(key) => &key[..],
            Self::Aes256(key) => &key[..],
        }
    }

    pub(super) fn is_256_bits(&self) -> bool {
        matches!(self, Self::Aes256(_))
    }
}

/// Why there is no key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// Not swtpm's words.
    #[error(
        "“{0}” is not known here: expected what swtpm's --key takes, \
         file=PATH or fd=N[,format=hex|binary] or pwdfile=PATH or pwdfd=N[,kdf=pbkdf2|sha512], and [,mode=aes-128-cbc|aes-256-cbc]"
    )]
    Syntax(String),
    /// No place to read it from, or several.
    #[error("give one of file=PATH, fd=N, pwdfile=PATH and pwdfd=N")]
    Source,
    /// Deleting files is not this program's business.
    #[error("remove=true is not done here: leave it away, and delete the file yourself once it is not needed any more")]
    Remove,
    /// The file cannot be read.
    #[error("cannot read the key of the swtpm state from {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// It does not hold a key.
    #[error("{} does not hold a key of the swtpm state: expected {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What a file of this kind holds.
        expected: String,
    },
}

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySource {
    path: PathBuf,
    content: Content,
    /// Bytes of the key that the mode takes: 16 or 32.
    length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Hex,
    Binary,
    PassphrasePbkdf2,
    PassphraseSha512,
}

/// Takes what swtpm's `--key` takes.
impl FromStr for KeySource {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (mut key, mut passphrase) = (Vec::new(), Vec::new());
        let (mut binary, mut sha512, mut length) = (false, false, 16);
        for option in text.split(',') {
            let descriptor = |number: &str| {
                number.parse::<u16>().map(|number| PathBuf::from(format!("/proc/self/fd/{number}"))).ok()
            };
            let syntax = || KeyError::Syntax(option.to_owned());
            match option.split_once('=').ok_or_else(syntax)? {
                ("file", path) => key.push(PathBuf::from(path)),
                ("pwdfile", path) => passphrase.push(PathBuf::from(path)),
                ("fd", number) => key.push(descriptor(number).ok_or_else(syntax)?),
                ("pwdfd", number) => passphrase.push(descriptor(number).ok_or_else(syntax)?),
                ("format", "hex") => binary = false,
                ("format", "binary") => binary = true,
                ("kdf", "pbkdf2") => sha512 = false,
                ("kdf", "sha512") => sha512 = true,
                ("mode", "aes-cbc" | "aes-128-cbc") => length = 16,
                ("mode", "aes-256-cbc") => length = 32,
                ("remove", "false" | "0") => {}
                ("remove", _) => return Err(KeyError::Remove),
                _ => return Err(syntax()),
            }
        }
        let (path, content) = match (&mut key[..], &mut passphrase[..]) {
            ([path], []) => (path, if binary { Content::Binary } else { Content::Hex }),
            ([], [path]) => (path, if sha512 { Content::PassphraseSha512 } else { Content::PassphrasePbkdf2 }),
            _ => return Err(KeyError::Source),
        };
        Ok(Self { path: std::mem::take(path), content, length })
    }
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// [`KeyError::Read`] and [`KeyError::Content`].
    pub fn read(&self) -> Result<SwtpmKey, KeyError> {
        let limit = match self.content {
            Content::Hex | Content::Binary => MAX_KEY_FILE,
            Content::PassphrasePbkdf2 | Content::PassphraseSha512 => MAX_PASSPHRASE,
        };
        let bytes = self.read_file(limit).map_err(|reason| KeyError::Read { path: self.path.clone(), reason })?;
        self.key_of(&bytes).ok_or_else(|| KeyError::Content {
            path: self.path.clone(),
            expected: match self.content {
                Content::Hex => format!("{} hexadecimal digits", self.length.saturating_mul(2)),
                Content::Binary => format!("{} bytes", self.length),
                Content::PassphrasePbkdf2 | Content::PassphraseSha512 => format!("at most {MAX_PASSPHRASE} bytes"),
            },
        })
    }

    /// Of a file that is larger, one byte more than `limit`.
    fn read_file(&self, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
        // As large as it may become: growing would leave copies of the secret behind.
        let limit = limit.saturating_add(1);
        let mut bytes = Zeroizing::new(Vec::with_capacity(limit));
        File::open(&self.path)?.take(limit as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn key_of(&self, bytes: &[u8]) -> Option<SwtpmKey> {
        match self.content {
            Content::Hex => self.hex_key(bytes),
            // As swtpm, which takes a shorter key for what it is, whatever the mode says.
            Content::Binary if bytes.len() <= self.length => SwtpmKey::from_bytes(bytes),
            Content::PassphrasePbkdf2 | Content::PassphraseSha512 if bytes.len() <= MAX_PASSPHRASE => {
                let mut hash = Zeroizing::new([0; 64]);
                if self.content == Content::PassphraseSha512 {
                    hash.copy_from_slice(&Sha512::digest(bytes));
                } else {
                    pbkdf2::pbkdf2_hmac::<Sha512>(bytes, PBKDF2_SALT, PBKDF2_ROUNDS, &mut hash[..]);
                }
                SwtpmKey::from_bytes(hash.get(..self.length)?)
            }
            Content::Binary | Content::PassphrasePbkdf2 | Content::PassphraseSha512 => None,
        }
    }

    /// Digits up to the first white space, perhaps after `0x`.
    fn hex_key(&self, text: &[u8]) -> Option<SwtpmKey> {
        let text = text.strip_prefix(b"0x").unwrap_or(text);
        let digits = text.split(u8::is_ascii_whitespace).next()?;
        if digits.len() != self.length.checked_mul(2)? {
            return None;
        }
        let mut key = Zeroizing::new(Vec::with_capacity(self.length));
        for pair in digits.chunks_exact(2) {
            let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16);
            let byte = digit(0)?.checked_mul(16)?.checked_add(digit(1)?)?;
            key.push(u8::try_from(byte).ok()?);
        }
        SwtpmKey::from_bytes(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &str, content: &[u8]) -> Result<Vec<u8>, String> {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        std::fs::write(&path, content).unwrap();
        let options = options.replace("PATH", path.to_str().unwrap());
        let source: KeySource = options.parse().map_err(|error: KeyError| error.to_string())?;
        source.read().map(|key| key.bytes().to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_in_hexadecimal_is_the_default() {
        let digits = b"0x000102030405060708090a0b0c0d0e0F\n";
        let key: Vec<u8> = (0..16).collect();
        assert_eq!(read("file=PATH", digits), Ok(key.clone()));
        assert_eq!(read("file=PATH,mode=aes-128-cbc,format=hex", &digits[2..]), Ok(key));
        let long: Vec<u8> = [&digits[..34], &digits[2..34]].concat();
        assert_eq!(read("file=PATH,mode=aes-256-cbc", &long).map(|key| key.len()), Ok(32));
    }

    #[test]
    fn a_key_of_another_length_is_refused_with_the_length_that_it_should_have() {
        for (options, content, expected) in [
            ("file=PATH", &b"0x0001"[..], "32 hexadecimal digits"),
            ("file=PATH,mode=aes-256-cbc", b"000102030405060708090a0b0c0d0e0f", "64 hexadecimal digits"),
            ("file=PATH", b"000102030405060708090a0b0c0d0e0g", "32 hexadecimal digits"),
            ("file=PATH,format=binary", &[1; 17], "16 bytes"),
            ("file=PATH,format=binary,mode=aes-256-cbc", &[1; 68], "32 bytes"),
            ("file=PATH,format=binary", &[], "16 bytes"),
        ] {
            let error = read(options, content).unwrap_err();
            assert!(error.contains(expected), "{options}: {error}");
        }
    }

    #[test]
    fn passphrases_are_stretched_as_swtpm_does() {
        // openssl kdf -keylen 16 -kdfopt digest:SHA512 -kdfopt pass:secret -kdfopt salt:swtpm -kdfopt iter:1000 PBKDF2
        let expected = [0xa1, 0xfe, 0x24, 0x52, 0xf0, 0x00, 0x8e, 0x5d, 0x0f, 0x23, 0x10, 0x19, 0xb7, 0x48, 0x12, 0x0f];
        assert_eq!(read("pwdfile=PATH", b"secret").unwrap(), expected);
        let hashed = read("pwdfile=PATH,kdf=sha512,mode=aes-256-cbc", b"abc").unwrap();
        // FIPS 180-4's example.
        assert_eq!(hashed[..4], [0xdd, 0xaf, 0x35, 0xa1]);
        assert_eq!(hashed.len(), 32);
    }

    #[test]
    fn an_endless_passphrase_is_refused() {
        let source: KeySource = "pwdfile=/dev/zero".parse().unwrap();
        assert!(matches!(source.read(), Err(KeyError::Content { .. })));
    }

    #[test]
    fn what_swtpm_would_not_take_is_refused() {
        for (options, expected) in [
            ("", "file=PATH"),
            ("/path", "file=PATH"),
            ("mode=aes-cbc", "give one of"),
            ("file=/a,pwdfile=/b", "give one of"),
            ("file=/a,format=base64", "format=hex|binary"),
            ("pwdfd=-1", "pwdfd=N"),
            ("file=/a,remove=true", "leave it away"),
        ] {
            let error = options.parse::<KeySource>().unwrap_err().to_string();
            assert!(error.contains(expected), "{options}: {error}");
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", SwtpmKey::aes_128([0x41; 16])), "SwtpmKey(128 bits)");
    }
}
