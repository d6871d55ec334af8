//! The TPM behind the registers, whatever it is: one trait, and a file or folder for each kind of TPM.
//!
//! A backend works for an event loop: an operation is begun and returns at once; when the backend's descriptor becomes
//! readable, [`Backend::poll`] says what has ended. One operation is under way at a time - the engine sees to that.

pub mod embedded;
pub mod passthrough;
#[cfg(test)]
pub(crate) mod played;
pub mod swtpm;
pub mod synchronous;
mod unaccompanied;
pub mod worker;

pub(crate) use unaccompanied::SO_PASSRIGHTS;

use std::os::fd::BorrowedFd;

use thiserror::Error;

use crate::tpm::Locality;

/// What a backend has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// [`Backend::initialize`], [`Backend::hash`], [`Backend::reset_established`] or [`Backend::terminate`].
    Control {
        /// The TPM's `tpmEstablished` flag.
        established: bool,
    },
    /// [`Backend::execute`]: the response is in the buffer that was given to [`Backend::poll`]. Its length is bounded;
    /// whether it is well-formed is for the caller to find out.
    Response,
}

/// Why a TPM does not do what was asked.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The TPM cannot start, or refused an operation. The backend is still there.
    #[error("{0}")]
    Refused(String),
    /// The TPM's process is gone, or its connection is of no use any more. [`Backend::initialize`] begins anew.
    #[error("the TPM is gone: {0}")]
    Gone(String),
}

/// A TPM.
///
/// An operation that returns `Ok` has begun, and [`poll`](Self::poll) gives its outcome once, later. One that returns an
/// error has ended with it.
pub trait Backend {
    /// `_TPM_Init`: the TPM as after power-on, its volatile state gone. Brings up whatever does not run yet.
    ///
    /// # Errors
    /// [`BackendError`].
    fn initialize(&mut self) -> Result<(), BackendError>;

    /// `_TPM_Hash_Start`, `_TPM_Hash_Data` and `_TPM_Hash_End`, at locality 4; 1 to [`BUFFER_SIZE`] bytes. Before
    /// TPM2_Startup that is the H-CRTM's measurement.
    ///
    /// [`BUFFER_SIZE`]: crate::tpm::BUFFER_SIZE
    ///
    /// # Errors
    /// [`BackendError`].
    fn hash(&mut self, data: &[u8]) -> Result<(), BackendError>;

    /// Runs a command.
    ///
    /// # Errors
    /// [`BackendError::Gone`].
    fn execute(&mut self, locality: Locality, command: &[u8]) -> Result<(), BackendError>;

    /// Clears `tpmEstablished`.
    ///
    /// # Errors
    /// [`BackendError::Gone`].
    fn reset_established(&mut self, locality: Locality) -> Result<(), BackendError>;

    /// Powers the TPM off; nothing follows but [`initialize`](Self::initialize), or the end.
    ///
    /// # Errors
    /// [`BackendError::Gone`].
    fn terminate(&mut self) -> Result<(), BackendError>;

    /// Asks the command under way to end early, and returns whether this kind of TPM is known to obey. The command still
    /// ends by [`poll`](Self::poll).
    fn cancel(&mut self) -> bool;

    /// What has ended; `None` while the operation is still under way. A response replaces the content of `response`.
    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>>;

    /// Ends the TPM, whatever it does; an operation under way is forgotten. Returns at once: [`is_gone`](Self::is_gone)
    /// tells when nothing of it runs or writes any more. [`initialize`](Self::initialize) may come before; it waits.
    fn kill(&mut self);

    /// Whether nothing runs.
    fn is_gone(&self) -> bool;

    /// How often a process was started for this TPM; 0 for one that others start.
    fn launches(&self) -> u64 {
        0
    }

    /// What is known of this TPM besides its version, for people. It may hold what another process has said.
    fn about(&self) -> Option<String> {
        None
    }

    /// What becomes readable when [`poll`](Self::poll) has something to say, if that has changed since this was last
    /// asked. To be asked after each other method, until there is no more: a TPM may have several.
    fn take_new_descriptor(&mut self) -> Option<BorrowedFd<'_>>;
}
