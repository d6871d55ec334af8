//! Copies of files that nobody can change any more, for this process and its children.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Linux 6.3: nobody can make the file a program. Some systems want that said of each file.
const MFD_NOEXEC_SEAL: u32 = 0x8;

/// A file in memory whose size and bytes are sealed. Children inherit it, and it lives as long as one of them has it.
#[derive(Debug)]
pub(super) struct Sealed(OwnedFd);

impl Sealed {
    /// A copy of what `path` is now.
    pub(super) fn copy(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot read {}, of which QEMU is to get a copy", path.display());
        // Nothing is waited for: to open a pipe waits for who writes to it.
        let original = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let mut original = original.with_context(failed)?;
        if !original.metadata().with_context(failed)?.is_file() {
            bail!("{} is no regular file: what is measured has to stay what it is", path.display());
        }
        Self::fill(&mut original)
            .with_context(|| format!("cannot copy {} into memory: is there enough for it?", path.display()))
    }

    fn fill(original: &mut File) -> io::Result<Self> {
        let sealable = MFdFlags::MFD_ALLOW_SEALING;
        let copy =
            memfd_create(c"launched", sealable | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)).or_else(|errno| {
                // An older kernel.
                if errno == Errno::EINVAL { memfd_create(c"launched", sealable) } else { Err(errno) }
            })?;
        let mut copy = File::from(copy);
        io::copy(original, &mut copy)?;
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self(copy.into()))
    }

    /// Its path in this process and in each child that has not closed it.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_copy_is_as_the_file_was_and_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        fs::write(&path, "kernel").unwrap();
        let copy = Sealed::copy(&path).unwrap();
        fs::write(&path, "another").unwrap();
        for _ in 0..2 {
            assert_eq!(fs::read(copy.path()).unwrap(), b"kernel");
            assert!(fs::write(copy.path(), "another").is_err());
        }
    }

    #[test]
    fn what_is_no_file_is_named() {
        for (path, expected) in [("/dev/zero", "no regular file"), ("/nowhere/kernel", "/nowhere/kernel")] {
            let message = format!("{:#}", Sealed::copy(Path::new(path)).unwrap_err());
            assert!(message.contains(expected), "{message}");
        }
    }
}
