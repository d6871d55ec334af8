//! A log from bytes that anybody may have written.

use thiserror::Error;

use super::{Digest, Event, EventLog, EventType, Format, MAX_LOG, SpecId};
use crate::pcr_bank::PcrBank;

/// Why bytes are no event log. Offsets are in bytes from the beginning.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// There is nothing, or nothing but what unused room is filled with.
    #[error("it is empty: expected an event log")]
    Empty,
    /// More than anybody writes.
    #[error("it has {found} bytes, and an event log has at most {MAX_LOG}")]
    TooLarge {
        /// Bytes that there are.
        found: usize,
    },
    /// The end comes too early.
    #[error(
        "at offset {offset}, {what} should have {needed} bytes, and {left} are left: it is cut off, or no event log"
    )]
    Cut {
        /// Where what is missing should begin.
        offset: usize,
        /// What is missing.
        what: &'static str,
        /// Bytes that it should have.
        needed: usize,
        /// Bytes that there are.
        left: usize,
    },
    /// The first event of a crypto-agile log is not as it should be.
    #[error("at offset {offset}, the Spec ID event is wrong: {reason}")]
    SpecId {
        /// Where it is wrong.
        offset: usize,
        /// In which way.
        reason: &'static str,
    },
    /// An event has more digests than there are algorithms.
    #[error("at offset {offset}, an event should have at most {most} digests, and has {found}")]
    Digests {
        /// Where their number is.
        offset: usize,
        /// Algorithms that the log has.
        most: usize,
        /// What the number is.
        found: usize,
    },
    /// A digest of an algorithm that the Spec ID event does not name, so that its size is not known.
    #[error("at offset {offset}, an event has a digest of the algorithm {bank}, which the Spec ID event does not name")]
    Algorithm {
        /// Where the algorithm is.
        offset: usize,
        /// The algorithm.
        bank: PcrBank,
    },
    /// Two digests of the same algorithm.
    #[error("at offset {offset}, an event has a second digest of the algorithm {bank}")]
    Twice {
        /// Where the second one's algorithm is.
        offset: usize,
        /// The algorithm.
        bank: PcrBank,
    },
}

/// The log in `bytes`, at most [`MAX_LOG`] of them. What is behind the last event may only be unused room: zeros,
/// ones, or the one behind the other.
///
/// # Errors
/// [`ParseError`].
pub fn parse(bytes: &[u8]) -> Result<EventLog, ParseError> {
    if bytes.len() > MAX_LOG {
        return Err(ParseError::TooLarge { found: bytes.len() });
    }
    let end = used(bytes);
    if end == 0 {
        return Err(ParseError::Empty);
    }
    let mut reader = Reader::at(bytes, 0);
    let format = SpecId::parse(&mut reader)?.map_or(Format::Sha1, Format::CryptoAgile);
    let mut events = Vec::new();
    while reader.offset() < end {
        events.push(event(&mut reader, &format)?);
    }
    Ok(EventLog { format, events })
}

/// Where the bytes begin that are zeros, then ones, up to the end. An event that begins there is none: its type would be
/// `EV_PREBOOT_CERT`, which is not used, without any data.
fn used(bytes: &[u8]) -> usize {
    let without =
        |bytes: &[u8], fill| bytes.iter().rposition(|byte| *byte != fill).map_or(0, |last| last.saturating_add(1));
    let zeros = bytes.get(..without(bytes, 0xff)).unwrap_or_default();
    without(zeros, 0)
}

fn event(reader: &mut Reader<'_>, format: &Format) -> Result<Event, ParseError> {
    let pcr = reader.u32("an event's PCR")?;
    let event_type = EventType(reader.u32("an event's type")?);
    let digests = match format {
        Format::Sha1 => vec![Digest { bank: PcrBank::SHA1, value: reader.take(20, "an event's digest")?.to_vec() }],
        Format::CryptoAgile(spec_id) => digests(reader, spec_id)?,
    };
    let size = reader.size("the size of an event's data")?;
    let data = reader.take(size, "an event's data")?.to_vec();
    Ok(Event { pcr, event_type, digests, data })
}

fn digests(reader: &mut Reader<'_>, spec_id: &SpecId) -> Result<Vec<Digest>, ParseError> {
    let offset = reader.offset();
    let count = reader.size("the number of an event's digests")?;
    let most = spec_id.algorithms.len();
    if count > most {
        return Err(ParseError::Digests { offset, most, found: count });
    }
    let mut digests: Vec<Digest> = Vec::with_capacity(count);
    for _ in 0..count {
        let offset = reader.offset();
        let bank = PcrBank::from_algorithm(reader.u16("a digest's algorithm")?);
        let size = spec_id.digest_size(bank).ok_or(ParseError::Algorithm { offset, bank })?;
        if digests.iter().any(|other| other.bank == bank) {
            return Err(ParseError::Twice { offset, bank });
        }
        digests.push(Digest { bank, value: reader.take(size, "a digest")?.to_vec() });
    }
    Ok(digests)
}

/// Bytes from front to back.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which are at `offset` of the log.
    pub(super) fn at(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: bytes, offset }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], ParseError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(ParseError::Cut {
            offset: self.offset,
            what,
            needed: count,
            left: self.rest.len(),
        })?;
        self.rest = rest;
        self.offset = self.offset.saturating_add(count);
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], ParseError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, ParseError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, ParseError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, ParseError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of 32 bits that counts something.
    pub(super) fn size(&mut self, what: &'static str) -> Result<usize, ParseError> {
        // Where it does not fit, it is more than there can be.
        self.u32(what).map(|size| usize::try_from(size).unwrap_or(usize::MAX))
    }
}
