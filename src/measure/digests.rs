//! Digests of the same bytes in all banks that are computed here.

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::pcr_bank::PcrBank;

/// The banks that are computed: those that libtpms has.
pub const BANKS: [PcrBank; 4] = [PcrBank::SHA1, PcrBank::SHA256, PcrBank::SHA384, PcrBank::SHA512];

/// The digests of some bytes, one for each of [`BANKS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    sha1: [u8; 20],
    sha256: [u8; 32],
    sha384: [u8; 48],
    sha512: [u8; 64],
}

impl Digests {
    /// Those of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The one for `bank`, if it is one of [`BANKS`].
    #[must_use]
    pub fn get(&self, bank: PcrBank) -> Option<&[u8]> {
        match bank {
            PcrBank::SHA1 => Some(&self.sha1),
            PcrBank::SHA256 => Some(&self.sha256),
            PcrBank::SHA384 => Some(&self.sha384),
            PcrBank::SHA512 => Some(&self.sha512),
            _ => None,
        }
    }
}

/// Computes [`Digests`] piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Hasher {
    sha1: Sha1,
    sha256: Sha256,
    sha384: Sha384,
    sha512: Sha512,
}

impl Hasher {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha1.update(bytes);
        self.sha256.update(bytes);
        self.sha384.update(bytes);
        self.sha512.update(bytes);
    }

    /// The digests of all pieces.
    #[must_use]
    pub fn finish(self) -> Digests {
        Digests {
            sha1: self.sha1.finalize().into(),
            sha256: self.sha256.finalize().into(),
            sha384: self.sha384.finalize().into(),
            sha512: self.sha512.finalize().into(),
        }
    }
}

/// What a PCR of `bank` holds after it held `old` and was extended by `digest`; `None` for a bank not among [`BANKS`].
#[must_use]
pub fn extend(bank: PcrBank, old: &[u8], digest: &[u8]) -> Option<Vec<u8>> {
    Digests::of(&[old, digest].concat()).get(bank).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Hex;

    #[test]
    fn digests_are_those_of_the_standards_examples() {
        // FIPS 180-4's examples for "abc".
        let digests = Digests::of(b"abc");
        for (bank, begin) in BANKS.into_iter().zip(["a9993e36", "ba7816bf", "cb00753f", "ddaf35a1"]) {
            let digest = digests.get(bank).unwrap();
            assert!(Hex(digest).to_string().starts_with(begin), "{bank}");
            assert_eq!(Some(digest.len()), bank.digest_size());
        }
        assert_eq!(digests.get("sm3_256".parse().unwrap()), None);
    }

    #[test]
    fn pieces_give_the_digests_of_the_whole() {
        let mut hasher = Hasher::default();
        hasher.update(b"a");
        hasher.update(b"");
        hasher.update(b"bc");
        assert_eq!(hasher.finish(), Digests::of(b"abc"));
    }

    #[test]
    fn a_separator_alone_is_the_value_that_everybody_knows() {
        let digest = Digests::of(&[0; 4]);
        let value = extend(PcrBank::SHA256, &[0; 32], digest.get(PcrBank::SHA256).unwrap()).unwrap();
        assert!(Hex(&value).to_string().starts_with("3d458cfe55cc03ea1f443f1562beec8d"));
    }
}
