//! What a chip is: asked before it is served, by a worker, since nobody knows whether it answers.
//!
//! Sources: TPM 2.0 Library Part 2 (`TPM_PT_MAX_COMMAND_SIZE`) and Part 3 (TPM2_GetCapability); TPM Main 1.2 Part 2
//! (`TPM_CAP_PROP_INPUT_BUFFER`) and Part 3 (TPM_GetTicks, TPM_GetCapability).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::{HostTpm, PassthroughTpm};
use crate::backend::worker::{Task, WorkerBackend};
use crate::backend::{Backend, BackendError};
use crate::launch::Launcher;
use crate::tpm::{BUFFER_SIZE, HEADER_SIZE, Header, Locality, TpmVersion};
use crate::worker::frame::{DeviceProperties, Request};

/// How long a chip may take to say what it is. Commands of other users of the chip come before ours.
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
        let mut prober = Prober::new(&self, worker, limit, interrupt);
        let properties = prober.properties();
        prober.end();
        Ok(PassthroughTpm { properties: properties?, host: self })
    }
}

/// The TPM of which nothing is known.
struct Unknown<'a>(&'a HostTpm);

impl Task for Unknown<'_> {
    fn start(&self) -> (Request<'_>, Vec<BorrowedFd<'_>>) {
        self.0.start(DeviceProperties { version: TpmVersion::V2_0, command_size: UNKNOWN_SIZE })
    }
}

struct Prober<'a> {
    host: &'a HostTpm,
    backend: WorkerBackend<Unknown<'a>>,
    limit: Duration,
    deadline: Instant,
    interrupt: Option<BorrowedFd<'a>>,
    /// A copy of the descriptor by which the worker is heard.
    worker: Option<OwnedFd>,
    response: Vec<u8>,
}

impl<'a> Prober<'a> {
    fn new(
        host: &'a HostTpm,
        worker: impl Launcher + 'static,
        limit: Duration,
        interrupt: Option<BorrowedFd<'a>>,
    ) -> Self {
        let backend = WorkerBackend::new(Unknown(host), worker);
        let deadline = deadline(limit);
        Self { host, backend, limit, deadline, interrupt, worker: None, response: Vec::new() }
    }

    fn properties(&mut self) -> Result<DeviceProperties, ProbeError> {
        let begun = self.backend.initialize();
        self.finish(begun)?;
        let answer = self.run(&GET_MAX_COMMAND_SIZE)?;
        if tag(answer) == Some(TPM_ST_NO_SESSIONS) {
            let command_size = command_size(max_command_size(answer));
            return Ok(DeviceProperties { version: TpmVersion::V2_0, command_size });
        }
        // To a command of the other version, a TPM 1.2 answers TPM_BADTAG; and one that is disabled, an error to these.
        if tag(self.run(&GET_TICKS)?) != Some(TPM_TAG_RSP_COMMAND) {
            return Err(ProbeError::NoTpm(self.host.name.clone()));
        }
        let command_size = command_size(input_buffer(self.run(&GET_INPUT_BUFFER)?));
        Ok(DeviceProperties { version: TpmVersion::V1_2, command_size })
    }

    fn run(&mut self, command: &[u8]) -> Result<&[u8], ProbeError> {
        let begun = self.backend.execute(Locality::ZERO, command);
        self.finish(begun)?;
        Ok(&self.response)
    }

    /// Waits for the end of what has begun.
    fn finish(&mut self, begun: Result<(), BackendError>) -> Result<(), ProbeError> {
        begun.map_err(|source| self.failed(source))?;
        loop {
            let done = self.backend.poll(&mut self.response);
            match done {
                Some(Ok(_)) => return Ok(()),
                Some(Err(source)) => return Err(self.failed(source)),
                None => self.wait(self.interrupt)?,
            }
        }
    }

    fn failed(&self, source: BackendError) -> ProbeError {
        ProbeError::Failed { name: self.host.name.clone(), source }
    }

    /// Waits for the worker to say something.
    fn wait(&mut self, interrupt: Option<BorrowedFd<'_>>) -> Result<(), ProbeError> {
        if let Some(descriptor) = self.backend.take_new_descriptor() {
            let copy = descriptor.try_clone_to_owned();
            self.worker = Some(copy.map_err(|error| self.failed(BackendError::Refused(error.to_string())))?);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProbeError::NoAnswer { name: self.host.name.clone(), limit: self.limit });
        }
        // Whole milliseconds: to wait a little too long is better than to turn around for nothing.
        let timeout = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
        let descriptors = [self.worker.as_ref().map(AsFd::as_fd), interrupt];
        let mut ready: Vec<_> =
            descriptors.into_iter().flatten().map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        match poll(&mut ready, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(self.failed(BackendError::Refused(errno.to_string()))),
        }
        let interrupted = interrupt.is_some() && ready.last().and_then(PollFd::any) == Some(true);
        if interrupted { Err(ProbeError::Interrupted(self.host.name.clone())) } else { Ok(()) }
    }

    /// Ends the worker, and waits for that a little: the next one must not have to.
    fn end(mut self) {
        self.backend.kill();
        self.worker = None;
        self.deadline = deadline(END_LIMIT);
        while !self.backend.is_gone() {
            let _ = self.backend.poll(&mut self.response);
            if self.backend.is_gone() || self.wait(None).is_err() {
                return;
            }
        }
    }
}

fn deadline(limit: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(limit).unwrap_or(now)
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
