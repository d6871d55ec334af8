//! A folder of our own for what the two processes share.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

/// A new folder that only this user can look into. It is removed, with all that is in it, when this goes.
#[derive(Debug)]
pub(super) struct PrivateFolder(PathBuf);

impl PrivateFolder {
    /// Creates it where temporary files go: `TMPDIR`, or /tmp.
    pub(super) fn create() -> io::Result<Self> {
        // Absolute, so that what refers to it is right in any directory.
        let parent = std::path::absolute(std::env::temp_dir())?;
        Ok(Self(mkdtemp(&parent.join("vfio-user-tpm-XXXXXX"))?))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}
