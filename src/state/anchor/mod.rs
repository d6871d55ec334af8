//! The rollback anchor: a small file in another place than the state, which knows how new the state is.
//!
//! Sealing keeps others from reading and changing a state, and not from putting back an old one that was whole when it
//! was copied. The anchor has to be where whoever can do that cannot write, and where backups of the state do not reach.
//!
//! The file is 8192 bytes: a record at 0 and another at 4096, written in turn and synced, so that a crash leaves one of
//! them whole, and never longer than at first, so that a full disk does not keep it from being written.

mod record;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::file::{Identity, Label};
use super::{Blob, Key, StateError, every_blob, new_file};
use crate::tpm::TpmVersion;
use record::{Record, SLOT_SIZE};
pub use record::{RecordError, Rollback};

/// Bytes from one slot to the next: no disk writes both at once.
const SLOT_DISTANCE: usize = 4096;

const FILE_SIZE: usize = 2 * SLOT_DISTANCE;

/// What goes wrong with a rollback anchor.
#[derive(Debug, Error)]
pub enum AnchorError {
    /// It cannot be made or opened.
    #[error("cannot open the rollback anchor {}: {reason}; give a path in a folder that this user may write to", path.display())]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// Another process uses it.
    #[error("the rollback anchor {} is in use by another process: each TPM needs one of its own", path.display())]
    Locked {
        /// Where it is.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read the rollback anchor: {0}")]
    Read(io::Error),
    /// It cannot be written.
    #[error("cannot write the rollback anchor: {0}")]
    Write(io::Error),
    /// What it holds is not to be believed.
    #[error(
        "the rollback anchor is refused and left as it is: {0}; `vfio-user-tpm state anchor --force` makes it anew for the state that is there"
    )]
    Record(RecordError),
}

/// An open and locked rollback anchor. As with the state folder, the lock belongs to the open file.
#[derive(Debug)]
pub struct Anchor(File);

impl Anchor {
    /// Opens the anchor, creating it if it is not there, and locks it. What it holds has to be whole, and written with
    /// `key`, or without one.
    ///
    /// # Errors
    /// [`AnchorError`].
    pub fn open(path: &Path, key: Option<&Key>) -> Result<Self, AnchorError> {
        let anchor = Self::open_unchecked(path, key)?;
        anchor.read(key)?;
        Ok(anchor)
    }

    /// As [`open`](Self::open), whatever it holds.
    ///
    /// # Errors
    /// [`AnchorError::Open`], [`AnchorError::Locked`].
    pub fn open_unchecked(path: &Path, key: Option<&Key>) -> Result<Self, AnchorError> {
        let failed = |reason| AnchorError::Open { path: path.to_owned(), reason };
        let open = || File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = Record::new().encode(key).to_vec();
                bytes.resize(FILE_SIZE, 0);
                new_file::write_for_owner(path, &bytes).map_err(failed)?;
                log::info!("a new rollback anchor: {}", path.display());
                open()
            }
            opened => opened,
        };
        let file = file.map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        if metadata.mode() & 0o022 != 0 {
            log::warn!("other users can write to the rollback anchor {}: chmod 600 it", path.display());
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(AnchorError::Locked { path: path.to_owned() }),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Opens an anchor that is there for looking only, without locking it. It must not be written to.
    ///
    /// # Errors
    /// [`AnchorError::Open`].
    pub(super) fn view(path: &Path) -> Result<Self, AnchorError> {
        let failed = |reason| AnchorError::Open { path: path.to_owned(), reason };
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let is_file = file.metadata().map_err(failed)?.is_file();
        if is_file { Ok(Self(file)) } else { Err(failed(io::Error::other("it is not a regular file"))) }
    }

    /// An anchor that another process opened and locked, from a copy of its descriptor.
    #[must_use]
    pub fn shared(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }

    /// The state that it is for, if it is for one yet.
    pub(super) fn identity(&self, key: Option<&Key>) -> Result<Option<Identity>, AnchorError> {
        Ok(self.read(key)?.identity)
    }

    /// The last generation of a blob that it has seen; 0 if none.
    pub(super) fn generation(&self, key: Option<&Key>, version: TpmVersion, blob: Blob) -> Result<u64, AnchorError> {
        Ok(self.read(key)?.generation(version, blob))
    }

    /// Compares with what was read of a blob, and takes up what is newer: that is a write after which the anchor could
    /// not be written any more.
    pub(super) fn observe(
        &self,
        key: Option<&Key>,
        version: TpmVersion,
        blob: Blob,
        label: Option<&Label>,
    ) -> Result<Result<(), Rollback>, AnchorError> {
        let before = self.read(key)?;
        let mut record = before;
        let observed = record.observe(version, blob, label);
        if record != before {
            self.write(record, key)?;
        }
        Ok(observed)
    }

    /// Notes a blob that was written.
    pub(super) fn written(&self, key: Option<&Key>, label: &Label) -> Result<(), AnchorError> {
        let mut record = self.read(key)?;
        record.written(label);
        self.write(record, key)
    }

    /// Notes that a blob is about to be deleted.
    pub(super) fn deleting(&self, key: Option<&Key>, version: TpmVersion, blob: Blob) -> Result<(), AnchorError> {
        let mut record = self.read(key)?;
        record.deleting(version, blob);
        self.write(record, key)
    }

    /// Makes it the anchor of the state with these blobs, whatever it held.
    pub(super) fn make_anew(&self, key: Option<&Key>, labels: &[Label]) -> Result<(), AnchorError> {
        let mut record = Record::new();
        for label in labels.iter().filter(|label| label.identity.is_some()) {
            record.written(label);
        }
        self.0.set_len(FILE_SIZE as u64).map_err(AnchorError::Write)?;
        record.sequence = Record::newest_sequence(&self.slots()?);
        self.write_both(record, key)
    }

    /// Moves it from one key to another, with a state that consists of these blobs under the new key. Where it was moved
    /// before, it is not moved again.
    pub(super) fn rekey(&self, old: Option<&Key>, new: Option<&Key>, labels: &[Label]) -> Result<(), StateError> {
        let mut record = self.read(new).or_else(|_| self.read(old))?;
        observe_all(&mut record, labels)?;
        Ok(self.write_both(record, new)?)
    }

    /// Finds out whether a state that consists of these blobs would be accepted. Changes nothing.
    pub(super) fn check(&self, key: Option<&Key>, labels: &[Label]) -> Result<(), StateError> {
        observe_all(&mut self.read(key)?, labels)
    }

    fn read(&self, key: Option<&Key>) -> Result<Record, AnchorError> {
        let length = self.0.metadata().map_err(AnchorError::Read)?.len();
        if length != FILE_SIZE as u64 {
            return Err(AnchorError::Record(RecordError::Damaged));
        }
        Record::newest(&self.slots()?, key).map_err(AnchorError::Record)
    }

    fn slots(&self) -> Result<[[u8; SLOT_SIZE]; 2], AnchorError> {
        let mut slots = [[0; SLOT_SIZE]; 2];
        for (slot, at) in slots.iter_mut().zip(SLOTS) {
            self.0.read_exact_at(slot, at).map_err(AnchorError::Read)?;
        }
        Ok(slots)
    }

    /// Writes a record into the slot that does not hold the newest, and then over that.
    fn write_both(&self, mut record: Record, key: Option<&Key>) -> Result<(), AnchorError> {
        self.write(record, key)?;
        record.sequence = record.sequence.wrapping_add(1);
        self.write(record, key)
    }

    /// Writes a record that has come from the one before it.
    fn write(&self, mut record: Record, key: Option<&Key>) -> Result<(), AnchorError> {
        record.sequence = record.sequence.wrapping_add(1);
        let [even, odd] = SLOTS;
        let at = if record.sequence % 2 == 0 { even } else { odd };
        let written = self.0.write_all_at(&record.encode(key), at).and_then(|()| self.0.sync_data());
        written.map_err(AnchorError::Write)
    }
}

/// Compares with a state that consists of these blobs.
fn observe_all(record: &mut Record, labels: &[Label]) -> Result<(), StateError> {
    for (version, blob) in every_blob() {
        let label = labels.iter().find(|label| (label.version, label.blob) == (version, blob));
        let observed = record.observe(version, blob, label);
        observed.map_err(|reason| StateError::Rollback { name: blob.file_name(version), reason })?;
    }
    Ok(())
}

const SLOTS: [u64; 2] = [0, SLOT_DISTANCE as u64];

impl AsFd for Anchor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests;
