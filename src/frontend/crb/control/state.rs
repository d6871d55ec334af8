//! The command's way as plain data.

use serde::{Deserialize, Serialize};

use super::{Control, State};
use crate::frontend::crb::Standing;
use crate::frontend::crb::buffer::{BufferStateError, Command};

/// Where the command is on its way. What is in the buffer is not said here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum CommandState {
    /// No command is taken.
    Idle,
    /// A command can be written and started.
    Ready,
    /// The backend runs the command.
    Execution {
        /// The whole command, as it was in the buffer when it was started.
        command: Vec<u8>,
        /// Whether the guest still waits for it.
        standing: Standing,
    },
    /// The response can be read, or the next command written and started.
    Completion,
    /// A command that nobody waits for still runs in the backend.
    Stopping {
        /// The TPM is Ready then, else Idle.
        then_ready: bool,
    },
}

impl CommandState {
    /// Whether only an active locality can have brought the command here; without one, commands are aborted.
    pub(in crate::frontend::crb) fn needs_owner(&self) -> bool {
        match self {
            Self::Idle | Self::Stopping { then_ready: false } => false,
            Self::Ready | Self::Execution { .. } | Self::Completion | Self::Stopping { then_ready: true } => true,
        }
    }
}

impl Control {
    /// The command as plain data. `TPM_CRB_CTRL_CANCEL_x` goes beside it.
    pub(in crate::frontend::crb) fn state(&self) -> CommandState {
        let Self { state, cancel: _, command } = self;
        match *state {
            State::Idle => CommandState::Idle,
            State::Ready => CommandState::Ready,
            State::Execution(standing) => CommandState::Execution { command: command.bytes().to_vec(), standing },
            State::Completion => CommandState::Completion,
            State::Stopping { then_ready } => CommandState::Stopping { then_ready },
        }
    }

    /// The command that [`state`](Self::state) gave.
    pub(in crate::frontend::crb) fn from_state(cancel: bool, state: &CommandState) -> Result<Self, BufferStateError> {
        let (state, command) = match state {
            CommandState::Idle => (State::Idle, Command::none()),
            CommandState::Ready => (State::Ready, Command::none()),
            CommandState::Execution { command, standing } => {
                (State::Execution(*standing), Command::from_bytes(command)?)
            }
            CommandState::Completion => (State::Completion, Command::none()),
            CommandState::Stopping { then_ready } => (State::Stopping { then_ready: *then_ready }, Command::none()),
        };
        Ok(Self { state, cancel, command })
    }
}
