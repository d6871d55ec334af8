//! The area of the measurement log: memory that firmware and operating system read and may write, and what the server has
//! to say at its beginning.
//!
//! The server never believes what is in the area. Its own log it keeps apart, and shows it: at each reset, and when there
//! is a new one. Whoever writes over it in between has lied to nobody but its own reader, as with firmware's log in RAM: a
//! log proves nothing without a quote of the PCRs.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Memory;
use crate::bar_map::LOG;

/// Bytes in the area, and in the largest log.
pub const LOG_SIZE: usize = LOG.length as usize;

/// Bytes that are copied at once.
const STEP: usize = 4096;

/// A log that is larger than its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the measurement log has {0} bytes: expected at most {LOG_SIZE}")]
pub struct LogTooLarge(usize);

/// The server's log.
#[derive(Clone, Debug, Default)]
pub(super) struct LogArea {
    server: Vec<u8>,
}

/// The log's area as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogState {
    /// The server's log, at most 65536 bytes: what it shows again at the next reset.
    pub server: Vec<u8>,
    /// What is in the area, at most 65536 bytes, up to the last that is not zero. The guest may have written it.
    pub area: Vec<u8>,
}

/// Why a [`LogState`] is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LogStateError {
    /// The server's log does not fit.
    #[error(transparent)]
    TooLarge(#[from] LogTooLarge),
    /// More than the area holds.
    #[error("there are {0} bytes in the area of the measurement log: expected at most {LOG_SIZE}")]
    Overflow(usize),
    /// The area's contents could be said with fewer bytes.
    #[error("the measurement log's area ends with a zero: expected it up to the last byte that is not zero")]
    ZerosAtEnd,
    /// There is a state of an area, and the device has none, or the other way round.
    #[error("of state and device, only one has an area for the measurement log: expected both, or neither")]
    OtherDevice,
}

impl LogArea {
    /// Takes this log in place of the one before. Show it.
    pub(super) fn set(&mut self, log: &[u8]) -> Result<(), LogTooLarge> {
        if log.len() > LOG_SIZE {
            return Err(LogTooLarge(log.len()));
        }
        self.server.clear();
        self.server.extend_from_slice(log);
        Ok(())
    }

    /// Fills the area with the server's log, and with zeros behind it.
    pub(super) fn show(&self, memory: &mut impl Memory) {
        fill(memory, &self.server);
    }

    pub(super) fn state(&self, memory: &impl Memory) -> LogState {
        let Self { server } = self;
        let mut area = vec![0; LOG_SIZE];
        memory.read(LOG.offset, &mut area);
        let last = area.iter().rposition(|&byte| byte != 0);
        area.truncate(last.map_or(0, |last| last.saturating_add(1)));
        LogState { server: server.clone(), area }
    }

    pub(super) fn from_state(state: &LogState, memory: &mut impl Memory) -> Result<Self, LogStateError> {
        let LogState { server, area } = state;
        let mut log = Self::default();
        log.set(server)?;
        if area.len() > LOG_SIZE {
            return Err(LogStateError::Overflow(area.len()));
        }
        if area.last() == Some(&0) {
            return Err(LogStateError::ZerosAtEnd);
        }
        fill(memory, area);
        Ok(log)
    }
}

/// Puts `bytes` into the area, and zeros behind them.
fn fill(memory: &mut impl Memory, bytes: &[u8]) {
    for (number, offset) in (LOG.offset..LOG.end()).step_by(STEP).enumerate() {
        let mut page = [0; STEP];
        let rest = bytes.get(number.saturating_mul(STEP)..).unwrap_or_default();
        for (to, from) in page.iter_mut().zip(rest) {
            *to = *from;
        }
        memory.write(offset, &page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::memory::pages::Pages;

    fn state() -> LogState {
        LogState { server: vec![1, 2, 3], area: vec![1, 9] }
    }

    #[test]
    fn states_that_no_area_can_be_in_are_refused_and_change_nothing() {
        let largest = vec![7; LOG_SIZE];
        let larger = vec![7; LOG_SIZE + 1];
        let mut memory = Pages::new();
        for (refused, error) in [
            (LogState { server: larger.clone(), ..state() }, LogStateError::TooLarge(LogTooLarge(LOG_SIZE + 1))),
            (LogState { area: larger, ..state() }, LogStateError::Overflow(LOG_SIZE + 1)),
            (LogState { area: vec![1, 0], ..state() }, LogStateError::ZerosAtEnd),
        ] {
            assert_eq!(LogArea::from_state(&refused, &mut memory).unwrap_err(), error);
        }
        assert!(memory.take_writes().is_empty());
        for taken in [state(), LogState { server: largest.clone(), area: largest }] {
            let log = LogArea::from_state(&taken, &mut memory).unwrap();
            assert_eq!(log.state(&memory), taken);
        }
    }

    #[test]
    fn the_state_is_plain_data() {
        let json = serde_json::to_string(&state()).unwrap();
        assert_eq!(json, r#"{"server":[1,2,3],"area":[1,9]}"#);
        assert_eq!(serde_json::from_str::<LogState>(&json).unwrap(), state());
    }
}
