//! Physical presence: what an operating system has its firmware do to the TPM at the next start, where a person at the
//! machine would have to agree. Here the server does it, and the host agrees or not.
//!
//! The way of a request: methods of ACPI write it to the [`Window`] in BAR0; a reset takes it from there to the platform,
//! which runs the commands of its [`Execution`] between Startup and the closing of the platform hierarchy; the outcome goes
//! back to the window.
//!
//! Sources: TCG PC Client Platform Physical Presence Interface Specification 1.30 [PPI]; TPM 2.0 Library Part 3, sections
//! 24.6 (TPM2_Clear), 24.7 (TPM2_ClearControl), 24.4 (TPM2_ChangeEPS), 22.5 (TPM2_PCR_Allocate); TCG EFI Protocol
//! Specification (the bits of PCR banks).

#![forbid(unsafe_code)]
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod execution;
mod operation;
mod window;

pub use execution::{Execution, Next};
pub use operation::{Action, Consent, Request, Standing};
pub use window::{Answer, Outcome, REGISTERS_SIZE, SIGNATURE, Submission, Window, WindowState, WindowStateError};

/// The response to an operation that was carried out.
pub const SUCCESS: u32 = 0;
/// The response to an operation that the platform could not carry out, and of which the TPM has said nothing.
pub const FIRMWARE_FAILURE: u32 = 0xffff_fff1;
