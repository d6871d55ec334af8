//! A PCR bank, by its hash algorithm: the identifiers of the TCG Algorithm Registry, with the names of tpm2-tools.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A PCR bank, by its hash algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrBank(u16);

/// Identifier, name, and bytes in a digest.
const KNOWN: [(u16, &str, usize); 8] = [
    (0x0004, "sha1", 20),
    (0x000b, "sha256", 32),
    (0x000c, "sha384", 48),
    (0x000d, "sha512", 64),
    (0x0012, "sm3_256", 32),
    (0x0027, "sha3_256", 32),
    (0x0028, "sha3_384", 48),
    (0x0029, "sha3_512", 64),
];

impl PcrBank {
    /// TPM_ALG_SHA1.
    pub const SHA1: Self = Self(0x0004);
    /// TPM_ALG_SHA256.
    pub const SHA256: Self = Self(0x000b);
    /// TPM_ALG_SHA384.
    pub const SHA384: Self = Self(0x000c);
    /// TPM_ALG_SHA512.
    pub const SHA512: Self = Self(0x000d);

    /// The bank of this algorithm (`TPM_ALG_ID`), whether or not it is one that has a name here.
    #[must_use]
    pub const fn from_algorithm(algorithm: u16) -> Self {
        Self(algorithm)
    }

    /// The algorithm's `TPM_ALG_ID`.
    #[must_use]
    pub const fn algorithm(self) -> u16 {
        self.0
    }

    /// Bytes in a digest of this algorithm, if it is known.
    #[must_use]
    pub fn digest_size(self) -> Option<usize> {
        KNOWN.iter().find(|(algorithm, ..)| *algorithm == self.0).map(|(_, _, size)| *size)
    }
}

impl fmt::Display for PcrBank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KNOWN.iter().find(|(algorithm, ..)| *algorithm == self.0) {
            Some((_, name, _)) => f.write_str(name),
            None => write!(f, "{:#06x}", self.0),
        }
    }
}

/// Not the name of a PCR bank.
#[derive(Debug, Error)]
#[error("\"{0}\" is no PCR bank: expected some of sha1, sha256, sha384, sha512, sm3_256, sha3_256, sha3_384, sha3_512")]
pub struct BankNameError(String);

impl FromStr for PcrBank {
    type Err = BankNameError;

    fn from_str(name: &str) -> Result<Self, BankNameError> {
        let known = KNOWN.iter().find(|(_, known, _)| *known == name);
        known.map(|(algorithm, ..)| Self(*algorithm)).ok_or_else(|| BankNameError(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_is_shown_as_it_is_named() {
        for (algorithm, name, size) in KNOWN {
            let bank: PcrBank = name.parse().unwrap();
            assert_eq!(
                (bank.to_string().as_str(), bank.algorithm(), bank.digest_size()),
                (name, algorithm, Some(size))
            );
        }
        assert!("md5".parse::<PcrBank>().unwrap_err().to_string().contains("sha256"));
        assert_eq!(PcrBank::from_algorithm(0x1234).to_string(), "0x1234");
    }
}
