//! The folder on disk: its permissions, its lock, whole reads and atomic writes.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, getpid, test_kill_process};

use super::file::{self, Identity, Label};
use super::{Anchor, Blob, Contents, Key, StateError, StateFile, every_blob, owner};
use crate::tpm::TpmVersion;

mod install;
mod view;

pub use install::check_together;
pub use view::StateView;

const LOCK: &str = "lock";

/// A folder in the state folder, in which a TPM is made.
pub const MAKING: &str = "making";

/// How long the worker of a server that is gone may hold the lock.
const LINGERING: Duration = Duration::from_secs(10);

/// Permanent state as swtpm names it.
const SWTPM_FILES: [&str; 2] = ["tpm2-00.permall", "tpm-00.permall"];

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
    anchor: Option<Anchor>,
    /// Root works here for the owner, who gets the files.
    for_owner: bool,
}

impl StateFolder {
    /// Opens the folder at `path`, creating it (mode 0700) if it is not there but the folder above is, and locks it.
    ///
    /// # Errors
    /// [`StateError::Open`], and [`StateError::Locked`] with the holder's process id.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let folder = Self::open_for_making(path)?;
        if folder.exists(MAKING).is_ok_and(|there| there) {
            log::warn!(
                "{} was left by a state init or clone that was interrupted: delete it, the secrets of a TPM that nobody uses \
                 are in it",
                path.join(MAKING).display()
            );
        }
        Ok(folder)
    }

    /// As [`open`](Self::open), for who clears [`MAKING`] away and makes a TPM there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for_making(path: &Path) -> Result<Self, StateError> {
        let failed = |reason: io::Error| StateError::Open { path: path.to_owned(), reason };
        if path.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device()) {
            return Err(StateError::Device { path: path.to_owned() });
        }
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
        let for_owner = owner::is_served_by_root(&dir).map_err(failed)?;
        let mut lock = open_lock(&dir, for_owner).map_err(failed)?;
        match take(&mut lock, &dir) {
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
        let folder = Self { dir: dir.into(), lock: lock.into(), key: None, anchor: None, for_owner };
        folder.finish_replacing()?;
        Ok(folder)
    }

    /// A folder that another process opened and locked, from copies of its two descriptors. What is written there belongs to
    /// this process's user: a confined one can give nothing away.
    #[must_use]
    pub fn shared(dir: OwnedFd, lock: OwnedFd) -> Self {
        Self { dir, lock, key: None, anchor: None, for_owner: false }
    }

    /// The descriptors to hand to a process that is to share this folder: the folder, its lock, and the rollback anchor
    /// if there is one.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let anchor = self.anchor.iter().map(Anchor::as_fd);
        [self.dir.as_fd(), self.lock.as_fd()].into_iter().chain(anchor).collect()
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

    /// Uses `anchor` for all that follows: what is read must not be older than it knows. Set after the key, with which it
    /// is authenticated.
    #[must_use]
    pub fn with_anchor(self, anchor: Option<Anchor>) -> Self {
        Self { anchor, ..self }
    }

    /// The key in use.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// Makes sure that whatever undamaged state is there is sealed with the key in use, or not sealed if there is none.
    ///
    /// # Errors
    /// [`StateError::Read`], [`StateError::Key`].
    pub fn check_key(&self) -> Result<(), StateError> {
        for file in self.files()? {
            if let Err(error @ StateError::Key { .. }) = file.open(self.key.as_ref()) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes sure that the rollback anchor, if there is one, is not that of a TPM already.
    ///
    /// # Errors
    /// [`StateError::AnchorTaken`], [`StateError::Anchor`].
    pub fn refuse_taken_anchor(&self) -> Result<(), StateError> {
        let known = self.anchor.as_ref().map_or(Ok(None), |anchor| anchor.identity(self.key.as_ref()))?;
        known.map_or(Ok(()), |known| Err(StateError::AnchorTaken { known }))
    }

    /// Makes sure that the folder is not the state of an swtpm, beside which the embedded TPM would begin as a new one.
    ///
    /// # Errors
    /// [`StateError::Swtpm`].
    pub fn refuse_swtpm(&self) -> Result<(), StateError> {
        if !self.files()?.is_empty() {
            return Ok(());
        }
        match SWTPM_FILES.into_iter().find_map(|name| self.exists(name).map(|there| there.then_some(name)).transpose())
        {
            Some(name) => Err(StateError::Swtpm { name: name? }),
            None => Ok(()),
        }
    }

    /// Makes sure that the folder is not the state of the embedded TPM, beside which an swtpm would begin as a new one.
    ///
    /// # Errors
    /// [`StateError::Embedded`].
    pub fn refuse_embedded(&self) -> Result<(), StateError> {
        match self.files()?.first() {
            Some(file) => Err(StateError::Embedded { name: file.blob.file_name(file.version) }),
            None => Ok(()),
        }
    }

    fn exists(&self, name: &str) -> Result<bool, StateError> {
        match fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(StateError::Read { name: name.to_owned(), reason: errno.into() }),
        }
    }

    /// The files with blobs that are there, each with its content, whatever that is.
    ///
    /// # Errors
    /// [`StateError::Read`].
    pub fn files(&self) -> Result<Vec<StateFile>, StateError> {
        every_blob()
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
        for (version, blob) in every_blob() {
            if let Some(payload) = self.load(version, blob)? {
                contents.insert(version, blob, payload);
            }
        }
        Ok(contents)
    }

    /// Reads a blob; `None` if there is no file of its name.
    ///
    /// # Errors
    /// [`StateError::Read`], [`StateError::Format`] for a file that is not this blob, whole and undamaged, and
    /// [`StateError::Key`] for one that is sealed with another key, or that should be and is not.
    pub fn load(&self, version: TpmVersion, blob: Blob) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.read_blob(version, blob)?.map(|(_, payload)| payload))
    }

    /// Writes a blob so that the file holds either the old content or the new, whatever happens: a new file, synced,
    /// renamed over the old one, and the folder synced; then the rollback anchor, if there is one.
    ///
    /// # Errors
    /// [`StateError::Write`], [`StateError::Anchor`]. The old content is then still what a reader finds, except that after
    /// a failed sync of the folder, or a failed write of the anchor, it may be the new. An old file that cannot be read,
    /// as by [`load`](Self::load), is not replaced.
    pub fn store(&self, version: TpmVersion, blob: Blob, payload: &[u8]) -> Result<(), StateError> {
        let name = blob.file_name(version);
        let failed = |reason| StateError::Write { name: name.clone(), reason };
        let old = self.read_blob(version, blob)?.map(|(label, _)| label);
        let key = self.key.as_ref();
        // After a deletion only the anchor knows.
        let seen = self.anchor.as_ref().map_or(Ok(0), |anchor| anchor.generation(key, version, blob))?;
        let generation = old.map_or(0, |label| label.generation).max(seen).checked_add(1);
        let label = Label {
            version,
            blob,
            generation: generation.ok_or_else(|| failed(io::Error::other("there is no generation after its own")))?,
            identity: Some(self.identity(old)?.map_or_else(Identity::random, Ok).map_err(failed)?),
            written: Some(SystemTime::now()),
        };
        let bytes = file::encode(&label, payload, key).map_err(failed)?;
        self.replace(&name, &bytes).map_err(failed)?;
        Ok(self.anchor.as_ref().map_or(Ok(()), |anchor| anchor.written(key, &label))?)
    }

    /// Deletes a blob. That it is not there is no error.
    ///
    /// # Errors
    /// [`StateError::Write`], [`StateError::Anchor`].
    pub fn delete(&self, version: TpmVersion, blob: Blob) -> Result<(), StateError> {
        let name = blob.file_name(version);
        let Some(anchor) = &self.anchor else { return self.unlink(&name) };
        let Some((label, _)) = self.read_blob(version, blob)? else { return Ok(()) };
        // Between the two it may be there or not.
        anchor.deleting(self.key.as_ref(), version, label.blob)?;
        self.unlink(&name)?;
        self.check(version, blob, None)
    }

    /// A blob and what its file says of it, if it is as new as it must be.
    fn read_blob(&self, version: TpmVersion, blob: Blob) -> Result<Option<(Label, Vec<u8>)>, StateError> {
        let bytes = self.bytes(version, blob)?;
        let file = bytes.map(|bytes| StateFile { version, blob, bytes });
        let opened = file.map(|file| file.open(self.key.as_ref())).transpose()?;
        self.check(version, blob, opened.as_ref().map(|(label, _)| label))?;
        Ok(opened)
    }

    /// Compares what a blob's file says of itself with what the rollback anchor knows, if there is one.
    fn check(&self, version: TpmVersion, blob: Blob, label: Option<&Label>) -> Result<(), StateError> {
        let Some(anchor) = &self.anchor else { return Ok(()) };
        let name = blob.file_name(version);
        let observed = anchor.observe(self.key.as_ref(), version, blob, label)?;
        observed.map_err(|reason| StateError::Rollback { name, reason })
    }

    /// The identity of the state in this folder: that of the blob's old file, or of another, or the anchor's.
    fn identity(&self, old: Option<Label>) -> Result<Option<Identity>, StateError> {
        if let Some(identity) = old.and_then(|label| label.identity) {
            return Ok(Some(identity));
        }
        for file in self.files()? {
            if let Some(identity) = file.open(self.key.as_ref())?.0.identity {
                return Ok(Some(identity));
            }
        }
        Ok(self.anchor.as_ref().map_or(Ok(None), |anchor| anchor.identity(self.key.as_ref()))?)
    }

    fn unlink(&self, name: &str) -> Result<(), StateError> {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => nix::unistd::fsync(&self.dir),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
        .map_err(|errno| StateError::Write { name: name.to_owned(), reason: errno.into() })
    }

    fn bytes(&self, version: TpmVersion, blob: Blob) -> Result<Option<Vec<u8>>, StateError> {
        let name = blob.file_name(version);
        match self.read(&name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => {
                // In a folder that is gone there is no state to be found, and that does not mean that there never was.
                match fstat(&self.dir) {
                    Ok(folder) if folder.st_nlink == 0 => {
                        Err(StateError::Read { name, reason: io::Error::other("its folder was removed") })
                    }
                    Ok(_) => Ok(None),
                    Err(errno) => Err(StateError::Read { name, reason: errno.into() }),
                }
            }
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
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.dir, new, flags, Mode::from_bits_truncate(0o600))?);
        if self.for_owner {
            owner::give_to_owner_of(&self.dir, &file)?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    }
}

/// The folder itself.
impl AsFd for StateFolder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
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

/// Opens the lock file, or makes it, for the folder's owner if `for_owner` is set.
fn open_lock(dir: &File, for_owner: bool) -> io::Result<File> {
    let open = |more| {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | more;
        openat(dir, LOCK, flags, Mode::from_bits_truncate(0o600)).map(File::from)
    };
    match open(OFlag::O_CREAT | OFlag::O_EXCL) {
        Ok(new) => {
            if for_owner {
                owner::give_to_owner_of(dir, &new)?;
            }
            Ok(new)
        }
        // Made by another process, now or long ago; one that cannot make it says why.
        Err(Errno::EEXIST) => Ok(open(OFlag::empty())?),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the lock, or gives `WOULDBLOCK`. A server that was killed leaves it to a worker that is about to end as well, and a
/// process that is just being started has a copy of whatever its starter has: both are waited for, so that a service manager
/// can start the next server at once.
fn take(lock: &mut File, dir: &File) -> Result<(), rustix::io::Errno> {
    let end = Instant::now().checked_add(LINGERING);
    loop {
        let both = flock(&*lock, FlockOperation::NonBlockingLockExclusive).and_then(|()| {
            // Who deletes the file does not get around the lock. Not all file systems can lock a folder.
            match flock(dir, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => Err(rustix::io::Errno::WOULDBLOCK),
                Ok(()) | Err(_) => Ok(()),
            }
        });
        match both {
            Err(rustix::io::Errno::WOULDBLOCK) if end > Some(Instant::now()) && holder_is_gone(lock) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Whether the process that a lock file names is none that runs, or this one.
fn holder_is_gone(lock: &mut File) -> bool {
    let holder = holder_of(lock).parse().ok().and_then(Pid::from_raw);
    holder.is_some_and(|holder| holder == getpid() || test_kill_process(holder) == Err(rustix::io::Errno::SRCH))
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
