//! The TCG's event log, which says by what each PCR was extended. Two formats, both little-endian:
//!
//! - of TPM 1.2 (`TCG_PCClientPCREvent`): PCR index (4), type (4), a SHA-1 digest (20), size (4), data.
//! - crypto-agile, of TPM 2.0 (`TCG_PCR_EVENT2`, the profile's section 10.2.2): PCR index (4), type (4), number of digests
//!   (4), for each its algorithm (2) and the digest, size (4), data. Its first event has the other format and is not
//!   counted among [`EventLog::events`]: it says which algorithms there are ([`SpecId`], "Spec ID Event03").
//!
//! A log proves nothing by itself: whoever passes it on can have written it.

mod describe;
mod event_type;
mod no_action;
mod parse;
mod spec_id;
mod write;

use crate::pcr_bank::PcrBank;

pub use describe::describe;
pub use event_type::EventType;
pub use no_action::{HcrtmComponent, startup_locality, startup_locality_data};
pub use parse::{ParseError, parse};
pub use spec_id::{AlgorithmSize, SpecId};
pub use write::WriteError;

/// Bytes in the log area of the profile's smallest platform (section 4 of the TCG ACPI Specification: LAML at least 64 KiB).
pub const DEFAULT_ROOM: usize = 64 * 1024;

/// Bytes in the largest log that is read. Real ones are well below one MiB.
pub const MAX_LOG: usize = 16 * 1024 * 1024;

/// Bytes in the largest digest of the TCG Algorithm Registry.
const MAX_DIGEST: usize = 64;

/// A log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLog {
    /// How its events are written.
    pub format: Format,
    /// The events in their order, without the Spec ID event of a crypto-agile log.
    pub events: Vec<Event>,
}

/// How the events of a log are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// With one SHA-1 digest: TPM 1.2, and the old format of TPM 2.0's firmware.
    Sha1,
    /// With digests of all these algorithms.
    CryptoAgile(SpecId),
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index of the PCR. Of an event that extends none, it may be anything.
    pub pcr: u32,
    /// What the event is about.
    pub event_type: EventType,
    /// What the PCR was extended by, in each bank. Of `EV_NO_ACTION`, which extends nothing, zeros.
    pub digests: Vec<Digest>,
    /// What the digests are of, or a description of that: it depends on the type.
    pub data: Vec<u8>,
}

/// A digest in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Its algorithm.
    pub bank: PcrBank,
    /// As many bytes as the algorithm has.
    pub value: Vec<u8>,
}

impl Event {
    /// Whether the PCR was extended.
    #[must_use]
    pub fn extends(&self) -> bool {
        self.event_type != EventType::NO_ACTION
    }

    /// The digest for `bank`, if there is one.
    #[must_use]
    pub fn digest(&self, bank: PcrBank) -> Option<&[u8]> {
        self.digests.iter().find(|digest| digest.bank == bank).map(|digest| digest.value.as_slice())
    }
}

impl EventLog {
    /// The number by which messages name the event at `index`: its place in the log, where the Spec ID event is number 0.
    #[must_use]
    pub fn number(&self, index: usize) -> usize {
        index.saturating_add(match self.format {
            Format::Sha1 => 0,
            Format::CryptoAgile(_) => 1,
        })
    }

    /// The banks that the log is about.
    #[must_use]
    pub fn banks(&self) -> Vec<PcrBank> {
        match &self.format {
            Format::Sha1 => vec![PcrBank::SHA1],
            Format::CryptoAgile(spec_id) => spec_id.algorithms.iter().map(|algorithm| algorithm.bank).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
