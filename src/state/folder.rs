//! The folder on disk: its permissions, its lock, whole reads and atomic writes.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use rustix::fs::{FlockOperation, flock};

use super::file::{self, FormatError, Identity, Label, Undamaged};
use super::{Blob, Contents, Key, StateError};
use crate::tpm::TpmVersion;

const LOCK: &str = "lock";

/// An open and locked state folder.
///
/// The lock belongs to the open file, not to the process: it holds as long as any process has a copy of the
/// descriptor, so that it outlives the death of either of two that share it.
#[derive(Debug)]
pub struct StateFolder {
    dir: OwnedFd,
    /// Never unlocked, only closed.
    lock: OwnedFd,
    key: Option<Key>,
}

/// A file with a blob.
#[derive(Clone)]
pub struct StateFile {
    /// Version of the TPM, by the file's name.
    pub version: TpmVersion,
    /// Which blob, by the file's name.
    pub blob: Blob,
    /// The file's content.
    pub bytes: Vec<u8>,
}

impl StateFile {
    /// The file's name in the folder.
    #[must_use]
    pub fn name(&self) -> String {
        self.blob.file_name(self.version)
    }

    /// Finds out, without a key, whether it is whole and undamaged, and what it says that it is.
    ///
    /// # Errors
    /// [`StateError::Format`].
    pub fn inspect(&self) -> Result<Undamaged<'_>, StateError> {
        let undamaged = file::inspect(&self.bytes).and_then(|undamaged| {
            let named = (undamaged.label.version, undamaged.label.blob) == (self.version, self.blob);
            if named { Ok(undamaged) } else { Err(FormatError::OtherContent) }
        });
        undamaged.map_err(|reason| StateError::Format { name: self.name(), reason })
    }

    /// What it says that it is, and the payload.
    ///
    /// # Errors
    /// [`StateError::Format`], [`StateError::Key`].
    pub fn open(&self, key: Option<&Key>) -> Result<(Label, Vec<u8>), StateError> {
        let undamaged = self.inspect()?;
        let payload = undamaged.open(key).map_err(|reason| StateError::Key { name: self.name(), reason })?;
        Ok((undamaged.label, payload))
    }
}

/// Without the content, which is nobody's business.
impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} bytes", self.name(), self.bytes.len())
    }
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
        Ok(Self { dir: dir.into(), lock: lock.into(), key: None })
    }

    /// A folder that another process opened and locked, from copies of its two descriptors.
    #[must_use]
    pub fn shared(dir: OwnedFd, lock: OwnedFd) -> Self {
        Self { dir, lock, key: None }
    }

    /// The descriptors to hand to a process that is to share this folder: the folder, and its lock.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.dir.as_fd(), self.lock.as_fd()]
    }

    /// Opens the folder at `path`, if it is there, and locks it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_existing(path: &Path) -> Result<Self, StateError> {
        match path.metadata() {
            Ok(_) => Self::open(path),
            Err(reason) => Err(StateError::Open { path: path.to_owned(), reason }),
        }
    }

    /// Uses `key` for all that follows: what is read has to be sealed with it, what is written will be.
    #[must_use]
    pub fn with_key(self, key: Option<Key>) -> Self {
        Self { key, ..self }
    }

    /// The files with blobs that are there, each with its content, whatever that is.
    ///
    /// # Errors
    /// [`StateError::Read`].
    pub fn files(&self) -> Result<Vec<StateFile>, StateError> {
        let all = [TpmVersion::V2_0, TpmVersion::V1_2].map(|version| Blob::ALL.map(|blob| (version, blob)));
        all.into_iter()
            .flatten()
            .filter_map(|(version, blob)| {
                let file = |bytes| StateFile { version, blob, bytes };
                self.bytes(version, blob).map(|bytes| bytes.map(file)).transpose()
            })
            .collect()
    }

    /// All blobs that are there.
    ///
    /// # Errors
    /// As [`load`](Self::load), for the first that cannot be read.
    pub fn contents(&self) -> Result<Contents, StateError> {
        let mut contents = Contents::default();
        for file in self.files()? {
            contents.insert(file.version, file.blob, file.open(self.key.as_ref())?.1);
        }
        Ok(contents)
    }

    /// Reads a blob; `None` if there is no file of its name.
    ///
    /// # Errors
    /// [`StateError::Read`], [`StateError::Format`] for a file that is not this blob, whole and undamaged, and
    /// [`StateError::Key`] for one that is sealed with another key, or that should be and is not.
    pub fn load(&self, version: TpmVersion, blob: Blob) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.labelled(version, blob)?.map(|(_, payload)| payload))
    }

    /// Writes a blob so that the file holds either the old content or the new, whatever happens: a new file, synced,
    /// renamed over the old one, and the folder synced.
    ///
    /// # Errors
    /// [`StateError::Write`]. The old content is then still what a reader finds, except that after a failed sync of the
    /// folder it may be the new. An old file that cannot be read, as by [`load`](Self::load), is not replaced.
    pub fn store(&self, version: TpmVersion, blob: Blob, payload: &[u8]) -> Result<(), StateError> {
        let name = blob.file_name(version);
        let failed = |reason| StateError::Write { name: name.clone(), reason };
        let old = self.labelled(version, blob)?.map(|(label, _)| label);
        let generation = old.map_or(0, |label| label.generation).checked_add(1);
        let label = Label {
            version,
            blob,
            generation: generation.ok_or_else(|| failed(io::Error::other("there is no generation after its own")))?,
            identity: Some(self.identity(old).map_err(failed)?),
            written: Some(SystemTime::now()),
        };
        let bytes = file::encode(&label, payload, self.key.as_ref()).map_err(failed)?;
        self.replace(&name, &bytes).map_err(failed)
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

    /// A blob and what its file says of it.
    fn labelled(&self, version: TpmVersion, blob: Blob) -> Result<Option<(Label, Vec<u8>)>, StateError> {
        let Some(bytes) = self.bytes(version, blob)? else { return Ok(None) };
        StateFile { version, blob, bytes }.open(self.key.as_ref()).map(Some)
    }

    /// The identity of the state in this folder: that of the blob's old file, or of another, or else a new one.
    fn identity(&self, old: Option<Label>) -> io::Result<Identity> {
        if let Some(identity) = old.and_then(|label| label.identity) {
            return Ok(identity);
        }
        let files = self.files().map_err(io::Error::other)?;
        let others = files.iter().filter_map(|file| file.open(self.key.as_ref()).ok()?.0.identity);
        others.into_iter().next().map_or_else(Identity::random, Ok)
    }

    fn bytes(&self, version: TpmVersion, blob: Blob) -> Result<Option<Vec<u8>>, StateError> {
        let name = blob.file_name(version);
        match self.read(&name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(StateError::Read { name, reason }),
        }
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
mod tests;
