//! The TPM's one command buffer and the state that a command goes through. It belongs to the active locality; what
//! the localities do is not its business.
//!
//! Idle → (commandReady) → Ready → (first byte) → Reception → (tpmGo when `Expect` is 0) → Execution → (the backend is
//! done) → Completion → (commandReady) → Ready.
//!
//! From every state commandReady leads to Ready and the loss of the locality to Idle, what was there is aborted. From
//! Execution that takes until the backend is done; meanwhile the state is Stopping.

mod state;

use zeroize::{Zeroize, Zeroizing};

use crate::frontend::{Effect, Progress};
use crate::tpm::{BUFFER_SIZE, Fault, HEADER_SIZE, Header, Locality, TpmVersion, fault_response};

use super::registers::Sts;
pub use state::{CommandState, CommandStateError};

/// The largest burst count shown. Under 256 the upper byte is always 0, so a driver that reads the count byte by byte
/// sees no torn value, and one that reads a single byte sees no 0 for 256. This is the largest such multiple of eight.
const MAX_BURST_COUNT: u8 = 248;

/// Bytes of a command before its size is known: tag and size field.
const SIZE_KNOWN: usize = 6;

/// Where the command is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No command, and none is taken.
    Idle,
    /// The next FIFO byte begins a command.
    Ready,
    /// Command bytes come in. `missing` counts those still to come; unknown until the size field is in.
    Reception { missing: Option<usize> },
    /// The backend runs the command.
    Execution,
    /// The response is read; `offset` is the next byte.
    Completion { offset: usize },
    /// A command that nobody waits for still runs in the backend.
    Stopping { then_ready: bool },
}

/// The command buffer and its state.
#[derive(Clone, Debug)]
pub(super) struct Fifo {
    version: TpmVersion,
    state: State,
    /// The command's bytes in Reception and Execution, the response's in Completion, else empty; never over
    /// [`BUFFER_SIZE`]. What was in it and is not any more is wiped.
    buffer: Zeroizing<Vec<u8>>,
}

impl Fifo {
    /// An idle TPM of this version.
    pub(super) fn new(version: TpmVersion) -> Self {
        Self { version, state: State::Idle, buffer: Vec::with_capacity(BUFFER_SIZE).into() }
    }

    /// Power-on. A command that the backend still runs is forgotten.
    pub(super) fn reset(&mut self) {
        self.state = State::Idle;
        self.wipe();
    }

    /// How far the guest is with its command.
    pub(super) fn progress(&self) -> Progress {
        match self.state {
            State::Idle => Progress::Idle,
            State::Ready => Progress::Ready,
            State::Reception { .. } => Progress::Reception,
            State::Execution => Progress::Execution,
            State::Completion { .. } => Progress::Completion,
            State::Stopping { .. } => Progress::Stopping,
        }
    }

    /// Whether the backend runs a command, wanted or not.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.state, State::Execution | State::Stopping { .. })
    }

    /// Whether the owner waits for its command.
    pub(super) fn is_executing(&self) -> bool {
        self.state == State::Execution
    }

    /// The command that the backend is to run; empty when there is none.
    pub(super) fn command(&self) -> &[u8] {
        if self.is_executing() { &self.buffer } else { &[] }
    }

    /// The status bits that depend on the state.
    ///
    /// In Ready the low byte is `commandReady` and nothing else, without `stsValid`: Linux takes a cancel as done only
    /// then (`tpm_tis_req_canceled`). For the same reason a TPM that is Stopping shows nothing at all, and
    /// `selfTestDone`, which no backend reports, is left 0.
    pub(super) fn status(&self) -> Sts {
        match self.state {
            State::Idle | State::Stopping { .. } => Sts::empty(),
            State::Ready => Sts::COMMAND_READY,
            State::Reception { missing: Some(0) } | State::Execution => Sts::STS_VALID,
            State::Reception { .. } => Sts::STS_VALID | Sts::EXPECT,
            State::Completion { offset } if offset < self.buffer.len() => Sts::STS_VALID | Sts::DATA_AVAIL,
            State::Completion { .. } => Sts::STS_VALID,
        }
    }

    /// `burstCount`: how many FIFO bytes can be written or read now, at most [`MAX_BURST_COUNT`]. Zero where the FIFO
    /// takes and gives nothing.
    pub(super) fn burst_count(&self) -> u8 {
        let bytes = match self.state {
            State::Idle | State::Execution | State::Stopping { .. } => 0,
            State::Ready => BUFFER_SIZE,
            State::Reception { missing: None } => BUFFER_SIZE.saturating_sub(self.buffer.len()),
            State::Reception { missing: Some(missing) } => missing,
            State::Completion { offset } => self.buffer.len().saturating_sub(offset),
        };
        u8::try_from(bytes).unwrap_or(u8::MAX).min(MAX_BURST_COUNT)
    }

    /// Takes a command byte; drops it when none is expected.
    ///
    /// `Expect` stays for exactly as many bytes as the size field says (for a size under a header: the header), so
    /// that a driver's count and ours agree. Bytes over the buffer are swallowed; [`Self::go`] then answers the
    /// command with an error.
    pub(super) fn put(&mut self, byte: u8) {
        let missing = match self.state {
            State::Ready => None,
            State::Reception { missing } if missing != Some(0) => missing,
            _ => return,
        };
        if self.buffer.len() < BUFFER_SIZE {
            self.buffer.push(byte);
        }
        let missing = match missing {
            Some(missing) => Some(missing.saturating_sub(1)),
            None => missing_bytes(&self.buffer),
        };
        self.state = State::Reception { missing };
    }

    /// Gives the next response byte, 0xff when there is none.
    pub(super) fn take(&mut self) -> u8 {
        let State::Completion { offset } = &mut self.state else { return 0xff };
        let Some(&byte) = self.buffer.get(*offset) else { return 0xff };
        *offset = offset.saturating_add(1);
        byte
    }

    /// `tpmGo`: starts a command that is complete. One whose size field fits no buffer is answered here.
    pub(super) fn go(&mut self, locality: Locality) -> Option<Effect> {
        if self.state != (State::Reception { missing: Some(0) }) {
            return None;
        }
        if Header::of_whole(&self.buffer).is_none() {
            self.respond(&fault_response(self.version, Fault::CommandSize));
            return None;
        }
        self.state = State::Execution;
        Some(Effect::Execute(locality))
    }

    /// `commandReady`: aborts whatever is there and gets ready; when the backend still runs, as soon as it is done.
    pub(super) fn command_ready(&mut self) -> Option<Effect> {
        self.stop(true)
    }

    /// The owner has lost the TPM: aborts whatever is there, and the TPM is idle.
    pub(super) fn locality_lost(&mut self) -> Option<Effect> {
        self.stop(false)
    }

    /// `commandCancel`: the running command is to end soon. It completes as any other.
    pub(super) fn command_cancel(&self) -> Option<Effect> {
        (self.state == State::Execution).then_some(Effect::Cancel)
    }

    /// `responseRetry`: the response is read again from its first byte.
    pub(super) fn response_retry(&mut self) {
        if let State::Completion { offset } = &mut self.state {
            *offset = 0;
        }
    }

    /// The backend is done. The response of a command that nobody waits for is thrown away; one that isn't a whole
    /// response becomes a failure; without a command there is nothing to complete.
    pub(super) fn complete(&mut self, response: &[u8]) {
        match self.state {
            State::Execution if response.len() <= BUFFER_SIZE && Header::of_whole(response).is_some() => {
                self.respond(response);
            }
            State::Execution => self.respond(&fault_response(self.version, Fault::Failure)),
            State::Stopping { then_ready } => self.state = if then_ready { State::Ready } else { State::Idle },
            State::Idle | State::Ready | State::Reception { .. } | State::Completion { .. } => {}
        }
    }

    fn respond(&mut self, response: &[u8]) {
        self.wipe();
        self.buffer.extend_from_slice(response);
        self.state = State::Completion { offset: 0 };
    }

    /// Empties the buffer: authorization values and secrets may have been in it.
    fn wipe(&mut self) {
        // As a slice: beyond its length there is nothing.
        self.buffer.as_mut_slice().zeroize();
        self.buffer.clear();
    }

    fn stop(&mut self, then_ready: bool) -> Option<Effect> {
        let cancel = (self.state == State::Execution).then_some(Effect::Cancel);
        self.wipe();
        self.state = match self.state {
            State::Execution | State::Stopping { .. } => State::Stopping { then_ready },
            _ if then_ready => State::Ready,
            _ => State::Idle,
        };
        cancel
    }
}

/// How many bytes are still to come after `begin`, the first [`SIZE_KNOWN`], by the size field in them; `None` while
/// there are fewer.
fn missing_bytes(begin: &[u8]) -> Option<usize> {
    let &[_, _, s0, s1, s2, s3] = begin.first_chunk::<SIZE_KNOWN>()?;
    let size = usize::try_from(u32::from_be_bytes([s0, s1, s2, s3])).unwrap_or(usize::MAX);
    Some(size.max(HEADER_SIZE).saturating_sub(SIZE_KNOWN))
}
