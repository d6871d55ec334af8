//! The command and its way as plain data.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Fifo, SIZE_KNOWN, State, missing_bytes};
use crate::tpm::{BUFFER_SIZE, Header, TpmVersion};

/// Where the command is on its way, with what there is of it. All lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum CommandState {
    /// No command, and none is taken.
    Idle,
    /// The next FIFO byte begins a command.
    Ready,
    /// Command bytes come in.
    Reception {
        /// What has come so far, 1 to [`BUFFER_SIZE`] bytes. What came over that is gone.
        received: Vec<u8>,
        /// How many bytes are still to come, once the first six have told.
        missing: Option<usize>,
    },
    /// The backend runs the command.
    Execution {
        /// The whole command.
        command: Vec<u8>,
    },
    /// The response is read.
    Completion {
        /// The whole response.
        response: Vec<u8>,
        /// How many bytes of it have been read.
        offset: usize,
    },
    /// A command that nobody waits for still runs in the backend.
    Stopping {
        /// The TPM is Ready then, else Idle.
        then_ready: bool,
    },
}

/// Why a [`CommandState`] is none that a command can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandStateError {
    /// More bytes than the buffer holds.
    #[error("there are {0} bytes of a command: expected at most {BUFFER_SIZE}")]
    BufferOverflow(usize),
    /// A reception begins with its first byte.
    #[error("a command is being received and none of its bytes is there: expected one at least")]
    NothingReceived,
    /// More bytes came than were expected.
    #[error("{received} bytes of a command are there: expected at most {size} by its size field")]
    BeyondSize {
        /// What is there.
        received: usize,
        /// What the size field asks for.
        size: usize,
    },
    /// The bytes that are there tell another number.
    #[error("the count of missing bytes is {found:?}: expected {expected:?} by the command's bytes")]
    Missing {
        /// What the bytes say; of a command over the buffer, the most that it can be.
        expected: Option<usize>,
        /// What the state says.
        found: Option<usize>,
    },
    /// The command to run or the response to read is no message.
    #[error("the {length} bytes of the {what} are not one message: expected a header whose size field says so")]
    NotWhole {
        /// Command or response.
        what: &'static str,
        /// How many bytes there are.
        length: usize,
    },
    /// More was read than there is.
    #[error("{offset} bytes of the response have been read: expected at most its {length}")]
    ReadBeyondEnd {
        /// What has been read.
        offset: usize,
        /// What there is.
        length: usize,
    },
}

impl CommandState {
    /// Whether only an active locality can have brought the command here; without one, commands are aborted.
    pub(in crate::frontend::tis) fn needs_owner(&self) -> bool {
        match self {
            Self::Idle | Self::Stopping { then_ready: false } => false,
            Self::Ready
            | Self::Reception { .. }
            | Self::Execution { .. }
            | Self::Completion { .. }
            | Self::Stopping { then_ready: true } => true,
        }
    }
}

impl Fifo {
    /// The command as plain data.
    pub(in crate::frontend::tis) fn state(&self) -> CommandState {
        let Self { version: _, state, buffer } = self;
        match *state {
            State::Idle => CommandState::Idle,
            State::Ready => CommandState::Ready,
            State::Reception { missing } => CommandState::Reception { received: buffer.to_vec(), missing },
            State::Execution => CommandState::Execution { command: buffer.to_vec() },
            State::Completion { offset } => CommandState::Completion { response: buffer.to_vec(), offset },
            State::Stopping { then_ready } => CommandState::Stopping { then_ready },
        }
    }

    /// The command that [`state`](Self::state) gave.
    pub(in crate::frontend::tis) fn from_state(
        version: TpmVersion,
        state: &CommandState,
    ) -> Result<Self, CommandStateError> {
        let (state, content) = match state {
            CommandState::Idle => (State::Idle, &[][..]),
            CommandState::Ready => (State::Ready, &[][..]),
            CommandState::Reception { received, missing } => {
                check_missing(received, *missing)?;
                (State::Reception { missing: *missing }, &received[..])
            }
            CommandState::Execution { command } => (State::Execution, whole("command", command)?),
            CommandState::Completion { response, offset } => {
                let (offset, length) = (*offset, response.len());
                if offset > length {
                    return Err(CommandStateError::ReadBeyondEnd { offset, length });
                }
                (State::Completion { offset }, whole("response", response)?)
            }
            CommandState::Stopping { then_ready } => (State::Stopping { then_ready: *then_ready }, &[][..]),
        };
        if content.len() > BUFFER_SIZE {
            return Err(CommandStateError::BufferOverflow(content.len()));
        }
        let mut fifo = Self { state, ..Self::new(version) };
        fifo.buffer.extend_from_slice(content);
        Ok(fifo)
    }
}

/// The count goes on from what the size field said, and says it still as long as all bytes are there; a command that
/// fills the buffer may have had more.
fn check_missing(received: &[u8], found: Option<usize>) -> Result<(), CommandStateError> {
    if received.is_empty() {
        return Err(CommandStateError::NothingReceived);
    }
    let Some(missing_at_first) = missing_bytes(received) else {
        return if found.is_none() { Ok(()) } else { Err(CommandStateError::Missing { expected: None, found }) };
    };
    let size = SIZE_KNOWN.saturating_add(missing_at_first);
    let Some(most) = size.checked_sub(received.len()) else {
        return Err(CommandStateError::BeyondSize { received: received.len(), size });
    };
    match found {
        Some(found) if found == most || (found < most && received.len() == BUFFER_SIZE) => Ok(()),
        _ => Err(CommandStateError::Missing { expected: Some(most), found }),
    }
}

fn whole<'a>(what: &'static str, message: &'a [u8]) -> Result<&'a [u8], CommandStateError> {
    match Header::of_whole(message) {
        Some(_) => Ok(message),
        None => Err(CommandStateError::NotWhole { what, length: message.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(size: u32) -> Vec<u8> {
        let mut message = Header { tag: 0x8001, size, code: 0x17b }.to_bytes().to_vec();
        message.resize(usize::try_from(size).expect("small").max(message.len()), 0x5a);
        message
    }

    fn import(state: &CommandState) -> Result<CommandState, CommandStateError> {
        Fifo::from_state(TpmVersion::V2_0, state).map(|fifo| fifo.state())
    }

    fn reception(received: &[u8], missing: Option<usize>) -> CommandState {
        CommandState::Reception { received: received.to_vec(), missing }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let states = [
            CommandState::Idle,
            CommandState::Ready,
            reception(&message(20)[..5], None),
            reception(&message(20)[..6], Some(14)),
            reception(&message(20), Some(0)),
            CommandState::Execution { command: message(20) },
            CommandState::Completion { response: message(20), offset: 20 },
            CommandState::Stopping { then_ready: true },
        ];
        for state in states {
            assert_eq!(import(&state), Ok(state));
        }
    }

    #[test]
    fn a_reception_counts_what_its_bytes_say() {
        let wrong = |expected, found| Err(CommandStateError::Missing { expected, found });
        assert_eq!(import(&reception(&[], None)), Err(CommandStateError::NothingReceived));
        assert_eq!(import(&reception(&message(20)[..5], Some(15))), wrong(None, Some(15)));
        assert_eq!(import(&reception(&message(20)[..6], None)), wrong(Some(14), None));
        assert_eq!(import(&reception(&message(20)[..12], Some(7))), wrong(Some(8), Some(7)));
        let beyond = CommandStateError::BeyondSize { received: 12, size: 10 };
        assert_eq!(import(&reception(&[0; 12], Some(0))), Err(beyond));
    }

    #[test]
    fn a_command_over_the_buffer_may_have_lost_bytes_and_one_within_may_not() {
        let over = message(5000);
        let full = |missing| reception(&over[..BUFFER_SIZE], Some(missing));
        assert_eq!(import(&full(904)), Ok(full(904)));
        assert_eq!(import(&full(0)), Ok(full(0)));
        assert_eq!(import(&full(905)), Err(CommandStateError::Missing { expected: Some(904), found: Some(905) }));
        let early = reception(&over[..BUFFER_SIZE - 1], Some(904));
        assert_eq!(import(&early), Err(CommandStateError::Missing { expected: Some(905), found: Some(904) }));
        assert_eq!(import(&reception(&over, Some(0))), Err(CommandStateError::BufferOverflow(5000)));
    }

    #[test]
    fn commands_and_responses_are_whole_and_fit_the_buffer() {
        let command = |command: &[u8]| CommandState::Execution { command: command.to_vec() };
        let response = |response: &[u8]| CommandState::Completion { response: response.to_vec(), offset: 0 };
        let not_whole = |what, length| Err(CommandStateError::NotWhole { what, length });
        assert_eq!(import(&command(&message(20)[..19])), not_whole("command", 19));
        assert_eq!(import(&command(&[])), not_whole("command", 0));
        assert_eq!(import(&response(&message(20)[..9])), not_whole("response", 9));
        assert_eq!(import(&command(&message(4097))), Err(CommandStateError::BufferOverflow(4097)));
        assert_eq!(import(&response(&message(4097))), Err(CommandStateError::BufferOverflow(4097)));
    }

    #[test]
    fn no_more_is_read_than_there_is() {
        let state = CommandState::Completion { response: message(20), offset: 21 };
        assert_eq!(import(&state), Err(CommandStateError::ReadBeyondEnd { offset: 21, length: 20 }));
    }
}
