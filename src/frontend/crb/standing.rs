//! What the guest wants of the command that runs.
//!
//! Linux gives up on a command by a cancellation, and may send the next at once. A TPM that does not obey is still at
//! the first then. That one's response must not be taken for the answer to the second, which nobody has read: the guest
//! is asked to send it again.

use serde::{Deserialize, Serialize};

use super::buffer;
use crate::frontend::Memory;
use crate::tpm::Fault;

/// What the guest wants of the command that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Its response.
    Wanted,
    /// That it ends soon. Its response is read if no other command comes before.
    Cancelled,
    /// Nothing: it was cancelled, and another command has been started since, which is not run.
    Superseded,
}

impl Standing {
    /// The guest cancels whatever it waits for.
    #[must_use]
    pub(super) fn cancelled(self) -> Self {
        match self {
            Self::Wanted | Self::Cancelled => Self::Cancelled,
            Self::Superseded => Self::Superseded,
        }
    }

    /// The guest starts something. While it waits for a response, that is nothing new.
    #[must_use]
    pub(super) fn started_again(self) -> Self {
        match self {
            Self::Wanted => Self::Wanted,
            Self::Cancelled | Self::Superseded => Self::Superseded,
        }
    }

    /// Puts what the guest is to read into the buffer, now that the command has this response.
    pub(super) fn respond(self, memory: &mut impl Memory, response: &[u8]) {
        match self {
            Self::Wanted | Self::Cancelled => buffer::respond(memory, response),
            Self::Superseded => buffer::respond_fault(memory, Fault::Retry),
        }
    }
}
