//! The folder on disk: its permissions, its lock, whole reads and atomic writes.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::Blob;
use super::file::{self, FormatError};
use crate::tpm::TpmVersion;

const LOCK: &str = "lock";

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
    /// A blob cannot be written. The old file is still there, whole.
    #[error("cannot write the state file {name}: {reason}; the state from before is still there")]
    Write {
        /// The file's name in the folder.
        name: String,
        /// The system's reason.
        reason: io::Error,
    },
}

/// An open and locked state folder.
///
/// The lock belongs to the open file, not to the process: it holds as long as any process has a copy of the
/// descriptor, so that it outlives the death of either of two that share it.
#[derive(Debug)]
pub struct StateFolder {
    dir: OwnedFd,
    /// Never unlocked, only closed.
    lock: OwnedFd,
}

impl StateFolder {
    /// Opens the folder at `path`, creating it (mode 0700) if it is not there but the folder above is, and locks it.
    ///
    /// # Errors
    /// [`StateError::Open`], and [`StateError::Locked`] with the holder's process id.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |reason: io::Error| StateError::Open { path: path.to_owned(), reason };
        create(path).map_err(failed)?;
        let dir = File::open(path).map_err(failed)?;
        let metadata = dir.metadata().map_err(failed)?;
        if !metadata.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        if metadata.mode() & 0o077 != 0 {
            log::warn!(
                "the state folder {} is open to other users (mode {:o}): chmod 700 it, the TPM's secrets are in it",
                path.display(),
                metadata.mode() & 0o777
            );
        }
        if metadata.uid() != geteuid().as_raw() {
            log::warn!("the state folder {} belongs to user {}, and not to this one", path.display(), metadata.uid());
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let lock = openat(&dir, LOCK, flags, Mode::from_bits_truncate(0o600)).map_err(|errno| failed(errno.into()))?;
        let mut lock = File::from(lock);
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StateError::Locked { path: path.to_owned(), holder: holder_of(&mut lock) });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        // The number is for people, the lock is the kernel's: so a full disk is no reason to keep a TPM from being read.
        if let Err(error) = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())) {
            log::warn!("cannot write this process's number into {}: {error}", path.join(LOCK).display());
        }
        Ok(Self { dir: dir.into(), lock: lock.into() })
    }

    /// A folder that another process opened and locked, from copies of its two descriptors.
    #[must_use]
    pub fn shared(dir: OwnedFd, lock: OwnedFd) -> Self {
        Self { dir, lock }
    }

    /// The descriptors to hand to a process that is to share this folder: the folder, and its lock.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.dir.as_fd(), self.lock.as_fd()]
    }

    /// Reads a blob; `None` if there is no file of its name.
    ///
    /// # Errors
    /// [`StateError::Read`], and [`StateError::Format`] for a file that is not this blob, whole and undamaged.
    pub fn load(&self, version: TpmVersion, blob: Blob) -> Result<Option<Vec<u8>>, StateError> {
        let name = blob.file_name(version);
        let bytes = match self.read(&name) {
            Ok(bytes) => bytes,
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(reason) => return Err(StateError::Read { name, reason }),
        };
        match file::decode(version, blob, &bytes) {
            Ok(payload) => Ok(Some(payload.to_vec())),
            Err(reason) => Err(StateError::Format { name, reason }),
        }
    }

    /// Writes a blob so that the file holds either the old content or the new, whatever happens: a new file, synced,
    /// renamed over the old one, and the folder synced.
    ///
    /// # Errors
    /// [`StateError::Write`]. The old content is then still what a reader finds, except that after a failed sync of the
    /// folder it may be the new.
    pub fn store(&self, version: TpmVersion, blob: Blob, payload: &[u8]) -> Result<(), StateError> {
        let name = blob.file_name(version);
        self.replace(&name, &file::encode(version, blob, payload)).map_err(|reason| StateError::Write { name, reason })
    }

    /// Deletes a blob. That it is not there is no error.
    ///
    /// # Errors
    /// [`StateError::Write`].
    pub fn delete(&self, version: TpmVersion, blob: Blob) -> Result<(), StateError> {
        let name = blob.file_name(version);
        match unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => nix::unistd::fsync(&self.dir),
            Err(nix::errno::Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
        .map_err(|errno| StateError::Write { name, reason: errno.into() })
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // Neither a symbolic link nor a pipe put in the file's place is followed or waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.dir, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        let limit = file::MAX_FILE as u64;
        if file.take(limit.saturating_add(1)).read_to_end(&mut bytes)? as u64 > limit {
            return Err(io::Error::other(format!("it is larger than {limit} bytes, the largest state there can be")));
        }
        Ok(bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let new = format!("{name}.new");
        let written =
            self.write_new(&new, bytes).and_then(|()| Ok(renameat(&self.dir, new.as_str(), &self.dir, name)?));
        if written.is_err() {
            // A half-written file would only take room that the next attempt may need.
            let _ = unlinkat(&self.dir, new.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        written?;
        Ok(nix::unistd::fsync(&self.dir)?)
    }

    fn write_new(&self, new: &str, bytes: &[u8]) -> io::Result<()> {
        match unlinkat(&self.dir, new, UnlinkatFlags::NoRemoveDir) {
            // One may be left of a write that was killed in the middle.
            Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.dir, new, flags, Mode::from_bits_truncate(0o600))?);
        file.write_all(bytes)?;
        file.sync_all()
    }
}

/// Creates a folder that is not there, for this user alone, and makes it last. The folder above has to be there: one that
/// is not is more likely a mistake, or a disk that is not mounted.
fn create(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent)?.sync_all()
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a lock file says of the process that holds it; untrusted, so bounded and checked.
fn holder_of(lock: &mut File) -> String {
    let mut text = String::new();
    let _ = lock.rewind().and_then(|()| lock.take(32).read_to_string(&mut text));
    match text.trim().parse::<u32>() {
        Ok(pid) => pid.to_string(),
        Err(_) => "unknown (its lock file does not name one)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const V2: TpmVersion = TpmVersion::V2_0;
    const NAME: &str = "tpm2.0-permanent.state";

    fn folder() -> (tempfile::TempDir, StateFolder) {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::open(&temp.path().join("state")).unwrap();
        (temp, folder)
    }

    fn state_path(temp: &tempfile::TempDir) -> PathBuf {
        temp.path().join("state").join(NAME)
    }

    #[test]
    fn a_new_folder_is_private_and_empty() {
        let (temp, folder) = folder();
        let mode = fs::metadata(temp.path().join("state")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(folder.load(V2, Blob::Permanent).unwrap().is_none());
    }

    #[test]
    fn what_was_stored_is_loaded_by_the_next_process() {
        let (temp, folder) = folder();
        folder.store(V2, Blob::Permanent, b"one").unwrap();
        folder.store(V2, Blob::Permanent, b"two").unwrap();
        drop(folder);
        let again = StateFolder::open(&temp.path().join("state")).unwrap();
        assert_eq!(again.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"two"[..]));
        let mode = fs::metadata(state_path(&temp)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_second_user_is_told_who_holds_the_lock() {
        let (temp, _folder) = folder();
        let error = StateFolder::open(&temp.path().join("state")).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[test]
    fn the_lock_holds_as_long_as_a_copy_is_open() {
        let (temp, folder) = folder();
        let path = temp.path().join("state");
        let [dir, lock] = folder.descriptors().map(|fd| fd.try_clone_to_owned().unwrap());
        let copy = StateFolder::shared(dir, lock);
        drop(folder);
        assert!(matches!(StateFolder::open(&path), Err(StateError::Locked { .. })));
        assert!(copy.store(V2, Blob::Permanent, b"x").is_ok());
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let (temp, folder) = folder();
        fs::write(state_path(&temp), b"not ours").unwrap();
        assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Format { .. })));
        assert_eq!(fs::read(state_path(&temp)).unwrap(), b"not ours");
    }

    #[test]
    fn a_symbolic_link_in_the_place_of_the_state_is_not_followed() {
        let (temp, folder) = folder();
        symlink("/etc/hostname", state_path(&temp)).unwrap();
        assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Read { .. })));
    }

    #[test]
    fn a_pipe_in_the_place_of_the_state_does_not_block() {
        let (temp, folder) = folder();
        nix::unistd::mkfifo(&state_path(&temp), Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Read { .. })));
    }

    #[test]
    fn the_rest_of_an_interrupted_write_does_not_stop_the_next() {
        let (temp, folder) = folder();
        fs::write(state_path(&temp).with_extension("state.new"), b"half").unwrap();
        folder.store(V2, Blob::Permanent, b"whole").unwrap();
        assert_eq!(folder.load(V2, Blob::Permanent).unwrap().as_deref(), Some(&b"whole"[..]));
    }

    #[test]
    fn an_endless_file_is_refused_without_being_read_whole() {
        let (temp, folder) = folder();
        File::create(state_path(&temp)).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(folder.load(V2, Blob::Permanent), Err(StateError::Read { .. })));
    }

    #[test]
    fn deleting_what_is_not_there_is_no_error() {
        let (_temp, folder) = folder();
        folder.store(V2, Blob::SaveState, b"x").unwrap();
        folder.delete(V2, Blob::SaveState).unwrap();
        folder.delete(V2, Blob::SaveState).unwrap();
        assert!(folder.load(V2, Blob::SaveState).unwrap().is_none());
    }
}
