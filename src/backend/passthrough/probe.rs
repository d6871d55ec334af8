//! What a chip is: asked before it is served, by a worker, since nobody knows whether it answers.
//!
//! Sources: TPM 2.0 Library Part 2 (`TPM_PT_MAX_COMMAND_SIZE`) and Part 3 (TPM2_GetCapability); TPM Main 1.2 Part 2
//! (`TPM_CAP_PROP_INPUT_BUFFER`) and Part 3 (TPM_GetTicks, TPM_GetCapability).

use std::os::fd::BorrowedFd;
use std::time::Duration;

use thiserror::Error;

use super::{HostTpm, PassthroughTpm};
use crate::backend::synchronous::{Patience, Synchronous, SynchronousError};
use crate::backend::worker::{Task, WorkerBackend};
use crate::backend::{Backend, BackendError};
use crate::launch::Launcher;
use crate::tpm::{BUFFER_SIZE, HEADER_SIZE, Header, TpmVersion};
use crate::worker::frame::{DeviceProperties, Request};

/// How long a chip may take for each of the questions what it is. Commands of other users of the chip come before ours.
pub const PROBE_LIMIT: Duration = Duration::from_secs(60);
/// How long the worker that asked may take to end. One that waits for a chip is left behind.
const END_LIMIT: Duration = Duration::from_secs(2);

/// TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES, TPM_PT_MAX_COMMAND_SIZE), one property.
const GET_MAX_COMMAND_SIZE: [u8; 22] = [0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 6, 0, 0, 1, 0x1e, 0, 0, 0, 1];
/// The beginning of its response after the header: one property (after moreData), and that one.
const MAX_COMMAND_SIZE: [u8; 12] = [0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 1, 0x1e];
/// TPM_GetTicks: of the commands of a TPM 1.2 one that is never refused for lack of authorization.
const GET_TICKS: [u8; 10] = [0, 0xc1, 0, 0, 0, 10, 0, 0, 0, 0xf1];
/// TPM_GetCapability(TPM_CAP_PROPERTY, TPM_CAP_PROP_INPUT_BUFFER).
const GET_INPUT_BUFFER: [u8; 22] = [0, 0xc1, 0, 0, 0, 22, 0, 0, 0, 0x65, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 1, 0x24];

const TPM_ST_NO_SESSIONS: u16 = 0x8001;
const TPM_TAG_RSP_COMMAND: u16 = 0x00c4;

/// What is not known is as large as it can be; the chip then refuses a command itself.
#[expect(clippy::cast_possible_truncation, reason = "4096")]
const UNKNOWN_SIZE: u16 = BUFFER_SIZE as u16;

/// Why it is not known what a chip is.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// It does not answer.
    #[error(
        "{name} has not answered within {} seconds: the chip hangs, or somebody keeps it busy; nothing can end the command \
         but the chip or a restart of the host", .limit.as_secs()
    )]
    NoAnswer {
        /// The device.
        name: String,
        /// The time that it had.
        limit: Duration,
    },
    /// The wait was given up.
    #[error("interrupted while waiting for {0}")]
    Interrupted(String),
    /// It does not work.
    #[error("{name} cannot be used")]
    Failed {
        /// The device.
        name: String,
        /// Why.
        source: BackendError,
    },
    /// What it answers is from no TPM.
    #[error("{0} answers, but neither as a TPM 2.0 nor as a TPM 1.2")]
    NoTpm(String),
}

impl HostTpm {
    /// Asks the TPM for its version and the size of its buffer. Waits at most `limit`, and not after `interrupt` has become
    /// readable; a worker that does not come back from the chip is left to the kernel.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn probe(
        self,
        worker: impl Launcher + 'static,
        limit: Duration,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> Result<PassthroughTpm, ProbeError> {
        let backend = WorkerBackend::new(Unknown(&self), worker);
        let mut tpm = Synchronous::new(backend, Patience { limit, interrupt });
        let properties = properties(&mut tpm);
        // The next worker must not have to wait for this one. One that waits for the chip is left behind.
        let _ = tpm.bury(END_LIMIT);
        let properties = properties.map_err(|error| self.probe_error(error))?;
        let properties = properties.ok_or_else(|| ProbeError::NoTpm(self.name.clone()))?;
        Ok(PassthroughTpm { properties, host: self })
    }

    fn probe_error(&self, error: SynchronousError) -> ProbeError {
        let name = self.name.clone();
        match error {
            SynchronousError::Backend(source) => ProbeError::Failed { name, source },
            SynchronousError::NoAnswer(limit) => ProbeError::NoAnswer { name, limit },
            SynchronousError::Interrupted => ProbeError::Interrupted(name),
        }
    }
}

/// The TPM of which nothing is known.
struct Unknown<'a>(&'a HostTpm);

impl Task for Unknown<'_> {
    fn start(&self) -> (Request<'_>, Vec<BorrowedFd<'_>>) {
        self.0.start(None)
    }
}

/// What a chip says of itself; none if that is not a TPM's way of saying it.
///
/// # Errors
/// [`SynchronousError`].
pub fn properties<B: Backend>(tpm: &mut Synchronous<'_, B>) -> Result<Option<DeviceProperties>, SynchronousError> {
    tpm.initialize()?;
    let answer = tpm.execute(&GET_MAX_COMMAND_SIZE)?;
    if tag(answer) == Some(TPM_ST_NO_SESSIONS) {
        let command_size = command_size(max_command_size(answer));
        return Ok(Some(DeviceProperties { version: TpmVersion::V2_0, command_size }));
    }
    // To a command of the other version, a TPM 1.2 answers TPM_BADTAG; and one that is disabled, an error to these.
    if tag(tpm.execute(&GET_TICKS)?) != Some(TPM_TAG_RSP_COMMAND) {
        return Ok(None);
    }
    let command_size = command_size(input_buffer(tpm.execute(&GET_INPUT_BUFFER)?));
    Ok(Some(DeviceProperties { version: TpmVersion::V1_2, command_size }))
}

fn tag(response: &[u8]) -> Option<u16> {
    Header::of_whole(response).map(|header| header.tag)
}

/// The value in a TPM 2.0's response.
fn max_command_size(response: &[u8]) -> Option<u32> {
    let [_more_data, rest @ ..] = success(response)? else { return None };
    rest.strip_prefix(&MAX_COMMAND_SIZE)?.first_chunk().copied().map(u32::from_be_bytes)
}

/// The value in a TPM 1.2's response: its size, and then it.
fn input_buffer(response: &[u8]) -> Option<u32> {
    success(response)?.strip_prefix(&[0, 0, 0, 4])?.first_chunk().copied().map(u32::from_be_bytes)
}

fn success(response: &[u8]) -> Option<&[u8]> {
    Header::of_whole(response).filter(|header| header.code == 0)?;
    response.get(HEADER_SIZE..)
}

/// A size that a chip gave, as far as it can be used.
fn command_size(given: Option<u32>) -> u16 {
    let size = given.and_then(|size| usize::try_from(size).ok()).filter(|size| *size >= HEADER_SIZE);
    size.and_then(|size| u16::try_from(size.min(BUFFER_SIZE)).ok()).unwrap_or(UNKNOWN_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_2_0(value: u32) -> Vec<u8> {
        let parameters = [&[0][..], &MAX_COMMAND_SIZE, &value.to_be_bytes()].concat();
        [&[0x80, 1, 0, 0, 0, 27, 0, 0, 0, 0][..], &parameters].concat()
    }

    #[test]
    fn a_size_is_read_from_whole_and_successful_responses_only() {
        assert_eq!(max_command_size(&of_2_0(1024)), Some(1024));
        assert_eq!(max_command_size(&of_2_0(1024)[..26]), None);
        assert_eq!(max_command_size(&[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1]), None);
        let of_1_2 = [0, 0xc4, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 8, 0];
        assert_eq!(input_buffer(&of_1_2), Some(2048));
        assert_eq!(input_buffer(&of_1_2[..17]), None);
    }

    #[test]
    fn a_size_that_cannot_be_is_taken_for_the_largest() {
        for (given, used) in [(Some(1024), 1024), (Some(1 << 20), 4096), (Some(9), 4096), (Some(0), 4096), (None, 4096)]
        {
            assert_eq!(command_size(given), used);
        }
    }
}
