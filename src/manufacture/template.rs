//! The endorsement keys of a TPM 2.0, as the EK Credential Profile describes them: a public area without its key.

use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Public};
use openssl::rsa::Rsa;

use super::wire::Reader;

const TPM_ALG_RSA: u16 = 0x0001;
const TPM_ALG_AES: u16 = 0x0006;
const TPM_ALG_SHA256: u16 = 0x000b;
const TPM_ALG_SHA384: u16 = 0x000c;
const TPM_ALG_NULL: u16 = 0x0010;
const TPM_ALG_ECC: u16 = 0x0023;
const TPM_ALG_CFB: u16 = 0x0043;
const TPM_ECC_NIST_P384: u16 = 0x0004;

/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const ATTRIBUTES_LOW: u32 = 0x0003_00b2;
/// As before, and userWithAuth.
const ATTRIBUTES_HIGH: u32 = 0x0003_00f2;

/// `PolicyA_SHA256`: TPM2_PolicySecret of the endorsement hierarchy.
const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// `PolicyB_SHA384`: `PolicyA_SHA384`, or a policy in the NV index 0x01c07f02 (`PolicyC_SHA384`).
const POLICY_B_SHA384: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a, 0x07, 0x41, 0x48,
    0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47, 0xba, 0x09, 0x69, 0x96,
    0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];

/// An endorsement key, and where it and its certificate are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Template {
    /// L-1: RSA 2048, the one that everybody reads.
    RsaL1,
    /// H-3: ECC NIST P-384.
    EccH3,
}

impl Template {
    /// All that a TPM gets.
    pub const ALL: [Self; 2] = [Self::RsaL1, Self::EccH3];

    /// Its handle as a persistent object.
    #[must_use]
    pub const fn handle(self) -> u32 {
        match self {
            Self::RsaL1 => 0x8101_0001,
            Self::EccH3 => 0x8101_0016,
        }
    }

    /// The NV index of its certificate.
    #[must_use]
    pub const fn certificate_index(self) -> u32 {
        match self {
            Self::RsaL1 => 0x01c0_0002,
            Self::EccH3 => 0x01c0_0016,
        }
    }

    /// What it is called in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaL1 => "RSA 2048 EK",
            Self::EccH3 => "ECC P-384 EK",
        }
    }

    /// `TPMT_PUBLIC` up to the key.
    fn fixed(self) -> Vec<u8> {
        let (kind, name_algorithm, attributes, policy, key_bits): (_, _, u32, &[u8], u16) = match self {
            Self::RsaL1 => (TPM_ALG_RSA, TPM_ALG_SHA256, ATTRIBUTES_LOW, &POLICY_A_SHA256, 128),
            Self::EccH3 => (TPM_ALG_ECC, TPM_ALG_SHA384, ATTRIBUTES_HIGH, &POLICY_B_SHA384, 256),
        };
        let policy_size = u16::try_from(policy.len()).unwrap_or_default();
        let mut bytes = Vec::new();
        let mut put = |value: u16| bytes.extend(value.to_be_bytes());
        put(kind);
        put(name_algorithm);
        bytes.extend(attributes.to_be_bytes());
        bytes.extend(policy_size.to_be_bytes());
        bytes.extend(policy);
        let mut put = |value: u16| bytes.extend(value.to_be_bytes());
        // The symmetric algorithm for what is stored below the key, and no scheme.
        for value in [TPM_ALG_AES, key_bits, TPM_ALG_CFB, TPM_ALG_NULL] {
            put(value);
        }
        match self {
            // Bits, and the exponent 65537.
            Self::RsaL1 => bytes.extend([0x08, 0, 0, 0, 0, 0]),
            Self::EccH3 => {
                put(TPM_ECC_NIST_P384);
                // No key derivation.
                put(TPM_ALG_NULL);
            }
        }
        bytes
    }

    /// The template as `TPMT_PUBLIC`, for TPM2_CreatePrimary.
    #[must_use]
    pub fn public_area(self) -> Vec<u8> {
        let mut bytes = self.fixed();
        match self {
            // The low range has a key-sized field of zeroes in the place of the key; the high range an empty one.
            Self::RsaL1 => {
                bytes.extend([1, 0]);
                bytes.extend([0; 256]);
            }
            Self::EccH3 => bytes.extend([0; 4]),
        }
        bytes
    }

    /// The key in a `TPMT_PUBLIC` from a TPM, if it is of this template in everything else.
    ///
    /// # Errors
    /// libcrypto's, as for a point that is not on the curve.
    pub fn key_in(self, public_area: &[u8]) -> Result<Option<PKey<Public>>, ErrorStack> {
        let Some(unique) = public_area.strip_prefix(&self.fixed()[..]) else { return Ok(None) };
        let mut reader = Reader(unique);
        match (self, reader.sized(), reader.sized(), reader.0) {
            (Self::RsaL1, Some(modulus), None, []) if modulus.len() == 256 => {
                let modulus = BigNum::from_slice(modulus)?;
                let key = Rsa::from_public_components(modulus, BigNum::from_u32(0x1_0001)?)?;
                Ok(Some(PKey::from_rsa(key)?))
            }
            (Self::EccH3, Some(x), Some(y), []) if x.len() == 48 && y.len() == 48 => {
                let (x, y) = (BigNum::from_slice(x)?, BigNum::from_slice(y)?);
                let group = EcGroup::from_curve_name(Nid::SECP384R1)?;
                let key = EcKey::from_public_key_affine_coordinates(&group, &x, &y)?;
                key.check_key()?;
                Ok(Some(PKey::from_ec_key(key)?))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use openssl::hash::{Hasher, MessageDigest};

    use super::*;

    fn digest(algorithm: MessageDigest, parts: &[&[u8]]) -> Vec<u8> {
        let mut hasher = Hasher::new(algorithm).unwrap();
        for part in parts {
            hasher.update(part).unwrap();
        }
        hasher.finish().unwrap().to_vec()
    }

    /// TPM2_PolicySecret of the endorsement hierarchy without a policyRef, on a fresh policy digest.
    fn policy_secret(algorithm: MessageDigest) -> Vec<u8> {
        let first = digest(algorithm, &[&vec![0; algorithm.size()], &[0, 0, 1, 0x51], &[0x40, 0, 0, 0x0b]]);
        digest(algorithm, &[&first])
    }

    #[test]
    fn policy_a_is_what_policy_secret_gives() {
        assert_eq!(policy_secret(MessageDigest::sha256()), POLICY_A_SHA256);
    }

    #[test]
    fn policy_b_is_policy_a_or_the_one_in_the_nv_index() {
        let sha384 = MessageDigest::sha384();
        // TPM2_PolicyAuthorizeNV of index 0x01c07f02: SHA-384; TPMA_NV_POLICYWRITE, WRITEALL, PPREAD, OWNERREAD,
        // AUTHREAD, POLICYREAD, NO_DA, WRITTEN; under policy A; as long as a digest and its algorithm.
        let policy_a = policy_secret(sha384);
        let public = [&[0x01, 0xc0, 0x7f, 0x02, 0, 0x0c, 0x22, 0x0f, 0x10, 0x08, 0, 48][..], &policy_a, &[0, 50]];
        let name = [&[0, 0x0c][..], &digest(sha384, &public)].concat();
        let policy_c = digest(sha384, &[&[0; 48], &[0, 0, 1, 0x92], &name]);
        // TPM2_PolicyOR.
        let policy_b = digest(sha384, &[&[0; 48], &[0, 0, 1, 0x71], &policy_a, &policy_c]);
        assert_eq!(policy_b, POLICY_B_SHA384);
    }

    #[test]
    fn the_public_areas_have_the_sizes_of_the_profile() {
        assert_eq!(Template::RsaL1.public_area().len(), 314);
        assert_eq!(Template::EccH3.public_area().len(), 2 + 2 + 4 + 50 + 8 + 4 + 4);
    }

    #[test]
    fn a_key_of_another_kind_is_not_taken() {
        let mut other = Template::RsaL1.fixed();
        // A signing key.
        other[7] ^= 4;
        other.extend([1, 0]);
        other.extend([0xff; 256]);
        assert!(Template::RsaL1.key_in(&other).unwrap().is_none());
        assert!(Template::EccH3.key_in(&other).unwrap().is_none());
        assert!(Template::RsaL1.key_in(&[]).unwrap().is_none());
    }

    #[test]
    fn a_key_with_something_behind_it_is_not_taken() {
        let mut area = Template::RsaL1.fixed();
        area.extend([1, 0]);
        area.extend([0xff; 256]);
        assert!(Template::RsaL1.key_in(&area).unwrap().is_some());
        area.push(0);
        assert!(Template::RsaL1.key_in(&area).unwrap().is_none());
    }

    #[test]
    fn a_point_beside_the_curve_is_refused() {
        let mut area = Template::EccH3.fixed();
        for _ in 0..2 {
            area.extend([0, 48]);
            area.extend([1; 48]);
        }
        assert!(Template::EccH3.key_in(&area).is_err());
    }
}
