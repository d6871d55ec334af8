//! Files whose digests are computed once.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use thiserror::Error;

use crate::measure::digests::{Digests, Hasher};

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// Why a file is not measured.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// A folder, a device, a pipe.
    #[error("{} is no regular file: what is measured has to stay what it is", path.display())]
    NotRegular {
        /// What was named.
        path: PathBuf,
    },
    /// It was written to meanwhile.
    #[error("{} was changed while it was being measured: measure it when nobody writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// What a file was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pinned {
    pub(super) digests: Digests,
    /// Bytes.
    pub(super) size: u64,
}

/// Opens and measures a file.
pub(super) fn measure(path: &Path) -> Result<Pinned, FileError> {
    // Nothing is waited for: to open a pipe waits for who writes to it.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    let file = file.map_err(|reason| FileError::Read { path: path.to_owned(), reason })?;
    measure_open(&file, path)
}

/// Measures an open file from its beginning; the path is for messages.
fn measure_open(mut file: &File, path: &Path) -> Result<Pinned, FileError> {
    let failed = |reason| FileError::Read { path: path.to_owned(), reason };
    let before = file.metadata().map_err(failed)?;
    if !before.is_file() {
        return Err(FileError::NotRegular { path: path.to_owned() });
    }
    let mut hasher = Hasher::default();
    let mut piece = vec![0; PIECE];
    let mut size: u64 = 0;
    loop {
        let count = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hasher.update(piece.get(..count).unwrap_or_default());
        size = size.saturating_add(count as u64);
        // A file that grows as it is read has no end.
        if size > before.len() {
            return Err(FileError::Changed { path: path.to_owned() });
        }
    }
    let after = file.metadata().map_err(failed)?;
    if size != before.len() || !is_same(&before, &after) {
        return Err(FileError::Changed { path: path.to_owned() });
    }
    Ok(Pinned { digests: hasher.finish(), size })
}

/// Whether a file was left alone, as far as the system tells.
fn is_same(before: &Metadata, after: &Metadata) -> bool {
    let facts = |of: &Metadata| (of.len(), of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    facts(before) == facts(after)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_file_is_read_to_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("initrd");
        let content: Vec<u8> = (0..=255).cycle().take(2 * PIECE + 17).collect();
        fs::write(&path, &content).unwrap();
        let pinned = measure(&path).unwrap();
        assert_eq!((pinned.digests, pinned.size), (Digests::of(&content), content.len() as u64));
        fs::write(&path, b"").unwrap();
        assert_eq!(measure(&path).unwrap().size, 0);
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let temp = tempfile::tempdir().unwrap();
        let pipe = temp.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), temp.path(), Path::new("/dev/zero")] {
            let message = measure(path).unwrap_err().to_string();
            assert!(message.contains("no regular file"), "{message}");
        }
        let message = measure(&temp.path().join("missing")).unwrap_err().to_string();
        assert!(message.contains("missing") && message.contains("No such file"), "{message}");
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 100]).unwrap();
        // As if it had been cut before it was read: it is at its end already.
        let message = measure_open(&file, Path::new("kernel")).unwrap_err().to_string();
        assert!(message.contains("kernel was changed"), "{message}");
    }

    #[test]
    fn the_same_size_with_another_time_is_a_change() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("kernel");
        fs::write(&path, b"one").unwrap();
        let file = File::open(&path).unwrap();
        let before = file.metadata().unwrap();
        assert!(is_same(&before, &file.metadata().unwrap()));
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(!is_same(&before, &file.metadata().unwrap()));
    }
}
