//! The state folder: what a TPM must not lose, in files that are whole or not there.
//!
//! [`StateFolder`] is the folder with its lock and its writes; [`mod@file`] is the format of one file in it, pure.

pub mod file;
mod folder;
pub mod swtpm;

pub use folder::{StateError, StateFolder};

use std::fmt;

use crate::tpm::TpmVersion;

/// One of the blobs that a TPM keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blob {
    /// NV memory: seeds, hierarchies, NV indices, persistent keys. libtpms calls it `permall`.
    Permanent,
    /// What TPM 1.2's `TPM_SaveState` keeps.
    SaveState,
    /// A snapshot of the running TPM.
    Volatile,
}

impl Blob {
    /// The name of the file that holds this blob of a TPM of `version`.
    #[must_use]
    pub fn file_name(self, version: TpmVersion) -> String {
        format!("tpm{version}-{self}.state")
    }
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permanent => "permanent",
            Self::SaveState => "savestate",
            Self::Volatile => "volatile",
        })
    }
}
