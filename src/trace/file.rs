//! The file of a trace: opened before the program is confined, and never at the cost of another one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{ENXIO, O_NOFOLLOW, O_NONBLOCK};
use nix::unistd::geteuid;
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// For its owner alone.
const MODE: u32 = 0o600;

/// Where a trace goes: a new file, an empty one, or a FIFO that somebody reads.
#[derive(Debug)]
pub struct TraceFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// Why a trace cannot be written there.
#[derive(Debug, Error)]
pub enum TraceFileError {
    /// The system refuses.
    #[error("cannot open the trace's file {0}")]
    Open(PathBuf, #[source] io::Error),
    /// There is something that would be lost.
    #[error("{0} is not empty, and a trace is written over nothing: give another --trace-pcap, or move that file away")]
    NotEmpty(PathBuf),
    /// It is neither.
    #[error("{0} is neither a file nor a FIFO: give another --trace-pcap")]
    Other(PathBuf),
    /// Somebody else could read what is written there.
    #[error("{0} belongs to user {1}, who could read the trace: give another --trace-pcap")]
    Foreign(PathBuf, u32),
    /// So could whoever has it open, or opened it just now.
    #[error(
        "{0} may be used by others (mode {1:04o}), who could read the trace: chmod 600, or give another --trace-pcap"
    )]
    Exposed(PathBuf, u32),
    /// Another program has just begun a trace there.
    #[error("another trace is written to {0}: give another --trace-pcap")]
    InUse(PathBuf),
    /// A FIFO without a reader.
    #[error("nobody reads the FIFO {0}: start its reader first")]
    NoReader(PathBuf),
}

impl TraceFileError {
    /// Whether it may be otherwise at the next start, and was at the last one, with the same arguments.
    #[must_use]
    pub fn is_of_the_moment(&self) -> bool {
        matches!(self, Self::NotEmpty(_) | Self::InUse(_) | Self::NoReader(_))
    }
}

impl TraceFile {
    /// Opens the file, of which a new one gets the mode 0600. One that is there already has to be empty and for this user alone,
    /// and may be a FIFO; a symbolic link is not followed.
    ///
    /// # Errors
    /// [`TraceFileError`].
    pub fn open(path: &Path) -> Result<Self, TraceFileError> {
        let failed = |error| TraceFileError::Open(path.to_owned(), error);
        // Without O_NONBLOCK, a FIFO would be waited for.
        let new = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
        let file = match new {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                match OpenOptions::new().write(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path) {
                    Err(error) if error.raw_os_error() == Some(ENXIO) => {
                        return Err(TraceFileError::NoReader(path.to_owned()));
                    }
                    opened => opened,
                }
            }
            opened => opened,
        };
        let file = file.map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let kind = found.file_type();
        if !kind.is_file() && !kind.is_fifo() {
            return Err(TraceFileError::Other(path.to_owned()));
        }
        if found.uid() != geteuid().as_raw() {
            return Err(TraceFileError::Foreign(path.to_owned(), found.uid()));
        }
        if kind.is_file() {
            flock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_| TraceFileError::InUse(path.to_owned()))?;
            // Under the lock: who had it before may have written.
            if file.metadata().map_err(failed)?.len() != 0 {
                return Err(TraceFileError::NotEmpty(path.to_owned()));
            }
        }
        // Whoever has opened it keeps it open, so a better mode would come too late.
        if found.mode() & 0o077 != 0 {
            return Err(TraceFileError::Exposed(path.to_owned(), found.mode() & 0o7777));
        }
        // The thread that writes may wait.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| failed(errno.into()))?;
        Ok(Self { file, path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_new_file_is_private_and_what_is_there_has_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        drop(TraceFile::open(&path).unwrap());
        assert_eq!(mode(&path), MODE);
        TraceFile::open(&path).unwrap();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let _reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&fifo).unwrap();
        for path in [path, fifo] {
            for exposed in [0o640, 0o620, 0o604, 0o602, 0o777] {
                fs::set_permissions(&path, Permissions::from_mode(exposed)).unwrap();
                let error = TraceFile::open(&path).unwrap_err();
                assert!(
                    matches!(error, TraceFileError::Exposed(..)) && error.to_string().contains("chmod 600"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn nothing_that_is_there_is_lost_or_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("full"), "kept").unwrap();
        fs::write(path("empty"), "").unwrap();
        symlink(path("empty"), path("link")).unwrap();
        symlink(path("nowhere"), path("dangling")).unwrap();
        let refused = |name: &str| TraceFile::open(&path(name)).unwrap_err();
        assert!(matches!(refused("full"), TraceFileError::NotEmpty(_)));
        assert!(matches!(refused("link"), TraceFileError::Open(..)));
        assert!(matches!(refused("dangling"), TraceFileError::Open(..)));
        assert!(matches!(refused("."), TraceFileError::Open(..)));
        assert!(matches!(TraceFile::open(Path::new("/dev/null")).unwrap_err(), TraceFileError::Other(_)));
        assert_eq!(fs::read(path("full")).unwrap(), b"kept");
        assert!(!path("nowhere").exists());
    }

    #[test]
    fn two_traces_do_not_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let _first = TraceFile::open(&path).unwrap();
        assert!(matches!(TraceFile::open(&path).unwrap_err(), TraceFileError::InUse(_)));
    }

    #[test]
    fn a_fifo_needs_a_reader_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(matches!(TraceFile::open(&path).unwrap_err(), TraceFileError::NoReader(_)));
        let _reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
        let opened = TraceFile::open(&path).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&opened.file, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }
}
