//! The place where a TPM is made: a folder inside its state folder. So the state folder holds a whole TPM or none,
//! whatever happens meanwhile, nothing secret is ever outside of it, and it may be a mount point.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ManufactureError;
use crate::state::{Contents, MAKING, StateFolder};

/// A state folder that holds no TPM yet, locked, and the folder in it where one is made. Both are as they were before
/// when this is dropped unfinished.
#[derive(Debug)]
pub struct Aside {
    // Dropped, and with it unlocked, after the place is cleared.
    place: Place,
    target: StateFolder,
}

/// What has to be cleared away in the end.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    state_folder: PathBuf,
    /// The state folder was not there before, and nothing is in it yet.
    to_be_removed: bool,
}

impl Aside {
    /// Opens and locks the state folder at `path`, creating it if it is not there; `protect` gives it its key and rollback
    /// anchor. What an interrupted run has left is cleared away.
    ///
    /// # Errors
    /// [`ManufactureError::Occupied`] if a TPM is in it, [`ManufactureError::State`], [`ManufactureError::Aside`], and those
    /// of `protect`.
    pub fn open<E: From<ManufactureError>>(
        path: &Path,
        protect: impl FnOnce(StateFolder) -> Result<StateFolder, E>,
    ) -> Result<Self, E> {
        let to_be_removed = path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let target = StateFolder::open_for_making(path).map_err(ManufactureError::from)?;
        let place = Place { path: path.join(MAKING), state_folder: path.to_owned(), to_be_removed };
        refuse_occupied(&target, path)?;
        place.clear().map_err(|reason| ManufactureError::Aside { path: place.path.clone(), reason })?;
        Ok(Self { target: protect(target)?, place })
    }

    /// The folder to make the TPM in, with the same key.
    ///
    /// # Errors
    /// [`ManufactureError::State`].
    pub fn folder(&self) -> Result<StateFolder, ManufactureError> {
        Ok(StateFolder::open(&self.place.path)?.with_key(self.target.key().cloned()))
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

    /// Makes `contents` the state in the state folder.
    ///
    /// # Errors
    /// [`ManufactureError::State`]; there is no state then.
    pub fn fill(mut self, contents: &Contents) -> Result<(), ManufactureError> {
        self.target.replace_contents(contents, false)?;
        self.place.to_be_removed = false;
        Ok(())
    }
}

fn refuse_occupied(target: &StateFolder, path: &Path) -> Result<(), ManufactureError> {
    match target.files()?.first() {
        Some(file) => Err(ManufactureError::Occupied { path: path.to_owned(), file: file.name() }),
        None => Ok(target.refuse_swtpm()?),
    }
}

impl Place {
    fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            cleared => cleared,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            log::warn!("cannot remove {}: {error}; it holds secrets of a TPM that is not used", self.path.display());
        }
        if self.to_be_removed {
            // Of an empty folder only the lock file is left. If anybody else has put something there, it stays.
            let _ = fs::remove_file(self.state_folder.join("lock"));
            let _ = fs::remove_dir(&self.state_folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Blob;
    use crate::tpm::TpmVersion;

    const V2: TpmVersion = TpmVersion::V2_0;

    fn open(path: &Path) -> Result<Aside, ManufactureError> {
        Aside::open(path, Ok)
    }

    #[test]
    fn what_was_made_is_there_as_a_whole_and_the_place_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        let aside = open(&path).unwrap();
        aside.folder().unwrap().store(V2, Blob::Permanent, b"a TPM").unwrap();
        aside.finish().unwrap();
        let state = StateFolder::open(&path).unwrap();
        assert_eq!(state.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"a TPM"[..]));
        assert!(!path.join(MAKING).exists());
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state");
        let aside = open(&path).unwrap();
        aside.folder().unwrap().store(V2, Blob::Permanent, b"half a TPM").unwrap();
        drop(aside);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_was_there_stays() {
        let temp = tempfile::tempdir().unwrap();
        drop(open(temp.path()).unwrap());
        assert!(temp.path().exists());
    }

    #[test]
    fn what_an_interrupted_run_left_is_cleared_away() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join(MAKING)).unwrap();
        fs::write(temp.path().join(MAKING).join(Blob::Permanent.file_name(V2)), b"half").unwrap();
        let aside = open(temp.path()).unwrap();
        assert!(aside.folder().unwrap().files().unwrap().is_empty());
        assert!(matches!(aside.finish(), Err(ManufactureError::NothingWritten)));
    }

    #[test]
    fn a_folder_with_a_tpm_is_left_alone() {
        for file in [Blob::Permanent.file_name(TpmVersion::V1_2), "tpm2-00.permall".to_owned()] {
            let temp = tempfile::tempdir().unwrap();
            fs::write(temp.path().join(&file), b"somebody's").unwrap();
            let error = open(temp.path()).unwrap_err().to_string();
            assert!(error.contains(&file), "{error}");
            assert_eq!(fs::read(temp.path().join(&file)).unwrap(), b"somebody's");
        }
    }
}
