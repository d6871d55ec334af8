//! The register files that a guest sees: pure state machines. An access goes in; a value and perhaps an [`Effect`]
//! come out. No I/O, no threads, no clock.
//!
//! What a guest does is never an error: reads of what isn't there give ones, writes to it are dropped.

#![forbid(unsafe_code)]
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod crb;
mod locality;
mod log_area;
mod memory;
mod progress;
mod registers;
pub mod tis;
mod words;

use crate::tpm::Locality;
pub use locality::{LocalitiesState, LocalitiesStateError};
pub use log_area::{LOG_SIZE, LogState, LogStateError, LogTooLarge};
pub use memory::Memory;
pub use progress::Progress;
pub use registers::{RegisterFile, Registers};

/// What the rest of the device has to do because of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Run the command that the frontend holds (`command()`), at this locality, and call `complete()` with the
    /// response. Until then the frontend starts no other.
    Execute(Locality),
    /// Cancel the running command. Its completion is still awaited.
    Cancel,
    /// Clear the TPM's `tpmEstablished` flag, from this locality.
    ResetEstablishment(Locality),
}
