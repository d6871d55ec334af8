//! A backend for a program that has nothing else to do than to wait for it: one command after the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Backend, BackendError, Done};
use crate::tpm::{BUFFER_SIZE, Locality};

/// How long a killed process may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How long an operation is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    /// Longest time for one operation.
    pub limit: Duration,
    /// Ends a wait when it becomes readable.
    pub interrupt: Option<BorrowedFd<'a>>,
}

/// Why an operation has no outcome.
#[derive(Debug, Error)]
pub enum SynchronousError {
    /// The backend's own reason.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// It took too long; the TPM was killed.
    #[error("the TPM has not answered within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The wait was interrupted; the TPM was killed.
    #[error("interrupted while waiting for the TPM")]
    Interrupted,
}

/// A TPM of which each operation is waited for. It is killed when this is dropped.
#[derive(Debug)]
pub struct Synchronous<'a, B: Backend> {
    backend: B,
    patience: Patience<'a>,
    /// What becomes readable when the backend has something to say.
    descriptor: Option<OwnedFd>,
    response: Zeroizing<Vec<u8>>,
}

impl<'a, B: Backend> Synchronous<'a, B> {
    /// A TPM that is off.
    #[must_use]
    pub fn new(backend: B, patience: Patience<'a>) -> Self {
        Self { backend, patience, descriptor: None, response: Vec::with_capacity(BUFFER_SIZE).into() }
    }

    /// `_TPM_Init`: brings the TPM up, or resets it.
    ///
    /// # Errors
    /// [`SynchronousError`].
    pub fn initialize(&mut self) -> Result<(), SynchronousError> {
        self.backend.initialize()?;
        self.control()
    }

    /// Runs a command at locality 0 and returns the response, which may be anything.
    ///
    /// # Errors
    /// [`SynchronousError`].
    pub fn execute(&mut self, command: &[u8]) -> Result<&[u8], SynchronousError> {
        self.backend.execute(Locality::ZERO, command)?;
        match self.outcome()? {
            Done::Response => Ok(&self.response),
            Done::Control { .. } => Err(self.out_of_turn()),
        }
    }

    /// Powers the TPM off and waits until nothing of it runs or writes any more.
    ///
    /// # Errors
    /// [`SynchronousError`].
    pub fn end(mut self) -> Result<(), SynchronousError> {
        self.backend.terminate()?;
        self.control()?;
        self.bury(END_LIMIT)
    }

    /// Kills the TPM and waits, at most for `limit`, until nothing of it runs or writes any more.
    ///
    /// # Errors
    /// [`SynchronousError`].
    pub fn bury(mut self, limit: Duration) -> Result<(), SynchronousError> {
        self.backend.kill();
        self.patience = Patience { limit, interrupt: None };
        let end = self.deadline();
        while !self.backend.is_gone() {
            // Nothing is under way; a backend notices here that its process has ended.
            let _ = self.backend.poll(&mut self.response);
            if !self.backend.is_gone() {
                self.wait(end)?;
            }
        }
        Ok(())
    }

    fn control(&mut self) -> Result<(), SynchronousError> {
        match self.outcome()? {
            Done::Control { .. } => Ok(()),
            Done::Response => Err(self.out_of_turn()),
        }
    }

    fn outcome(&mut self) -> Result<Done, SynchronousError> {
        let end = self.deadline();
        loop {
            if let Some(outcome) = self.backend.poll(&mut self.response) {
                return Ok(outcome?);
            }
            if let Err(error) = self.wait(end) {
                self.backend.kill();
                return Err(error);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.patience.limit)
    }

    /// Waits until the backend may have something to say.
    fn wait(&mut self, end: Option<Instant>) -> Result<(), SynchronousError> {
        let impossible = |error: io::Error| BackendError::Gone(format!("cannot wait for its process: {error}"));
        while let Some(new) = self.backend.take_new_descriptor() {
            self.descriptor = Some(new.try_clone_to_owned().map_err(impossible)?);
        }
        let left = end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(SynchronousError::NoAnswer(self.patience.limit));
        }
        // Rounded up, so that it does not spin through the last millisecond.
        let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        let sources = [self.patience.interrupt, self.descriptor.as_ref().map(AsFd::as_fd)];
        let mut sources: Vec<_> =
            sources.into_iter().flatten().map(|source| PollFd::new(source, PollFlags::POLLIN)).collect();
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(impossible(errno.into()).into()),
        }
        let interrupted = self.patience.interrupt.is_some() && sources.first().and_then(PollFd::any) == Some(true);
        if interrupted { Err(SynchronousError::Interrupted) } else { Ok(()) }
    }

    fn out_of_turn(&mut self) -> SynchronousError {
        self.backend.kill();
        BackendError::Gone("its process broke the protocol".to_owned()).into()
    }
}

impl<B: Backend> Drop for Synchronous<'_, B> {
    fn drop(&mut self) {
        self.backend.kill();
    }
}
