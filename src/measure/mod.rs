//! Measuring what is launched: the TCG's event log, the PCR values that it implies, and what a launch consists of. Bytes
//! in, bytes out; no sockets and no TPM.
//!
//! - [`digests`]: the digests of the same bytes in all banks.
//! - [`event_log`]: the log, to and from bytes.
//! - [`replay`]: the PCR values that a log implies.
//! - [`launch`]: what is measured of a launch, and as what.
//!
//! Sources: TCG PC Client Platform Firmware Profile 1.06 (below: the profile), TCG EFI Protocol 1.0, TCG PC Client
//! Specific Implementation 1.21 (for TPM 1.2), TPM 2.0 Library Part 1 (H-CRTM).

#![forbid(unsafe_code)]
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod digests;
pub mod event_log;
pub mod launch;
pub mod replay;

use std::fmt;

/// Bytes as hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
