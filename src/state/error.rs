//! What can be wrong with stored state.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::anchor::{AnchorError, Rollback};
use super::archive::ArchiveError;
use super::file::{FormatError, Identity, OpenError};

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
    /// The state is not the newest.
    #[error(
        "the state file {name} is refused and left as it is: {reason}; put the newest state back, or accept the one that is there with `vfio-user-tpm state anchor --force`"
    )]
    Rollback {
        /// The file's name in the folder.
        name: String,
        /// What the anchor knows.
        reason: Rollback,
    },
    /// The rollback anchor is another TPM's, and one is to be made.
    #[error("the rollback anchor is for the state {known}, and a new TPM is to be made: give it an anchor of its own")]
    AnchorTaken {
        /// The state that the anchor is for.
        known: Identity,
    },
    /// The rollback anchor cannot be used.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// Files of one folder or archive are of different TPMs.
    #[error("the state file {name} belongs to another state than the others beside it")]
    Mixed {
        /// The file's name.
        name: String,
    },
    /// The folder is swtpm's.
    #[error(
        "the state folder holds the state of an swtpm ({name}), and none of vfio-user-tpm's own: move it into a new folder with `vfio-user-tpm state import --from-swtpm`"
    )]
    Swtpm {
        /// A file of swtpm's.
        name: &'static str,
    },
    /// Not a folder but a device, as of the host's TPM.
    #[error(
        "{} is a device and no state folder: the state of the host's TPM cannot leave its chip, so it cannot be exported, \
         copied or moved", path.display()
    )]
    Device {
        /// The device.
        path: PathBuf,
    },
    /// The folder is the embedded TPM's.
    #[error(
        "the state folder has the state of the embedded TPM ({name}), beside which swtpm would begin with a new TPM; move it \
         to a folder of swtpm's with `vfio-user-tpm state export --to-swtpm`, or use --backend=embedded"
    )]
    Embedded {
        /// The file that says so.
        name: String,
    },
    /// There is a state already.
    #[error(
        "the state folder holds the file {name} already, and nothing was changed: choose another folder, or --force to replace the whole state"
    )]
    Occupied {
        /// A file that is there.
        name: String,
    },
    /// There is no state.
    #[error("the state folder holds no state")]
    Empty,
    /// An exported file is not one.
    #[error("the exported state is refused: {0}")]
    Archive(ArchiveError),
}
