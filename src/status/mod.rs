//! How a server and its TPM are, as one value: made when somebody asks, and told as JSON, as metrics or to a person.
//!
//! Nothing in it is secret: numbers, names of commands, and why the TPM has failed. Not a byte of a command or response.

#![forbid(unsafe_code)]

mod metrics;
mod report;
mod resources;
mod text;

pub use metrics::CONTENT_TYPE as METRICS_TYPE;
pub use report::{
    About, Accesses, Client, CommandTally, Commands, Device, ErrorTally, FORMAT, Latency, Presence, Program, Report,
    Tpm,
};
pub use resources::answer;
pub use text::legible;
