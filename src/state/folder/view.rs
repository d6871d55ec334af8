//! A state folder that is only looked at: nothing in it is made, changed or kept locked, whoever uses it meanwhile.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use rustix::fs::{FlockOperation, flock};

use super::install::REPLACING;
use super::{LOCK, MAKING, StateFolder, holder_of};
use crate::state::{Anchor, Key, StateError, StateFile};

/// An open state folder that is not locked. A server that uses it may write at any moment: each file is whole, and they may
/// not be of the same moment.
#[derive(Debug)]
pub struct StateView(StateFolder);

impl StateView {
    /// Opens the folder at `path`, which has to be there.
    ///
    /// # Errors
    /// Those of `open(2)`, with `NotADirectory` for what is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A device or a pipe is not opened: that may do something to it.
        if !path.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let dir = File::open(path)?;
        let lock = dir.try_clone()?;
        Ok(Self(StateFolder::shared(dir.into(), lock.into())))
    }

    /// Owner, mode and so on.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn metadata(&self) -> io::Result<Metadata> {
        File::from(self.0.dir.try_clone()?).metadata()
    }

    /// The process that has the folder locked, as its lock file names it; `None` if nobody has. For that the lock is taken
    /// for a moment, shared, which can keep a server out that starts in just that moment.
    ///
    /// # Errors
    /// If the lock file cannot be opened.
    pub fn holder(&self) -> io::Result<Option<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut lock = match openat(&self.0.dir, LOCK, flags, Mode::empty()) {
            Ok(lock) => File::from(lock),
            Err(nix::errno::Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            // It is given back when it is closed.
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(holder_of(&mut lock))),
            Err(errno) => Err(errno.into()),
        }
    }

    /// As [`StateFolder::files`].
    ///
    /// # Errors
    /// [`StateError::Read`].
    pub fn files(&self) -> Result<Vec<StateFile>, StateError> {
        self.0.files()
    }

    /// As [`StateFolder::refuse_swtpm`].
    ///
    /// # Errors
    /// [`StateError::Swtpm`].
    pub fn refuse_swtpm(&self) -> Result<(), StateError> {
        self.0.refuse_swtpm()
    }

    /// As [`StateFolder::refuse_embedded`].
    ///
    /// # Errors
    /// [`StateError::Embedded`].
    pub fn refuse_embedded(&self) -> Result<(), StateError> {
        self.0.refuse_embedded()
    }

    /// Whether a TPM was being made, and the folder for that is left.
    #[must_use]
    pub fn has_unfinished_tpm(&self) -> bool {
        self.0.exists(MAKING).is_ok_and(|there| there)
    }

    /// Whether an import or a key change was interrupted, which the next who opens the folder finishes.
    #[must_use]
    pub fn has_unfinished_replacing(&self) -> bool {
        self.0.exists(REPLACING).is_ok_and(|there| there)
    }

    /// Finds out whether a rollback anchor accepts these files as the whole state.
    ///
    /// # Errors
    /// [`StateError::Rollback`], [`StateError::Anchor`], and as [`StateFile::open`].
    pub fn check_anchor(self, anchor: &Path, key: Option<Key>, files: &[StateFile]) -> Result<(), StateError> {
        self.0.with_key(key).with_anchor(Some(Anchor::view(anchor)?)).check_anchor(files)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::{Blob, Contents};
    use crate::tpm::TpmVersion;

    fn folder_with_state() -> (tempfile::TempDir, std::path::PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state");
        let mut contents = Contents::default();
        contents.insert(TpmVersion::V2_0, Blob::Permanent, vec![1; 100]);
        StateFolder::open(&path).unwrap().replace_contents(&contents, false).unwrap();
        (place, path)
    }

    #[test]
    fn whose_it_is_is_seen_without_being_in_the_way() {
        let (_place, path) = folder_with_state();
        let view = StateView::open(&path).unwrap();
        // What another test is starting has a copy of the lock for a moment.
        while view.holder().unwrap().is_some() {
            std::thread::yield_now();
        }
        let folder = StateFolder::open(&path).unwrap();
        assert_eq!(view.holder().unwrap(), Some(std::process::id().to_string()));
        assert_eq!(view.files().unwrap().len(), 1);
        drop(folder);
    }

    #[test]
    fn nothing_is_made_or_finished() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("replacing"), "").unwrap();
        fs::create_dir(place.path().join("making")).unwrap();
        let view = StateView::open(place.path()).unwrap();
        assert!(view.has_unfinished_tpm() && view.has_unfinished_replacing());
        assert!(view.holder().unwrap().is_none() && view.files().unwrap().is_empty());
        assert!(!place.path().join("lock").exists());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
        assert!(StateView::open(&place.path().join("nowhere")).is_err());
        assert!(!place.path().join("nowhere").exists());
    }

    #[test]
    fn what_is_no_folder_is_not_opened() {
        let error = StateView::open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn an_anchor_is_asked_and_not_moved_on() {
        let (place, path) = folder_with_state();
        let anchor = place.path().join("anchor");
        let store = |byte| {
            let folder = StateFolder::open(&path).unwrap().with_anchor(Some(Anchor::open(&anchor, None).unwrap()));
            folder.store(TpmVersion::V2_0, Blob::Permanent, &[byte; 10]).unwrap();
        };
        store(1);
        let old = fs::read(path.join("tpm2.0-permanent.state")).unwrap();
        store(2);
        let (before, view) = (fs::read(&anchor).unwrap(), || StateView::open(&path).unwrap());
        let files = view().files().unwrap();
        view().check_anchor(&anchor, None, &files).unwrap();
        fs::write(path.join("tpm2.0-permanent.state"), old).unwrap();
        let files = view().files().unwrap();
        assert!(matches!(view().check_anchor(&anchor, None, &files), Err(StateError::Rollback { .. })));
        assert_eq!(fs::read(&anchor).unwrap(), before);
        assert!(view().check_anchor(&place.path().join("nowhere"), None, &[]).is_err());
        assert!(!place.path().join("nowhere").exists());
    }
}
