//! What can be wrong with stored state.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::file::{FormatError, OpenError};

/// What goes wrong with a state folder. Nothing in the folder was changed, unless a write says so.
#[derive(Debug, Error)]
pub enum StateError {
    /// The folder cannot be made or opened.
    #[error(
        "cannot open the state folder {}: {reason}; give a folder that this user may write to, or create, on a disk with \
         free space", path.display()
    )]
    Open {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// Another process uses the folder.
    #[error("the state folder {} is in use by process {holder}: two TPMs on one state would destroy it; end that process, or choose another folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// What the lock file says of its holder: a process id.
        holder: String,
    },
    /// A file in the folder cannot be read.
    #[error("cannot read the state file {name}: {reason}")]
    Read {
        /// The file's name in the folder.
        name: String,
        /// The system's reason.
        reason: io::Error,
    },
    /// A file in the folder is not this TPM's state.
    #[error(
        "the state file {name} is refused and left as it is: {reason}; restore it from a backup, or move it away to begin with a new TPM"
    )]
    Format {
        /// The file's name in the folder.
        name: String,
        /// What is wrong with it.
        reason: FormatError,
    },
    /// A file in the folder is undamaged, and the key does not fit.
    #[error("the state file {name} is refused and left as it is: {reason}")]
    Key {
        /// The file's name in the folder.
        name: String,
        /// How it does not fit.
        reason: OpenError,
    },
    /// A blob cannot be written. The old file is still there, whole.
    #[error("cannot write the state file {name}: {reason}; the state from before is still there")]
    Write {
        /// The file's name in the folder.
        name: String,
        /// The system's reason.
        reason: io::Error,
    },
}
