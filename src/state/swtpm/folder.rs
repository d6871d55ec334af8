//! The folder: swtpm's names, its lock, whole reads and atomic writes.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use rustix::fs::{FlockOperation, fcntl_lock};
use thiserror::Error;

use super::SwtpmKey;
use super::file::{self, EncodeError, FormatError};
use crate::state::owner::give_to_owner_of;
use crate::state::{Blob, Contents};
use crate::tpm::TpmVersion;

const LOCK: &str = ".lock";

const VERSIONS: [TpmVersion; 2] = [TpmVersion::V2_0, TpmVersion::V1_2];

/// The order in which blobs are replaced. The permanent state comes last: the others mean nothing without it.
const IN_ORDER: [Blob; 3] = [Blob::Volatile, Blob::SaveState, Blob::Permanent];

/// What goes wrong with a folder of swtpm's. Nothing in it was changed, unless a write says so.
#[derive(Debug, Error)]
pub enum SwtpmFolderError {
    /// The folder cannot be opened.
    #[error("cannot open the swtpm folder {}: {reason}", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The lock file cannot be opened, or made.
    #[error("cannot lock the swtpm folder {} by its file .lock: {reason}", path.display())]
    Lock {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// swtpm runs on it.
    #[error("the swtpm folder {} is in use: shut the VM down, and end its swtpm", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// No TPM is there.
    #[error(
        "there is no TPM of swtpm's in {}: expected tpm2-00.permall (TPM 2.0) or tpm-00.permall (1.2); libvirt has them \
         under /var/lib/libvirt/swtpm/UUID/tpm2 or …/tpm1.2", path.display()
    )]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read swtpm's file {name}: {reason}")]
    Read {
        /// The file's name in the folder.
        name: String,
        /// The system's reason.
        reason: io::Error,
    },
    /// A file is not a blob.
    #[error("swtpm's file {name} is refused: {reason}")]
    Format {
        /// The file's name in the folder.
        name: String,
        /// What is wrong with it.
        reason: FormatError,
    },
    /// A state is in the way.
    #[error("{name} is there already, in {}: give another folder, or --force to lose the TPM that is there", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
        /// The file's name in it.
        name: String,
    },
    /// A blob cannot be encrypted.
    #[error("cannot write swtpm's file {name}: {reason}")]
    Encode {
        /// The file's name in the folder.
        name: String,
        /// Why.
        reason: EncodeError,
    },
    /// A file cannot be written. The permanent state from before, if any, is still there.
    #[error(
        "cannot write swtpm's file {name}: {reason}; this has to run as the user to whom the folder belongs, or as root"
    )]
    Write {
        /// The file's name in the folder.
        name: String,
        /// The system's reason.
        reason: io::Error,
    },
}

/// What swtpm keeps while it does not run.
#[derive(Debug)]
pub struct SwtpmState {
    /// The blobs: of each TPM that is there [`Blob::Permanent`], never [`Blob::Volatile`].
    pub contents: Contents,
    /// There is also the state of a TPM that was running, as it is kept for a VM that was suspended. It is left where it
    /// is: its TPM goes on from a reset.
    pub was_running: bool,
}

/// An open and locked folder of swtpm's.
#[derive(Debug)]
pub struct SwtpmFolder {
    path: PathBuf,
    dir: File,
    /// swtpm holds a lock of the same kind while it runs. It is let go when any descriptor of the file is closed in this
    /// process, so there is only this one.
    _lock: File,
}

impl SwtpmFolder {
    /// Opens and locks the folder at `path`.
    ///
    /// # Errors
    /// [`SwtpmFolderError::Open`], [`SwtpmFolderError::Lock`] and [`SwtpmFolderError::InUse`].
    pub fn open(path: &Path) -> Result<Self, SwtpmFolderError> {
        let failed = |reason: io::Error| SwtpmFolderError::Open { path: path.to_owned(), reason };
        let dir = File::open(path).map_err(failed)?;
        if !dir.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let lock = open_lock(&dir).map_err(|reason| SwtpmFolderError::Lock { path: path.to_owned(), reason })?;
        match fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), dir, _lock: lock }),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                Err(SwtpmFolderError::InUse { path: path.to_owned() })
            }
            Err(errno) => Err(SwtpmFolderError::Lock { path: path.to_owned(), reason: errno.into() }),
        }
    }

    /// As [`open`](Self::open), and makes the folder (mode 0700) if it is not there but the one above is.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn create(path: &Path) -> Result<Self, SwtpmFolderError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // A TPM that is moved out is deleted where it was: its new folder has to last.
        match DirBuilder::new().mode(0o700).create(path).and_then(|()| File::open(parent)?.sync_all()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(reason) => return Err(SwtpmFolderError::Open { path: path.to_owned(), reason }),
        }
        Self::open(path)
    }

    /// Reads the TPM that is there; both, if there is one of each version.
    ///
    /// # Errors
    /// [`SwtpmFolderError::Empty`], [`SwtpmFolderError::Read`] and [`SwtpmFolderError::Format`].
    pub fn read(&self, key: Option<&SwtpmKey>) -> Result<SwtpmState, SwtpmFolderError> {
        let mut state = SwtpmState { contents: Contents::default(), was_running: false };
        for version in VERSIONS {
            let Some(permanent) = self.read_file(&name_of(version, Blob::Permanent))? else { continue };
            let saved = self.read_file(&name_of(version, Blob::SaveState))?;
            for (blob, bytes) in [(Blob::Permanent, Some(permanent)), (Blob::SaveState, saved)] {
                let Some(bytes) = bytes else { continue };
                let payload = file::decode(&bytes, key)
                    .map_err(|reason| SwtpmFolderError::Format { name: name_of(version, blob), reason })?;
                state.contents.insert(version, blob, payload);
            }
            state.was_running |= self.read_file(&name_of(version, Blob::Volatile))?.is_some();
        }
        if state.contents.is_empty() {
            return Err(SwtpmFolderError::Empty { path: self.path.clone() });
        }
        Ok(state)
    }

    /// Writes a TPM, encrypted if there is a key. Either all of it is there afterwards, or the permanent state from before.
    /// What swtpm keeps of a TPM that was running is deleted: it belongs to the TPM from before. The files get the folder's
    /// owner, as whom swtpm runs.
    ///
    /// # Errors
    /// [`SwtpmFolderError::Exists`] if a TPM of the same version is there and `replace` is not said;
    /// [`SwtpmFolderError::Encode`] and [`SwtpmFolderError::Write`].
    pub fn write(&self, contents: &Contents, key: Option<&SwtpmKey>, replace: bool) -> Result<(), SwtpmFolderError> {
        let versions = VERSIONS.into_iter().filter(|&version| contents.get(version, Blob::Permanent).is_some());
        let files: Vec<_> = versions.flat_map(|version| IN_ORDER.map(|blob| (version, blob))).collect();
        let payload = |version, blob| contents.get(version, blob).filter(|_| blob != Blob::Volatile);
        if !replace {
            for name in files.iter().map(|&(version, blob)| name_of(version, blob)) {
                if self.read_file(&name)?.is_some() {
                    return Err(SwtpmFolderError::Exists { path: self.path.clone(), name });
                }
            }
        }
        for &(version, blob) in &files {
            let Some(payload) = payload(version, blob) else { continue };
            let name = name_of(version, blob);
            let bytes =
                file::encode(payload, key).map_err(|reason| SwtpmFolderError::Encode { name: name.clone(), reason })?;
            self.write_new(&new_name_of(version, blob), &bytes)
                .map_err(|reason| SwtpmFolderError::Write { name, reason })?;
        }
        // All that can fail for want of room is done.
        for &(version, blob) in &files {
            let name = name_of(version, blob);
            let put = match payload(version, blob) {
                Some(_) => renameat(&self.dir, new_name_of(version, blob).as_str(), &self.dir, name.as_str()),
                None => match unlinkat(&self.dir, name.as_str(), UnlinkatFlags::NoRemoveDir) {
                    Err(Errno::ENOENT) => Ok(()),
                    result => result,
                },
            };
            put.and_then(|()| fsync(&self.dir))
                .map_err(|errno| SwtpmFolderError::Write { name, reason: errno.into() })?;
        }
        Ok(())
    }

    /// `None` if there is no file of this name.
    fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, SwtpmFolderError> {
        match read_bounded(&self.dir, name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(SwtpmFolderError::Read { name: name.to_owned(), reason }),
        }
    }

    fn write_new(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.dir, name, flags, Mode::from_bits_truncate(0o600))?);
        let written =
            give_to_owner_of(&self.dir, &file).and_then(|()| file.write_all(bytes)).and_then(|()| file.sync_all());
        if written.is_err() {
            // A half-written file would only take room.
            let _ = unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir);
        }
        written
    }
}

/// swtpm's name for a blob's file, of the only TPM that it has.
fn name_of(version: TpmVersion, blob: Blob) -> String {
    format!("tpm{}-00.{}", prefix_of(version), suffix_of(blob))
}

/// swtpm's name for a file until it is whole: if one is left, swtpm makes use of its place.
fn new_name_of(version: TpmVersion, blob: Blob) -> String {
    format!("TMP{}-00.{}", prefix_of(version), suffix_of(blob))
}

fn prefix_of(version: TpmVersion) -> &'static str {
    match version {
        TpmVersion::V1_2 => "",
        TpmVersion::V2_0 => "2",
    }
}

fn suffix_of(blob: Blob) -> &'static str {
    match blob {
        Blob::Permanent => "permall",
        Blob::SaveState => "savestate",
        Blob::Volatile => "volatilestate",
    }
}

/// Opens swtpm's lock file, or makes it as swtpm would.
fn open_lock(dir: &File) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let open = |more| openat(dir, LOCK, flags | more, Mode::from_bits_truncate(0o660)).map(OwnedFd::into);
    match open(OFlag::empty()) {
        Err(Errno::ENOENT) => {}
        result => return Ok(result?),
    }
    let lock = open(OFlag::O_CREAT)?;
    // swtpm changes the modes of its files: they have to be its user's own.
    give_to_owner_of(dir, &lock)?;
    Ok(lock)
}

/// Reads a regular file of bounded size; neither a symbolic link nor a pipe is followed or waited for.
fn read_bounded(dir: &File, name: &str) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let (mut bytes, limit) = (Vec::new(), file::MAX_FILE as u64);
    if file.take(limit.saturating_add(1)).read_to_end(&mut bytes)? as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes, the largest state there can be")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    const V2: TpmVersion = TpmVersion::V2_0;

    fn folder() -> (tempfile::TempDir, SwtpmFolder) {
        let temp = tempfile::tempdir().unwrap();
        let folder = SwtpmFolder::open(temp.path()).unwrap();
        (temp, folder)
    }

    fn permanent(version: TpmVersion, payload: &[u8]) -> Contents {
        let mut contents = Contents::default();
        contents.insert(version, Blob::Permanent, payload.to_vec());
        contents
    }

    #[test]
    fn what_goes_in_comes_out() {
        let (_temp, folder) = folder();
        let mut contents = permanent(TpmVersion::V1_2, b"nv");
        contents.insert(TpmVersion::V1_2, Blob::SaveState, b"saved".to_vec());
        for key in [None, Some(SwtpmKey::aes_128([1; 16])), Some(SwtpmKey::aes_256([2; 32]))] {
            folder.write(&contents, key.as_ref(), true).unwrap();
            let state = folder.read(key.as_ref()).unwrap();
            assert!(!state.was_running && state.contents == contents);
        }
    }

    #[test]
    fn a_tpm_that_is_there_is_only_replaced_if_that_is_wanted() {
        let (temp, folder) = folder();
        let (old, new) = (permanent(V2, b"old"), permanent(V2, b"new"));
        folder.write(&old, None, false).unwrap();
        let error = folder.write(&new, None, false).unwrap_err();
        assert!(matches!(error, SwtpmFolderError::Exists { .. }), "{error}");
        assert!(folder.read(None).unwrap().contents == old);
        fs::write(temp.path().join("tpm2-00.volatilestate"), b"of the old one").unwrap();
        assert!(folder.read(None).unwrap().was_running);
        folder.write(&new, None, true).unwrap();
        let state = folder.read(None).unwrap();
        assert!(!state.was_running && state.contents == new);
        let mut names: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".lock", "tpm2-00.permall"]);
    }

    #[test]
    fn there_may_be_a_tpm_of_each_version_and_without_one_the_folder_is_refused() {
        let (_temp, folder) = folder();
        assert!(matches!(folder.read(None), Err(SwtpmFolderError::Empty { .. })));
        folder.write(&permanent(V2, b"2.0"), None, false).unwrap();
        folder.write(&permanent(TpmVersion::V1_2, b"1.2"), None, false).unwrap();
        assert_eq!(folder.read(None).unwrap().contents.iter().count(), 2);
    }

    #[test]
    fn a_folder_that_is_not_there_is_made_only_to_be_written_to() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new");
        assert!(matches!(SwtpmFolder::open(&path), Err(SwtpmFolderError::Open { .. })));
        SwtpmFolder::create(&path).unwrap();
        assert!(matches!(SwtpmFolder::create(&path.join("a/b")), Err(SwtpmFolderError::Open { .. })));
    }

    #[test]
    fn a_link_a_pipe_and_an_endless_file_are_refused() {
        let (temp, folder) = folder();
        let path = temp.path().join("tpm2-00.permall");
        symlink("/etc/hostname", &path).unwrap();
        assert!(matches!(folder.read(None), Err(SwtpmFolderError::Read { .. })));
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(folder.read(None), Err(SwtpmFolderError::Read { .. })));
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(folder.read(None), Err(SwtpmFolderError::Read { .. })));
    }

    #[test]
    fn the_files_belong_to_the_folders_owner() {
        if !nix::unistd::geteuid().is_root() {
            // Only root can make a folder that is somebody else's.
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(temp.path(), Some(12345), Some(54321)).unwrap();
        SwtpmFolder::open(temp.path()).unwrap().write(&permanent(V2, b"x"), None, false).unwrap();
        for name in [".lock", "tpm2-00.permall"] {
            let metadata = fs::metadata(temp.path().join(name)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (12345, 54321), "{name}");
        }
    }
}
