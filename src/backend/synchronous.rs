//! A backend for a program that has nothing else to do than to wait for it: one command after the other.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Backend, BackendError, Done};
use crate::tpm::Locality;

/// Longest of all operations: a slow machine looks for large primes, or its disk is busy.
const LIMIT: Duration = Duration::from_secs(300);
/// Longest wait for a killed process, which may wait for a disk.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A TPM of which each operation is waited for. It is killed when this is dropped.
#[derive(Debug)]
pub struct Synchronous<B: Backend> {
    backend: B,
    /// What becomes readable when the backend has something to say.
    descriptor: Option<OwnedFd>,
    response: Vec<u8>,
}

impl<B: Backend> Synchronous<B> {
    /// A TPM that is off.
    #[must_use]
    pub fn new(backend: B) -> Self {
        Self { backend, descriptor: None, response: Vec::new() }
    }

    /// `_TPM_Init`: brings the TPM up, or resets it.
    ///
    /// # Errors
    /// [`BackendError`], also when it takes more than five minutes.
    pub fn initialize(&mut self) -> Result<(), BackendError> {
        self.backend.initialize()?;
        self.control()
    }

    /// Runs a command at locality 0 and returns the response, which may be anything.
    ///
    /// # Errors
    /// As [`initialize`](Self::initialize).
    pub fn execute(&mut self, command: &[u8]) -> Result<&[u8], BackendError> {
        self.backend.execute(Locality::ZERO, command)?;
        match self.outcome()? {
            Done::Response => Ok(&self.response),
            Done::Control { .. } => Err(self.out_of_turn()),
        }
    }

    /// Powers the TPM off and waits until nothing of it runs or writes any more.
    ///
    /// # Errors
    /// As [`initialize`](Self::initialize).
    pub fn end(mut self) -> Result<(), BackendError> {
        self.backend.terminate()?;
        self.control()?;
        self.backend.kill();
        let end = Instant::now().checked_add(END_LIMIT);
        while !self.backend.is_gone() {
            // Nothing is under way; a backend notices here that its process has ended.
            let _ = self.backend.poll(&mut self.response);
            if !self.backend.is_gone() && !self.wait(end)? {
                return Err(BackendError::Gone("its process does not end".to_owned()));
            }
        }
        Ok(())
    }

    fn control(&mut self) -> Result<(), BackendError> {
        match self.outcome()? {
            Done::Control { .. } => Ok(()),
            Done::Response => Err(self.out_of_turn()),
        }
    }

    fn outcome(&mut self) -> Result<Done, BackendError> {
        let end = Instant::now().checked_add(LIMIT);
        loop {
            if let Some(outcome) = self.backend.poll(&mut self.response) {
                return outcome;
            }
            if !self.wait(end)? {
                self.backend.kill();
                return Err(BackendError::Gone(format!("it did not answer within {} s", LIMIT.as_secs())));
            }
        }
    }

    /// Waits until the backend may have something to say; false if the time is over.
    fn wait(&mut self, end: Option<Instant>) -> Result<bool, BackendError> {
        let gone = |what: &str, error: &dyn std::fmt::Display| BackendError::Gone(format!("{what}: {error}"));
        while let Some(new) = self.backend.take_new_descriptor() {
            let copy = new.try_clone_to_owned().map_err(|error| gone("cannot wait for its process", &error))?;
            self.descriptor = Some(copy);
        }
        let left = end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
        let (Some(descriptor), false) = (&self.descriptor, left.is_zero()) else { return Ok(false) };
        let mut descriptors = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that it does not spin through the last millisecond.
        let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(gone("cannot wait for its process", &errno)),
        }
    }

    fn out_of_turn(&mut self) -> BackendError {
        self.backend.kill();
        BackendError::Gone("its process broke the protocol".to_owned())
    }
}

impl<B: Backend> Drop for Synchronous<B> {
    fn drop(&mut self) {
        self.backend.kill();
    }
}
