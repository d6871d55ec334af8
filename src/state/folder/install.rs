//! Replacing the whole state of a folder at once.
//!
//! The new files are written beside the old ones, each under its name and `.incoming`. Then a file that names them
//! appears, by a rename, and with it the new state is the state: what is left to do, renaming them and deleting what is
//! not among them, needs no room, and whoever opens the folder next does it if it was interrupted.

use std::io;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::renameat;

use super::StateFolder;
use crate::state::file::{self, Identity, Label};
use crate::state::{Contents, Key, StateError, StateFile, every_blob};

/// The file whose appearance makes the new state the state: a line for each file name, and the last line.
pub(super) const REPLACING: &str = "replacing";

const LAST_LINE: &str = "that is all";

impl StateFolder {
    /// Replaces the whole state by these files, as they are: after an error or a crash the folder holds all of the old
    /// state or all of the new. They have to be of one state and to open with the folder's key. The rollback anchor, if
    /// there is one, is made anew for them.
    ///
    /// # Errors
    /// [`StateError::Occupied`] if there is a state already, whatever it is like, and `force` is not set;
    /// [`StateError::Empty`] if there are no files; [`StateError::Mixed`], and as [`StateFile::open`];
    /// [`StateError::Write`] and [`StateError::Anchor`].
    pub fn replace_all(&self, files: &[StateFile], force: bool) -> Result<(), StateError> {
        let labels = open_together(files, self.key())?;
        self.refuse_occupied(force)?;
        if !force {
            self.check_anchor(files)?;
        }
        self.install(files)?;
        Ok(self.anchor.as_ref().map_or(Ok(()), |anchor| anchor.make_anew(self.key(), &labels))?)
    }

    /// Replaces the whole state by `contents`, as [`replace_all`](Self::replace_all) does, with a new identity.
    ///
    /// # Errors
    /// As [`replace_all`](Self::replace_all).
    pub fn replace_contents(&self, contents: &Contents, force: bool) -> Result<(), StateError> {
        let failed = |reason| StateError::Write { name: REPLACING.to_owned(), reason };
        let identity = Some(Identity::random().map_err(failed)?);
        let files = contents.iter().map(|stored| {
            let (version, blob) = (stored.version, stored.blob);
            let label = Label { version, blob, generation: 1, identity, written: Some(SystemTime::now()) };
            let bytes = file::encode(&label, &stored.payload, self.key())?;
            Ok(StateFile { version, blob, bytes })
        });
        let files: Vec<_> = files.collect::<io::Result<_>>().map_err(failed)?;
        self.replace_all(&files, force)
    }

    /// Finds out whether the rollback anchor, if there is one, accepts these files as the whole state. Changes nothing.
    ///
    /// # Errors
    /// [`StateError::Rollback`], [`StateError::Anchor`], and as [`StateFile::open`].
    pub fn check_anchor(&self, files: &[StateFile]) -> Result<(), StateError> {
        let Some(anchor) = &self.anchor else { return Ok(()) };
        anchor.check(self.key(), &open_together(files, self.key())?)
    }

    /// Makes the rollback anchor that of the state in the folder, whatever it held. All files have to be readable.
    ///
    /// # Errors
    /// As [`replace_all`](Self::replace_all).
    pub fn anchor_anew(&self) -> Result<(), StateError> {
        let labels = open_together(&self.files()?, self.key())?;
        Ok(self.anchor.as_ref().map_or(Ok(()), |anchor| anchor.make_anew(self.key(), &labels))?)
    }

    /// Seals the state with `new` instead of the folder's key, or leaves it plain. After an error or a crash the folder
    /// holds all of it under the one key, or all under the other; a second call finishes what is left to do: it is no
    /// error if the state is under the new key already.
    ///
    /// # Errors
    /// As [`replace_all`](Self::replace_all), and [`StateError::Rollback`].
    pub fn rekey(&self, new: Option<&Key>) -> Result<(), StateError> {
        let files = self.files()?;
        let labels = match open_together(&files, new) {
            Ok(labels) => labels,
            Err(StateError::Key { .. }) => self.seal_again(&files, new)?,
            Err(error) => return Err(error),
        };
        self.anchor.as_ref().map_or(Ok(()), |anchor| anchor.rekey(self.key(), new, &labels))
    }

    fn seal_again(&self, files: &[StateFile], new: Option<&Key>) -> Result<Vec<Label>, StateError> {
        open_together(files, self.key())?;
        for (version, blob) in every_blob() {
            self.load(version, blob)?;
        }
        let identity = self.identity(None)?;
        let mut resealed = Vec::new();
        for file in files {
            let name = file.name();
            let failed = |reason| StateError::Write { name: name.clone(), reason };
            let (old, payload) = file.open(self.key())?;
            let identity = identity.map_or_else(Identity::random, Ok).map_err(failed)?;
            let label = Label {
                generation: old.generation.saturating_add(1),
                identity: Some(identity),
                written: Some(SystemTime::now()),
                ..old
            };
            let bytes = file::encode(&label, &payload, new).map_err(failed)?;
            resealed.push(StateFile { bytes, ..file.clone() });
        }
        let labels = open_together(&resealed, new)?;
        self.install(&resealed)?;
        Ok(labels)
    }

    fn refuse_occupied(&self, force: bool) -> Result<(), StateError> {
        // By name: what cannot be read is not overwritten either.
        for (version, blob) in every_blob().filter(|_| !force) {
            let name = blob.file_name(version);
            if self.exists(&name)? {
                return Err(StateError::Occupied { name });
            }
        }
        Ok(())
    }

    fn install(&self, files: &[StateFile]) -> Result<(), StateError> {
        let prepared = self.prepare(files);
        // With the list there, even if it may not last, the files that it names must be there too.
        if prepared.is_err() && self.unlink(REPLACING).is_ok() {
            // They would only take room that the next attempt may need; the first error is the one to report.
            for file in files {
                let _ = self.unlink(&incoming(&file.name()));
            }
        }
        prepared?;
        self.finish_replacing()
    }

    /// Deletes what an interruption before that moment has left: secrets, perhaps not sealed as the state is. Where it
    /// cannot be deleted it does no harm to the state.
    fn clear_incoming(&self) {
        for (version, blob) in every_blob() {
            let name = incoming(&blob.file_name(version));
            let cleared = self.exists(&name).and_then(|there| if there { self.unlink(&name) } else { Ok(()) });
            if let Err(error) = cleared {
                log::warn!("an import or a change of keys was interrupted and has left secrets behind: {error}");
            }
        }
    }

    /// Up to the moment from which the new state is the state.
    fn prepare(&self, files: &[StateFile]) -> Result<(), StateError> {
        let failed = |name: &str, reason| StateError::Write { name: name.to_owned(), reason };
        let mut list = String::new();
        for file in files {
            let name = incoming(&file.name());
            self.write_new(&name, &file.bytes).map_err(|reason| failed(&name, reason))?;
            list.push_str(&file.name());
            list.push('\n');
        }
        list.push_str(LAST_LINE);
        // What the list names must not come after it.
        nix::unistd::fsync(&self.dir).map_err(|errno| failed(REPLACING, errno.into()))?;
        self.replace(REPLACING, list.as_bytes()).map_err(|reason| failed(REPLACING, reason))
    }

    /// Finishes what [`install`](Self::install) has begun, if anything.
    pub(super) fn finish_replacing(&self) -> Result<(), StateError> {
        let unreadable = |reason| StateError::Read { name: REPLACING.to_owned(), reason };
        let list = match self.read(REPLACING) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.clear_incoming();
                return Ok(());
            }
            Err(reason) => return Err(unreadable(reason)),
        };
        let incoming_names = named(&list).ok_or_else(|| {
            unreadable(io::Error::other("it is damaged; it belongs to an import or a change of keys that was interrupted, do that again in a new folder"))
        })?;
        for (version, blob) in every_blob() {
            let name = blob.file_name(version);
            if incoming_names.contains(&name) {
                match renameat(&self.dir, incoming(&name).as_str(), &self.dir, name.as_str()) {
                    // Renamed before the interruption.
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(StateError::Write { name, reason: errno.into() }),
                }
            } else {
                self.unlink(&name)?;
            }
        }
        // All that must be on the disk before what says how to finish it goes.
        nix::unistd::fsync(&self.dir)
            .map_err(|errno| StateError::Write { name: REPLACING.to_owned(), reason: errno.into() })?;
        self.unlink(REPLACING)
    }
}

fn incoming(name: &str) -> String {
    format!("{name}.incoming")
}

/// The file names in a list, if it is whole: at least one, and each of a state file.
fn named(list: &[u8]) -> Option<Vec<String>> {
    let names = std::str::from_utf8(list).ok()?.strip_suffix(LAST_LINE)?;
    let names: Vec<String> = names.lines().map(ToOwned::to_owned).collect();
    let known = |name: &String| every_blob().any(|(version, blob)| *name == blob.file_name(version));
    (!names.is_empty() && names.iter().all(known)).then_some(names)
}

/// The labels of files that open with `key` and are of one state.
fn open_together(files: &[StateFile], key: Option<&Key>) -> Result<Vec<Label>, StateError> {
    check_together(files)?;
    files.iter().map(|file| file.open(key).map(|(label, _)| label)).collect()
}

/// Makes sure that there are files, undamaged and of one state, and tells whether any is sealed. Needs no key.
///
/// # Errors
/// [`StateError::Empty`], [`StateError::Format`], [`StateError::Mixed`].
pub fn check_together(files: &[StateFile]) -> Result<bool, StateError> {
    if files.is_empty() {
        return Err(StateError::Empty);
    }
    let (mut identity, mut sealed) = (None, false);
    for file in files {
        let undamaged = file.inspect()?;
        sealed |= undamaged.is_sealed();
        // Files of the old format say of no state that they belong to it.
        let own = undamaged.label.identity;
        if own.is_some() && own != *identity.get_or_insert(own) {
            return Err(StateError::Mixed { name: file.name() });
        }
    }
    Ok(sealed)
}

#[cfg(test)]
mod tests;
