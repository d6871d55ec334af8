//! What the parameters of commands and responses consist of.
//!
//! Source: TPM 2.0 Library Part 2, Structures, by the sections that are named.

use super::copying::Copying;

/// A piece of what a command or a response consists of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// So many bytes that are no secret.
    Shown(usize),
    /// A `TPM2B` of something that is no secret.
    Public,
    /// A `TPM2B` of which only the size is shown.
    Secret,
    /// A `TPML`: a count (u32), and so many times these parts.
    List(&'static [Part]),
    /// The bits of a `TPMS_PCR_SELECTION` behind their size (10.6.2).
    PcrBits,
    /// `TPMT_HA` (10.3.2).
    Digest,
    /// A `TPMT_HA` of something that is hidden: its algorithm.
    SecretDigest,
    /// A `TPM2B_PUBLIC` (12.2.5) from outside: of an asymmetric key, the `unique` is the public half. Of others it is a hash
    /// over what is secret and a seed, which may be empty, so only the size is shown.
    PublicKey,
    /// `TPMT_SYM_DEF` or `TPMT_SYM_DEF_OBJECT` (11.1.6).
    Symmetric,
    /// `TPMT_SIG_SCHEME`, `TPMT_RSA_DECRYPT` or `TPMT_KDF_SCHEME` (11.2).
    Scheme,
    /// `TPMS_CAPABILITY_DATA` (10.10.1): shown, unless it is the manufacturer's own.
    Capability,
    /// All that is left, of which the TPM is the author.
    ShownRest,
    /// All that is left.
    HiddenRest,
}

/// `TPML_PCR_SELECTION`.
pub(super) const PCR_SELECTION: Part = Part::List(&[Part::Shown(2), Part::PcrBits]);
/// `TPML_DIGEST`.
pub(super) const DIGESTS: Part = Part::List(&[Part::Public]);
/// `TPML_DIGEST_VALUES`.
pub(super) const DIGEST_VALUES: Part = Part::List(&[Part::Digest]);
/// `TPML_DIGEST_VALUES` of something that is hidden.
pub(super) const SECRET_DIGEST_VALUES: Part = Part::List(&[Part::SecretDigest]);
/// `TPML_DIGEST` of something that is hidden.
pub(super) const SECRET_DIGESTS: Part = Part::List(&[Part::Secret]);
/// `TPML_CC`.
pub(super) const COMMAND_CODES: Part = Part::List(&[Part::Shown(4)]);
/// `TPML_ALG`.
pub(super) const ALGORITHMS: Part = Part::List(&[Part::Shown(2)]);

const TPM_CAP_VENDOR_PROPERTY: u32 = 0x100;

// TPM_ALG_ID (6.3).
const RSA: u16 = 0x01;
const MGF1: u16 = 0x07;
const HMAC: u16 = 0x05;
const XOR: u16 = 0x0a;
const NULL: u16 = 0x10;
const RSASSA: u16 = 0x14;
const RSAES: u16 = 0x15;
const RSAPSS: u16 = 0x16;
const OAEP: u16 = 0x17;
const ECDSA: u16 = 0x18;
const ECDAA: u16 = 0x1a;
const SM2: u16 = 0x1b;
const ECSCHNORR: u16 = 0x1c;
const KDF1_SP800_56A: u16 = 0x20;
const KDF2: u16 = 0x21;
const KDF1_SP800_108: u16 = 0x22;
const ECC: u16 = 0x23;

/// Copies parts, one after the other; `None` if the message has others.
pub(super) fn copy(copy: &mut Copying<'_>, parts: &[Part]) -> Option<()> {
    parts.iter().try_for_each(|part| part.copy(copy))
}

impl Part {
    /// Whether it is a `TPM2B`.
    pub(super) fn is_sized(self) -> bool {
        matches!(self, Self::Public | Self::Secret | Self::PublicKey)
    }

    fn copy(self, copy: &mut Copying<'_>) -> Option<()> {
        match self {
            Self::Shown(count) => copy.show(count).map(drop),
            Self::Public => {
                let size = copy.u16()?;
                copy.show(size.into()).map(drop)
            }
            Self::Secret => {
                let size = copy.u16()?;
                copy.hide(size.into())
            }
            // Each element has at least one byte, so the count is no promise to believe.
            Self::List(parts) => {
                let count = copy.u32()?;
                (0..count).try_for_each(|_| self::copy(copy, parts))
            }
            Self::PcrBits => {
                let size = copy.u8()?;
                copy.show(size.into()).map(drop)
            }
            Self::Digest => {
                let size = digest_size(copy.u16()?)?;
                copy.show(size).map(drop)
            }
            Self::SecretDigest => {
                let size = digest_size(copy.u16()?)?;
                copy.hide(size)
            }
            Self::PublicKey => {
                let kind = copy.behind(2)?.u16();
                let part = if matches!(kind, Some(RSA | ECC)) { Self::Public } else { Self::Secret };
                part.copy(copy)
            }
            Self::Symmetric => {
                // XOR has a hash algorithm; the others have a size of keys and a mode.
                let details = match copy.u16()? {
                    NULL => 0,
                    XOR => 2,
                    _ => 4,
                };
                copy.show(details).map(drop)
            }
            Self::Scheme => {
                // A hash algorithm, and with ECDAA a count.
                let details = match copy.u16()? {
                    NULL | RSAES => 0,
                    HMAC | RSASSA | RSAPSS | OAEP | ECDSA | SM2 | ECSCHNORR | MGF1 | KDF1_SP800_56A | KDF2
                    | KDF1_SP800_108 => 2,
                    ECDAA => 4,
                    _ => return None,
                };
                copy.show(details).map(drop)
            }
            Self::Capability => {
                let rest = if copy.u32()? < TPM_CAP_VENDOR_PROPERTY { Self::ShownRest } else { Self::HiddenRest };
                rest.copy(copy)
            }
            Self::ShownRest => copy.show(copy.left()).map(drop),
            Self::HiddenRest => copy.hide(copy.left()),
        }
    }
}

/// Bytes of a digest by `TPM_ALG_ID` (6.3).
fn digest_size(algorithm: u16) -> Option<usize> {
    match algorithm {
        // SHA-1
        0x04 => Some(20),
        // SHA-256, SM3-256, SHA3-256
        0x0b | 0x12 | 0x27 => Some(32),
        // SHA-384, SHA3-384
        0x0c | 0x28 => Some(48),
        // SHA-512, SHA3-512
        0x0d | 0x29 => Some(64),
        _ => None,
    }
}
