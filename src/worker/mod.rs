//! The child process in which the TPM itself runs, and its protocol.
//!
//! libtpms is a large parser of guest input, and a chip of the host keeps who uses it waiting in the kernel, where no
//! signal comes through. Either gets a process of its own, which holds the TPM and its state folder or its device, and
//! nothing else: the same program, started again with a hidden subcommand, its frame socket as standard input. Its
//! other descriptors come with the first frame. One request is under way at a time; each gets one reply.
//!
//! - [`frame`]: what the two processes say to each other; neither believes the other's frames.
//! - `process`: the loop of the child.
//! - `holding`: what a worker was started for, whatever its server says.
//! - `libtpms`: the library behind a safe face.
//! - `device`: a TPM of the host, opened by the server.
//! - `nvram`: where the library's blobs go.
//! - [`profile`]: what a new TPM is to have of what libtpms can do.
//! - `cancel`: a thread that cancels a running command.

mod cancel;
mod device;
pub mod frame;
mod holding;
mod libtpms;
mod nvram;
mod process;
pub mod profile;

pub use device::DeviceTpm;
pub(crate) use device::open_path_descriptor;
pub use holding::{FileNumbers, Holding};
pub use libtpms::library_version;
pub use process::{WorkerError, run};

/// The hidden subcommand that makes this program a worker.
pub const SUBCOMMAND: &str = "worker";
