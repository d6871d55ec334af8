//! The PCR values that an event log implies.
//!
//! Where PCRs begin: TPM 2.0 Library Part 1 (PCR initialization, H-CRTM) and the PC Client Platform TPM Profile: 0 to 16
//! and 23 with zeros, 17 to 22 with ones; PCR 0 with the locality of TPM2_Startup in its last byte, or with 4 there after a
//! measurement by the H-CRTM (the profile's section 10.4.5.3).

use std::collections::BTreeMap;

use thiserror::Error;

use super::digests::{self, BANKS};
use super::event_log::{EventLog, EventType, startup_locality};
use crate::pcr_bank::PcrBank;
use crate::tpm::Locality;

/// PCRs of a TPM.
pub const PCRS: u32 = 24;

/// What a log implies for one bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The bank.
    pub bank: PcrBank,
    /// The PCRs that the log extends, by index, or why they are not known. A PCR that is not there has its first value.
    pub pcrs: Result<BTreeMap<u32, Vec<u8>>, BankError>,
}

/// Why a log implies nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReplayError {
    /// An event extends what is no PCR.
    #[error("event {number} extends PCR {pcr}, and a TPM has the PCRs 0 to 23")]
    NoSuchPcr {
        /// The event's number, see [`EventLog::number`].
        number: usize,
        /// The index.
        pcr: u32,
    },
    /// Two events disagree about how PCR 0 begins.
    #[error("event {number} says another startup locality than one before it")]
    Localities {
        /// The second event's number.
        number: usize,
    },
}

/// Why a log implies nothing for one bank.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BankError {
    /// This program cannot compute the algorithm.
    #[error("this program does not compute {0}: it has sha1, sha256, sha384 and sha512")]
    Algorithm(PcrBank),
    /// An event lacks the digest.
    #[error("event {number} has no digest for {bank}")]
    NoDigest {
        /// The event's number.
        number: usize,
        /// The bank.
        bank: PcrBank,
    },
}

/// What `log` implies for each of its banks, in their order.
///
/// # Errors
/// [`ReplayError`].
pub fn replay(log: &EventLog) -> Result<Vec<Replayed>, ReplayError> {
    let locality = locality_of_pcr_0(log)?;
    let extending = log.events.iter().enumerate().filter(|(_, event)| event.extends());
    if let Some((index, event)) = extending.clone().find(|(_, event)| event.pcr >= PCRS) {
        return Err(ReplayError::NoSuchPcr { number: log.number(index), pcr: event.pcr });
    }
    let bank = |bank| {
        let size = PcrBank::digest_size(bank).filter(|_| BANKS.contains(&bank)).ok_or(BankError::Algorithm(bank))?;
        let mut pcrs = BTreeMap::new();
        for (index, event) in extending.clone() {
            let missing = BankError::NoDigest { number: log.number(index), bank };
            let digest = event.digest(bank).ok_or(missing)?;
            let pcr = pcrs.entry(event.pcr).or_insert_with(|| first_value(event.pcr, size, locality));
            *pcr = digests::extend(bank, pcr, digest).ok_or(BankError::Algorithm(bank))?;
        }
        Ok(pcrs)
    };
    Ok(log.banks().into_iter().map(|name| Replayed { bank: name, pcrs: bank(name) }).collect())
}

/// The event that says it belongs before the first that extends PCR 0, but holds wherever it is. An H-CRTM's measurement
/// says it, too, and is believed more.
fn locality_of_pcr_0(log: &EventLog) -> Result<Locality, ReplayError> {
    if log.events.iter().any(|event| event.event_type == EventType::EFI_HCRTM_EVENT && event.pcr == 0) {
        return Ok(Locality::FOUR);
    }
    let mut found = None;
    for (index, event) in log.events.iter().enumerate() {
        let Some(locality) = startup_locality(event) else { continue };
        if *found.get_or_insert(locality) != locality {
            return Err(ReplayError::Localities { number: log.number(index) });
        }
    }
    Ok(found.unwrap_or(Locality::ZERO))
}

/// What a PCR holds after TPM2_Startup(CLEAR).
fn first_value(pcr: u32, size: usize, locality: Locality) -> Vec<u8> {
    let mut value = vec![if (17..=22).contains(&pcr) { 0xff } else { 0 }; size];
    if let (0, Some(last)) = (pcr, value.last_mut()) {
        *last = locality.number();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Hex;
    use crate::measure::digests::Digests;
    use crate::measure::event_log::{Digest, Event, Format, SpecId, startup_locality_data};

    fn event(pcr: u32, event_type: EventType, data: &[u8]) -> Event {
        let digests = Digests::of(data);
        let value = |bank| digests.get(bank).unwrap().to_vec();
        let digests = [PcrBank::SHA1, PcrBank::SHA256].map(|bank| Digest { bank, value: value(bank) }).to_vec();
        Event { pcr, event_type, digests, data: data.to_vec() }
    }

    fn log(events: Vec<Event>) -> EventLog {
        EventLog { format: Format::CryptoAgile(SpecId::new(&[PcrBank::SHA1, PcrBank::SHA256])), events }
    }

    #[track_caller]
    fn sha256(events: Vec<Event>, pcr: u32) -> String {
        let replayed = replay(&log(events)).unwrap();
        assert_eq!(replayed[1].bank, PcrBank::SHA256);
        Hex(&replayed[1].pcrs.as_ref().unwrap()[&pcr]).to_string()
    }

    fn extended(first: &[u8], digest: &[u8]) -> String {
        Hex(&digests::extend(PcrBank::SHA256, first, digest).unwrap()).to_string()
    }

    fn separator(pcr: u32) -> Event {
        event(pcr, EventType::SEPARATOR, &[0; 4])
    }

    #[test]
    fn pcrs_begin_with_zeros_or_ones_and_only_those_that_are_extended_are_told() {
        let digest = Digests::of(&[0; 4]).get(PcrBank::SHA256).unwrap().to_vec();
        assert_eq!(sha256(vec![separator(7)], 7), extended(&[0; 32], &digest));
        assert_eq!(sha256(vec![separator(17)], 17), extended(&[0xff; 32], &digest));
        let replayed = replay(&log(vec![separator(7)])).unwrap();
        assert_eq!(replayed[0].pcrs.as_ref().unwrap().keys().collect::<Vec<_>>(), [&7]);
    }

    #[test]
    fn pcr_0_begins_with_the_startup_locality_wherever_it_is_said() {
        let said = event(0, EventType::NO_ACTION, &startup_locality_data(Locality::new(3).unwrap()));
        let digest = Digests::of(&[0; 4]).get(PcrBank::SHA256).unwrap().to_vec();
        let mut first = [0; 32];
        first[31] = 3;
        let expected = extended(&first, &digest);
        assert_eq!(sha256(vec![said.clone(), separator(0)], 0), expected);
        assert_eq!(sha256(vec![separator(0), said.clone()], 0), expected);
        assert_eq!(sha256(vec![said.clone(), separator(1)], 1), extended(&[0; 32], &digest));
        let other = event(0, EventType::NO_ACTION, &startup_locality_data(Locality::ZERO));
        let error = replay(&log(vec![said, other])).unwrap_err();
        assert_eq!(error, ReplayError::Localities { number: 2 });
    }

    #[test]
    fn an_h_crtm_lets_pcr_0_begin_with_4() {
        let hcrtm = event(0, EventType::EFI_HCRTM_EVENT, b"HCRTM");
        let mut first = [0; 32];
        first[31] = 4;
        let expected = extended(&first, hcrtm.digest(PcrBank::SHA256).unwrap());
        assert_eq!(sha256(vec![hcrtm], 0), expected);
    }

    #[test]
    fn what_extends_no_pcr_is_not_replayed_and_what_is_no_pcr_is_refused() {
        let nothing = event(0x01c4_0200, EventType::NO_ACTION, b"NvIndexInstance\0");
        assert_eq!(replay(&log(vec![nothing])).unwrap()[0].pcrs, Ok(BTreeMap::new()));
        let error = replay(&log(vec![separator(1), separator(24)])).unwrap_err();
        assert_eq!(error, ReplayError::NoSuchPcr { number: 2, pcr: 24 });
    }

    #[test]
    fn a_missing_digest_and_an_unknown_algorithm_concern_their_bank_only() {
        let mut one = separator(4);
        one.digests.truncate(1);
        let replayed = replay(&log(vec![one])).unwrap();
        assert!(replayed[0].pcrs.is_ok());
        assert_eq!(replayed[1].pcrs, Err(BankError::NoDigest { number: 1, bank: PcrBank::SHA256 }));

        let sm3: PcrBank = "sm3_256".parse().unwrap();
        let mut with_sm3 = log(vec![separator(4)]);
        let Format::CryptoAgile(spec_id) = &mut with_sm3.format else { panic!("crypto-agile") };
        spec_id.algorithms[0].bank = sm3;
        let replayed = replay(&with_sm3).unwrap();
        assert_eq!(replayed[0].pcrs, Err(BankError::Algorithm(sm3)));
        assert!(replayed[1].pcrs.is_ok());
    }
}
