//! Events that extend nothing and say something (`EV_NO_ACTION`, the profile's section 10.4.5): their data begins with a
//! signature of 16 bytes.

use super::parse::{ParseError, Reader};
use super::{Event, EventType};
use crate::pcr_bank::PcrBank;
use crate::tpm::Locality;

pub(super) const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
pub(super) const HCRTM_COMPONENT: &[u8; 16] = b"H-CRTM CompMeas\0";

/// The data of the event that says from which locality TPM2_Startup came, or, with 4, that a measurement by the H-CRTM came
/// before it (`TCG_EfiStartupLocalityEvent`): by that PCR 0 begins.
#[must_use]
pub fn startup_locality_data(locality: Locality) -> Vec<u8> {
    [&STARTUP_LOCALITY[..], &[locality.number()]].concat()
}

/// The locality that such an event says. One that is no locality's number is no such event.
#[must_use]
pub fn startup_locality(event: &Event) -> Option<Locality> {
    let number = match event.data.strip_prefix(STARTUP_LOCALITY)? {
        [number] if event.event_type == EventType::NO_ACTION => *number,
        _ => return None,
    };
    Locality::new(number)
}

/// One of the things that an H-CRTM has measured (`TCG_HCRTMComponentEvent`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HcrtmComponent {
    /// What it is: printable ASCII, at most 255 bytes.
    pub description: Vec<u8>,
    /// 0: the measurement is a digest, with its algorithm in front (a `TPMT_HA`, so big-endian); 0x80: it is what was
    /// measured itself.
    pub format: u8,
    /// The bytes that went into the hash sequence.
    pub measurement: Vec<u8>,
}

impl HcrtmComponent {
    /// One of which the digest was measured.
    #[must_use]
    pub fn of_digest(description: &[u8], bank: PcrBank, digest: &[u8]) -> Self {
        let measurement = [&bank.algorithm().to_be_bytes()[..], digest].concat();
        Self { description: description.to_vec(), format: 0, measurement }
    }

    /// The event's data.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { description, format, measurement } = self;
        let description = description.get(..usize::from(u8::MAX)).unwrap_or(description);
        let measurement = measurement.get(..usize::from(u16::MAX)).unwrap_or(measurement);
        let mut data = HCRTM_COMPONENT.to_vec();
        data.push(u8::try_from(description.len()).unwrap_or(u8::MAX));
        data.extend(description);
        data.push(*format);
        data.extend(u16::try_from(measurement.len()).unwrap_or(u16::MAX).to_le_bytes());
        data.extend(measurement);
        data
    }

    /// From the event's data, without its signature.
    pub(super) fn parse(data: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::at(data, 0);
        let [size] = reader.array("the description's size")?;
        let description = reader.take(size.into(), "the description")?.to_vec();
        let [format] = reader.array("the format")?;
        let size = reader.u16("the measurement's size")?;
        let measurement = reader.take(size.into(), "the measurement")?.to_vec();
        Ok(Self { description, format, measurement })
    }
}
