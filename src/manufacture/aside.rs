//! The place where a TPM is made: a folder inside its state folder. So the state folder holds a whole TPM or none,
//! whatever happens meanwhile, nothing secret is ever outside of it, and it may be a mount point.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ManufactureError;
use crate::state::{Blob, Contents, Key, StateFolder};

/// The folder's name in the state folder.
const NAME: &str = "making";

/// What swtpm calls its state. It would stay unseen beside ours.
const SWTPM_FILES: [&str; 2] = ["tpm2-00.permall", "tpm-00.permall"];

/// A state folder that holds no TPM yet, locked, and the folder in it where one is made. Both are as they were before
/// when this is dropped unfinished.
#[derive(Debug)]
pub struct Aside {
    target: StateFolder,
    target_path: PathBuf,
    place: PathBuf,
    key: Option<Key>,
    /// The state folder was not there before, and nothing is in it yet.
    to_be_removed: bool,
}

impl Aside {
    /// Opens and locks the state folder at `path`, creating it if it is not there. What an interrupted run has left is
    /// cleared away.
    ///
    /// # Errors
    /// [`ManufactureError::Occupied`] if a TPM is in it, [`ManufactureError::State`], [`ManufactureError::Aside`].
    pub fn open(path: &Path, key: Option<Key>) -> Result<Self, ManufactureError> {
        let to_be_removed = path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let target = StateFolder::open(path)?.with_key(key.clone());
        let place = path.join(NAME);
        let aside = Self { target, target_path: path.to_owned(), place, key, to_be_removed };
        let ours = aside.target.files()?.first().map(crate::state::StateFile::name);
        let swtpm = || SWTPM_FILES.into_iter().find(|name| path.join(name).symlink_metadata().is_ok());
        if let Some(file) = ours.or_else(|| swtpm().map(str::to_owned)) {
            return Err(ManufactureError::Occupied { path: path.to_owned(), file });
        }
        aside.clear().map_err(|reason| aside.failed(reason))?;
        Ok(aside)
    }

    /// The folder to make the TPM in.
    ///
    /// # Errors
    /// [`ManufactureError::State`].
    pub fn folder(&self) -> Result<StateFolder, ManufactureError> {
        Ok(StateFolder::open(&self.place)?.with_key(self.key.clone()))
    }

    /// Moves what was made in the place into the state folder. Whoever made it must have ended.
    ///
    /// # Errors
    /// As [`fill`](Self::fill); [`ManufactureError::NothingWritten`].
    pub fn finish(self) -> Result<(), ManufactureError> {
        let made = self.folder()?.contents()?;
        if made.is_empty() {
            return Err(ManufactureError::NothingWritten);
        }
        self.fill(&made)
    }

    /// Writes `contents` into the state folder: the permanent blobs, without which there is no TPM, as the last.
    ///
    /// # Errors
    /// [`ManufactureError::State`]; nothing is left of it then.
    pub fn fill(mut self, contents: &Contents) -> Result<(), ManufactureError> {
        let (last, first): (Vec<_>, Vec<_>) = contents.iter().partition(|stored| stored.blob == Blob::Permanent);
        for (index, stored) in first.iter().chain(&last).enumerate() {
            if let Err(error) = self.target.store(stored.version, stored.blob, &stored.payload) {
                for written in first.iter().chain(&last).take(index.saturating_add(1)) {
                    // The error that is told is that of writing.
                    let _ = self.target.delete(written.version, written.blob);
                }
                return Err(error.into());
            }
        }
        self.to_be_removed = false;
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            cleared => cleared,
        }
    }

    fn failed(&self, reason: io::Error) -> ManufactureError {
        ManufactureError::Aside { path: self.place.clone(), reason }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            log::warn!("cannot remove {}: {error}; it holds secrets of a TPM that is not used", self.place.display());
        }
        if self.to_be_removed {
            // Of an empty folder only the lock file is left. If anybody else has put something there, it stays.
            let _ = fs::remove_file(self.target_path.join("lock"));
            let _ = fs::remove_dir(&self.target_path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::TpmVersion;

    const V2: TpmVersion = TpmVersion::V2_0;

    #[test]
    fn what_was_made_is_there_as_a_whole_and_the_place_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        let aside = Aside::open(&path, None).unwrap();
        aside.folder().unwrap().store(V2, Blob::Permanent, b"a TPM").unwrap();
        aside.finish().unwrap();
        let state = StateFolder::open(&path).unwrap();
        assert_eq!(state.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"a TPM"[..]));
        assert!(!path.join(NAME).exists());
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        let aside = Aside::open(&path, None).unwrap();
        aside.folder().unwrap().store(V2, Blob::Permanent, b"half a TPM").unwrap();
        drop(aside);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_was_there_stays() {
        let temp = tempfile::tempdir().unwrap();
        drop(Aside::open(temp.path(), None).unwrap());
        assert!(temp.path().exists());
    }

    #[test]
    fn what_an_interrupted_run_left_is_cleared_away() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join(NAME)).unwrap();
        fs::write(temp.path().join(NAME).join(Blob::Permanent.file_name(V2)), b"half").unwrap();
        let aside = Aside::open(temp.path(), None).unwrap();
        assert!(aside.folder().unwrap().files().unwrap().is_empty());
        assert!(matches!(aside.finish(), Err(ManufactureError::NothingWritten)));
    }

    #[test]
    fn a_folder_with_a_tpm_is_left_alone() {
        for file in [Blob::Permanent.file_name(TpmVersion::V1_2), "tpm2-00.permall".to_owned()] {
            let temp = tempfile::tempdir().unwrap();
            fs::write(temp.path().join(&file), b"somebody's").unwrap();
            let error = Aside::open(temp.path(), None).unwrap_err().to_string();
            assert!(error.contains(&file), "{error}");
            assert_eq!(fs::read(temp.path().join(&file)).unwrap(), b"somebody's");
        }
    }
}
