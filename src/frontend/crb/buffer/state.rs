//! The buffer, and a command out of it, as plain data.

use thiserror::Error;

use super::Command;
use crate::bar_map::COMMAND_BUFFER;
use crate::frontend::Memory;
use crate::tpm::{BUFFER_SIZE, Header};

/// Why bytes are neither what a buffer can hold nor a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BufferStateError {
    /// More bytes than the buffer holds.
    #[error("there are {0} bytes: expected at most {BUFFER_SIZE}")]
    Overflow(usize),
    /// The command to run is no message.
    #[error("the {0} bytes of the command are not one message: expected a header whose size field says so")]
    NotWhole(usize),
    /// The buffer's contents could be said with fewer bytes.
    #[error("the buffer's contents end with a zero: expected them up to the last byte that is not zero")]
    ZerosAtEnd,
}

/// What is in the buffer, up to the last byte that is not zero.
pub(in crate::frontend::crb) fn export(memory: &impl Memory) -> Vec<u8> {
    let mut bytes = vec![0; BUFFER_SIZE];
    memory.read(COMMAND_BUFFER.offset, &mut bytes);
    let last = bytes.iter().rposition(|&byte| byte != 0);
    bytes.truncate(last.map_or(0, |last| last.saturating_add(1)));
    bytes
}

/// Puts into the buffer what [`export`] gave.
pub(in crate::frontend::crb) fn import(bytes: &[u8], memory: &mut impl Memory) -> Result<(), BufferStateError> {
    let mut page = [0; BUFFER_SIZE];
    let content = page.get_mut(..bytes.len()).ok_or(BufferStateError::Overflow(bytes.len()))?;
    if bytes.last() == Some(&0) {
        return Err(BufferStateError::ZerosAtEnd);
    }
    content.copy_from_slice(bytes);
    memory.write(COMMAND_BUFFER.offset, &page);
    Ok(())
}

impl Command {
    /// The command that its [`bytes`](Self::bytes) were.
    pub(in crate::frontend::crb) fn from_bytes(bytes: &[u8]) -> Result<Self, BufferStateError> {
        if bytes.len() > BUFFER_SIZE {
            return Err(BufferStateError::Overflow(bytes.len()));
        }
        if Header::of_whole(bytes).is_none() {
            return Err(BufferStateError::NotWhole(bytes.len()));
        }
        let mut command = Self::none();
        command.0.extend_from_slice(bytes);
        Ok(command)
    }
}
