//! What has happened, as plain integers that one thread owns: no lock, no atomic, nothing allocated once they are there.
//!
//! A guest chooses command codes and, with its commands, response codes. So each counts under a name of a fixed list, or
//! together with all that have none.

#![forbid(unsafe_code)]

mod commands;
mod latency;
mod responses;
mod tpm12;
pub(crate) mod tpm20;

pub use commands::{CommandCounters, Tally};
pub use latency::{BOUNDS, Latency};
pub use responses::ErrorClass;
