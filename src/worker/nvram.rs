//! Where libtpms' blobs go: the state folder, or memory for an ephemeral TPM.

use std::collections::HashMap;

use crate::state::{Blob, StateError, StateFolder};
use crate::tpm::TpmVersion;

/// The blobs of one TPM.
#[derive(Debug)]
pub(super) struct Nvram {
    version: TpmVersion,
    place: Place,
    /// The TPM has been given its permanent blob.
    given: bool,
    /// Why the blobs could not be read. From then on nothing is written: what is there may be all that is left of a TPM.
    unreadable: Option<String>,
}

#[derive(Debug)]
enum Place {
    Folder(StateFolder),
    Memory(HashMap<Blob, Vec<u8>>),
}

impl Nvram {
    pub(super) fn new(version: TpmVersion, folder: Option<StateFolder>) -> Self {
        let place = folder.map_or_else(|| Place::Memory(HashMap::new()), Place::Folder);
        Self { version, place, given: false, unreadable: None }
    }

    /// Reads a blob; that it cannot is remembered, and the caller's to report.
    pub(super) fn load(&mut self, blob: Blob) -> Result<Option<Vec<u8>>, StateError> {
        match &self.place {
            Place::Memory(blobs) => Ok(blobs.get(&blob).cloned()),
            Place::Folder(folder) => {
                folder.load(self.version, blob).inspect_err(|error| self.unreadable = Some(error.to_string()))
            }
        }
    }

    /// Returns whether the blob is stored; what is wrong goes into the log.
    pub(super) fn store(&mut self, blob: Blob, payload: &[u8]) -> bool {
        self.change(|place, version| match place {
            Place::Memory(blobs) => {
                blobs.insert(blob, payload.to_vec());
                Ok(())
            }
            Place::Folder(folder) => folder.store(version, blob, payload),
        })
    }

    /// Returns whether the blob is gone; what is wrong goes into the log.
    pub(super) fn delete(&mut self, blob: Blob) -> bool {
        self.change(|place, version| match place {
            Place::Memory(blobs) => {
                blobs.remove(&blob);
                Ok(())
            }
            Place::Folder(folder) => folder.delete(version, blob),
        })
    }

    /// What stopped the blobs from being read, if anything did.
    pub(super) fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// The name of the file with the permanent blob, if the TPM has been given it.
    pub(super) fn given(&self) -> Option<String> {
        self.given.then(|| Blob::Permanent.file_name(self.version))
    }

    /// Forgets what was before: the TPM is about to read everything anew.
    pub(super) fn begin(&mut self) {
        self.unreadable = None;
        self.given = false;
    }

    fn change(&mut self, change: impl FnOnce(&mut Place, TpmVersion) -> Result<(), StateError>) -> bool {
        if self.unreadable.is_some() {
            return false;
        }
        let changed = change(&mut self.place, self.version);
        if let Err(error) = &changed {
            log::error!("{error}; the TPM goes into failure mode");
        }
        changed.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_state_is_never_written_over() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(Blob::Permanent.file_name(TpmVersion::V2_0));
        std::fs::write(&path, b"something else").unwrap();
        let mut nvram = Nvram::new(TpmVersion::V2_0, Some(StateFolder::open(temp.path()).unwrap()));
        assert!(nvram.load(Blob::Permanent).is_err());
        assert!(!nvram.store(Blob::Permanent, b"new"));
        assert!(!nvram.delete(Blob::Permanent));
        assert!(nvram.unreadable().is_some_and(|reason| reason.contains("permanent")));
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
    }

    #[test]
    fn an_ephemeral_tpm_keeps_its_blobs_over_a_reset() {
        let mut nvram = Nvram::new(TpmVersion::V2_0, None);
        assert!(nvram.store(Blob::Permanent, b"x"));
        nvram.begin();
        assert_eq!(nvram.load(Blob::Permanent).unwrap().as_deref(), Some(&b"x"[..]));
        assert!(nvram.delete(Blob::Permanent));
        assert_eq!(nvram.load(Blob::Permanent).unwrap(), None);
    }
}
