//! The CRB with ACPI start as plain data.

use serde::{Deserialize, Serialize};

use super::CrbDoorbell;
use crate::frontend::Memory;
use crate::frontend::crb::Standing;
use crate::frontend::crb::buffer::{self, BufferStateError, Command};

/// All that a [`CrbDoorbell`] remembers, and what is in its buffer. Where BAR0 is the configuration space remembers; the
/// control area is not believed, but written anew.
///
/// A running command is exported as it is. What who imports it must do with it is the same as with a
/// [`CrbState`](crate::frontend::crb::CrbState); its locality is 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrbDoorbellState {
    /// The command that the backend runs.
    pub command: Option<RunningCommand>,
    /// What is in the buffer, at most 4096 bytes, up to the last that is not zero.
    pub buffer: Vec<u8>,
}

/// A command that the backend runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunningCommand {
    /// The whole command, as it was in the buffer when it was started.
    pub command: Vec<u8>,
    /// Whether the guest still waits for it.
    pub standing: Standing,
}

impl<M: Memory> CrbDoorbell<M> {
    /// What there is as plain data. [`CrbDoorbellState`] says what that means for a command under way.
    #[must_use]
    pub fn state(&self) -> CrbDoorbellState {
        let Self { memory, bar0_address: _, running, command } = self;
        let command = running.map(|standing| RunningCommand { command: command.bytes().to_vec(), standing });
        CrbDoorbellState { command, buffer: buffer::export(memory) }
    }

    /// The interface that [`state`](Self::state) was taken of, in this memory. The caller has to [`place`](Self::place)
    /// it, and to deal with a command under way, if [`is_busy`](Self::is_busy).
    ///
    /// # Errors
    /// [`BufferStateError`] for a command that is not one, and for a buffer that holds too much.
    pub fn from_state(state: &CrbDoorbellState, memory: M) -> Result<Self, BufferStateError> {
        let CrbDoorbellState { command, buffer } = state;
        let (running, command) = match command {
            Some(RunningCommand { command, standing }) => (Some(*standing), Command::from_bytes(command)?),
            None => (None, Command::none()),
        };
        let mut crb = Self { memory, bar0_address: 0, running, command };
        buffer::import(buffer, &mut crb.memory)?;
        crb.write_fresh_control_page();
        Ok(crb)
    }
}
