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

/// Most banks that a TPM is believed to have; there are not as many hash algorithms.
const MAX_BANKS: u32 = 16;
const TPM_CAP_PCRS: u32 = 5;

/// The banks that a TPM knows, and whether each is active, that is, has any PCRs: by the parameters of its response to
/// `TPM2_GetCapability(TPM_CAP_PCRS)`. `None` if they are not well-formed, or not all.
#[must_use]
pub fn allocation(parameters: &[u8]) -> Option<Vec<(PcrBank, bool)>> {
    // moreData, capability, and the count of a TPML_PCR_SELECTION.
    let (head, mut selections) = parameters.split_first_chunk::<9>()?;
    let [more_data, capability @ .., c0, c1, c2, c3] = *head;
    let count = u32::from_be_bytes([c0, c1, c2, c3]);
    if more_data != 0 || u32::from_be_bytes(capability) != TPM_CAP_PCRS || count > MAX_BANKS {
        return None;
    }
    let mut banks = Vec::new();
    for _ in 0..count {
        let (&[high, low, size], rest) = selections.split_first_chunk::<3>()?;
        let (select, rest) = rest.split_at_checked(size.into())?;
        banks.push((PcrBank(u16::from_be_bytes([high, low])), select.iter().any(|byte| *byte != 0)));
        selections = rest;
    }
    Some(banks)
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
