//! A log to bytes.

use thiserror::Error;

use super::{Event, EventLog, EventType, Format};
use crate::pcr_bank::PcrBank;

/// Why a log cannot be written. Nothing was.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WriteError {
    /// The log area is too small.
    #[error("the event log would have {needed} bytes, and there is room for {room}: measure fewer files")]
    NoRoom {
        /// Bytes that the log has.
        needed: usize,
        /// Bytes that it may have.
        room: usize,
    },
    /// A digest is missing, too long, or of an algorithm that the log does not have.
    #[error("event {number} cannot be written: its digest for {bank} is not one of the log's")]
    Digest {
        /// The event's number, see [`EventLog::number`].
        number: usize,
        /// The bank.
        bank: PcrBank,
    },
}

impl EventLog {
    /// The log as bytes, at most `room` of them.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn to_bytes(&self, room: usize) -> Result<Vec<u8>, WriteError> {
        let mut log = Vec::new();
        if let Format::CryptoAgile(spec_id) = &self.format {
            put_head(&mut log, 0, EventType::NO_ACTION);
            log.extend([0; 20]);
            put_data(&mut log, &spec_id.to_bytes());
        }
        for (index, event) in self.events.iter().enumerate() {
            put_head(&mut log, event.pcr, event.event_type);
            self.put_digests(&mut log, event)
                .map_err(|bank| WriteError::Digest { number: self.number(index), bank })?;
            put_data(&mut log, &event.data);
        }
        if log.len() > room {
            return Err(WriteError::NoRoom { needed: log.len(), room });
        }
        Ok(log)
    }

    /// Fails with the bank whose digest cannot be written.
    fn put_digests(&self, log: &mut Vec<u8>, event: &Event) -> Result<(), PcrBank> {
        match &self.format {
            Format::Sha1 => {
                let digest = event.digest(PcrBank::SHA1).filter(|value| value.len() == 20);
                log.extend(digest.ok_or(PcrBank::SHA1)?);
            }
            Format::CryptoAgile(spec_id) => {
                log.extend(u32::try_from(event.digests.len()).unwrap_or(u32::MAX).to_le_bytes());
                for digest in &event.digests {
                    if spec_id.digest_size(digest.bank) != Some(digest.value.len()) {
                        return Err(digest.bank);
                    }
                    log.extend(digest.bank.algorithm().to_le_bytes());
                    log.extend(&digest.value);
                }
            }
        }
        Ok(())
    }
}

fn put_head(log: &mut Vec<u8>, pcr: u32, event_type: EventType) {
    log.extend(pcr.to_le_bytes());
    log.extend(event_type.0.to_le_bytes());
}

fn put_data(log: &mut Vec<u8>, data: &[u8]) {
    // More than fits into the number fits into no log, and is refused by the whole's size.
    log.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
    log.extend(data);
}
