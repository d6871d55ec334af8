//! The child process in which the TPM itself runs, and its protocol.
//!
//! libtpms is a large parser of guest input. It gets a process of its own, which holds the TPM and its state folder and
//! nothing else: the same program, started again with a hidden subcommand, its frame socket as standard input. Its
//! other descriptors come with the first frame. One request is under way at a time; each gets one reply.
//!
//! - [`frame`]: what the two processes say to each other; neither believes the other's frames.
//! - `process`: the loop of the child.
//! - `libtpms`: the library behind a safe face.
//! - `nvram`: where the library's blobs go.
//! - [`profile`]: what a new TPM is to have of what libtpms can do.
//! - `cancel`: a thread that cancels a running command.

mod cancel;
pub mod frame;
mod libtpms;
mod nvram;
mod process;
pub mod profile;

pub use process::{WorkerError, run};

/// The hidden subcommand that makes this program a worker.
pub const SUBCOMMAND: &str = "worker";
