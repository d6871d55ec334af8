//! The state folder: what a TPM must not lose, in files that are whole or not there.
//!
//! [`StateFolder`] is the folder with its lock and its writes; [`mod@file`] is the format of one file in it, pure;
//! [`Key`] is what state is sealed with; [`Anchor`] keeps older state out; [`mod@archive`] is a state in one file, pure;
//! [`Contents`] is the state as a value. `docs/state.md` describes it all.

pub mod anchor;
pub mod archive;
mod contents;
mod error;
pub mod file;
mod folder;
mod key;
pub mod new_file;
mod owner;
mod state_file;
pub mod swtpm;

pub use anchor::Anchor;
pub use contents::{Contents, StoredBlob};
pub use error::StateError;
pub use folder::{MAKING, StateFolder, StateView, check_together};
pub use key::{GIVEN_SIZE, Key, KeyError, MASTER_SIZE};
pub use state_file::StateFile;

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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Permanent, Self::SaveState, Self::Volatile];

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

/// Each blob of each version: whatever a folder may hold.
fn every_blob() -> impl Iterator<Item = (TpmVersion, Blob)> {
    let versions = [TpmVersion::V2_0, TpmVersion::V1_2];
    versions.into_iter().flat_map(|version| Blob::ALL.map(|blob| (version, blob)))
}
