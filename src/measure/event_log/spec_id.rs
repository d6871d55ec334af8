//! The first event of a crypto-agile log (`TCG_EfiSpecIdEvent`, the profile's section 10.4.5.1), which is itself written
//! in the format of TPM 1.2: PCR 0, `EV_NO_ACTION`, a digest of zeros.

use super::parse::{ParseError, Reader};
use super::{EventType, MAX_DIGEST};
use crate::measure::digests::BANKS;
use crate::pcr_bank::PcrBank;

pub(super) const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";

/// Most algorithms that a log is believed to have: as many as banks of a TPM, and there are not as many.
const MAX_ALGORITHMS: usize = 16;

/// What a crypto-agile log says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecId {
    /// 0: client, 1: server (TCG ACPI Specification).
    pub platform_class: u32,
    /// Minor version of the profile.
    pub version_minor: u8,
    /// Major version of the profile.
    pub version_major: u8,
    /// Errata; from 1.05 on, the profile's revision (105, 106).
    pub errata: u8,
    /// Size of a UINTN in events: 1 for 32 bits, 2 for 64.
    pub uintn_size: u8,
    /// The algorithms of the digests.
    pub algorithms: Vec<AlgorithmSize>,
    /// Anything; at most 255 bytes.
    pub vendor_info: Vec<u8>,
}

/// An algorithm with the size of its digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlgorithmSize {
    /// The algorithm.
    pub bank: PcrBank,
    /// Bytes in a digest, 1 to 64. What is known of the algorithm agrees with it.
    pub digest_size: u16,
}

impl SpecId {
    /// That of our own logs, with those of `banks` that are computed here: the profile's revision 1.06, client, 64 bits.
    #[must_use]
    pub fn new(banks: &[PcrBank]) -> Self {
        let algorithms = BANKS.iter().filter(|bank| banks.contains(bank)).filter_map(|bank| {
            let digest_size = u16::try_from(bank.digest_size()?).ok()?;
            Some(AlgorithmSize { bank: *bank, digest_size })
        });
        Self {
            platform_class: 0,
            version_minor: 0,
            version_major: 2,
            errata: 106,
            uintn_size: 2,
            algorithms: algorithms.collect(),
            vendor_info: Vec::new(),
        }
    }

    /// Bytes in a digest of `bank`, if the log has it.
    #[must_use]
    pub fn digest_size(&self, bank: PcrBank) -> Option<usize> {
        self.algorithms.iter().find(|algorithm| algorithm.bank == bank).map(|algorithm| algorithm.digest_size.into())
    }

    /// Reads the whole first event if the log begins with one; else nothing is read.
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Option<Self>, ParseError> {
        let is_one = reader.rest().get(32..).is_some_and(|data| data.starts_with(SIGNATURE))
            && reader.rest().get(4..8) == Some(&EventType::NO_ACTION.0.to_le_bytes());
        if !is_one {
            return Ok(None);
        }
        let refused = |offset, reason| Err(ParseError::SpecId { offset, reason });
        if reader.take(28, "the header of the Spec ID event")?.iter().enumerate().any(|(at, byte)| {
            // The type is between the PCR's index and the digest.
            *byte != 0 && !(4..8).contains(&at)
        }) {
            return refused(0, "its PCR and its digest should be 0");
        }
        let size = reader.size("the size of the Spec ID event")?;
        let data = reader.take(size, "the Spec ID event")?;
        let base = reader.offset().saturating_sub(size);
        let mut data = Reader::at(data, base);
        data.take(SIGNATURE.len(), "the Spec ID event's signature")?;
        let platform_class = data.u32("the Spec ID event's platform class")?;
        let [version_minor, version_major, errata, uintn_size] = data.array("the Spec ID event's version")?;
        let offset = data.offset();
        let count = data.size("the Spec ID event's number of algorithms")?;
        if count == 0 || count > MAX_ALGORITHMS {
            return refused(offset, "it should name 1 to 16 algorithms");
        }
        let mut algorithms: Vec<AlgorithmSize> = Vec::with_capacity(count);
        for _ in 0..count {
            let offset = data.offset();
            let bank = PcrBank::from_algorithm(data.u16("an algorithm of the Spec ID event")?);
            let digest_size = data.u16("a digest's size in the Spec ID event")?;
            let size = usize::from(digest_size);
            if size == 0 || size > MAX_DIGEST || bank.digest_size().is_some_and(|known| known != size) {
                return refused(offset, "an algorithm's digests have not that size");
            }
            if algorithms.iter().any(|other| other.bank == bank) {
                return refused(offset, "it names an algorithm twice");
            }
            algorithms.push(AlgorithmSize { bank, digest_size });
        }
        let [vendor_size] = data.array("the size of the Spec ID event's vendor information")?;
        let vendor_info = data.take(vendor_size.into(), "the Spec ID event's vendor information")?.to_vec();
        if !data.rest().is_empty() {
            return refused(data.offset(), "something is behind its vendor information");
        }
        Ok(Some(Self { platform_class, version_minor, version_major, errata, uintn_size, algorithms, vendor_info }))
    }

    /// The data of the event.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { platform_class, version_minor, version_major, errata, uintn_size, algorithms, vendor_info } = self;
        let mut data = SIGNATURE.to_vec();
        data.extend(platform_class.to_le_bytes());
        data.extend([*version_minor, *version_major, *errata, *uintn_size]);
        data.extend(u32::try_from(algorithms.len()).unwrap_or(u32::MAX).to_le_bytes());
        for AlgorithmSize { bank, digest_size } in algorithms {
            data.extend(bank.algorithm().to_le_bytes());
            data.extend(digest_size.to_le_bytes());
        }
        let vendor_info = vendor_info.get(..usize::from(u8::MAX)).unwrap_or(vendor_info);
        data.push(u8::try_from(vendor_info.len()).unwrap_or(u8::MAX));
        data.extend(vendor_info);
        data
    }
}
