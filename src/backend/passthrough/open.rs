//! Opening a TPM device.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_file};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor, stat};
use thiserror::Error;

use super::shared_sibling;
use crate::tpm::TpmVersion;
use crate::worker::open_path_descriptor;

/// Whether others use the TPM beside us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The device opens only once; the descriptor is the open device.
    Exclusive,
    /// The kernel's resource manager; the descriptor is a path.
    Shared,
}

#[derive(Debug)]
pub(super) struct Device {
    /// The kernel's name of it: `tpm0`, `tpmrm0`.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) descriptor: OwnedFd,
}

/// Why a TPM device cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is none.
    #[error("{0} does not exist; if the host has a TPM and its driver is loaded, ls /dev/tpm* shows it")]
    Missing(PathBuf),
    /// The user has no right to it.
    #[error(
        "no right to read and write {0}; `ls -l` shows which user and group may (tss on Debian): run as one of them, or as root"
    )]
    NotPermitted(PathBuf),
    /// Somebody else has it.
    #[error(
        "{path} is in use, and opens only once. The one who has it may be another vfio-user-tpm, a resource manager \
         (tpm2-abrmd) or TrouSerS (tcsd): stop it first{}", alternative(.shared.as_deref())
    )]
    Busy {
        /// The device.
        path: PathBuf,
        /// The kernel's resource manager for it, if there is one.
        shared: Option<PathBuf>,
    },
    /// It is something else.
    #[error("{path} is no TPM but {what}; expected a device as /dev/tpm0 or /dev/tpmrm0")]
    NoTpm {
        /// What was to be opened.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// Anything else.
    #[error("cannot open {path}")]
    Other {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn alternative(shared: Option<&Path>) -> String {
    shared.map_or_else(String::new, |path| {
        format!(", or share the TPM with it by {}, if that is what you want", path.display())
    })
}

/// Opens the TPM device at `path`.
pub(super) fn open(path: &Path) -> Result<Device, OpenError> {
    let failed = |errno| OpenError::from_errno(path, errno);
    // To open a device may do something to it; so first a look at what it is.
    let place = open_file(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = fstat(&place).map_err(failed)?;
    let no_tpm = |what: &str| OpenError::NoTpm { path: path.to_owned(), what: what.to_owned() };
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFCHR {
        return Err(no_tpm("no character device"));
    }
    let name = kernel_name(&device_link(stat.st_rdev))
        // Without sysfs, as in some containers.
        .or_else(|| path.file_name().and_then(OsStr::to_str).map(str::to_owned))
        .unwrap_or_default();
    // `vtpm…`: swtpm's devices in user space.
    if !name.starts_with("tpm") && !name.starts_with("vtpm") {
        return Err(no_tpm(&format!("the device {name:?}")));
    }
    if name.starts_with("tpmrm") {
        // The worker opens it. Whether it may comes to light here, where it can be told.
        rustix::fs::accessat(
            rustix::fs::CWD,
            path,
            rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
            rustix::fs::AtFlags::EACCESS,
        )
        .map_err(|errno| failed(Errno::from_raw(errno.raw_os_error())))?;
        return Ok(Device { name, kind: Kind::Shared, descriptor: place });
    }
    let descriptor = open_path_descriptor(place.as_fd()).map_err(failed)?;
    Ok(Device { name, kind: Kind::Exclusive, descriptor })
}

/// The version that the kernel has found a device to be of, without opening it; none for a kernel before 5.6, or where
/// there is no such device.
#[must_use]
pub fn version_by_sysfs(path: &Path) -> Option<TpmVersion> {
    let stat =
        stat(path).ok().filter(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR)?;
    let name = kernel_name(&device_link(stat.st_rdev))?;
    let name = name.strip_prefix("tpmrm").map_or_else(|| name.clone(), |number| format!("tpm{number}"));
    match std::fs::read_to_string(format!("/sys/class/tpm/{name}/tpm_version_major")).ok()?.trim() {
        "1" => Some(TpmVersion::V1_2),
        "2" => Some(TpmVersion::V2_0),
        _ => None,
    }
}

fn device_link(device: nix::libc::dev_t) -> String {
    format!("/sys/dev/char/{}:{}", major(device), minor(device))
}

/// The last part of where a link in sysfs leads.
fn kernel_name(link: &str) -> Option<String> {
    Some(std::fs::read_link(link).ok()?.file_name()?.to_str()?.to_owned())
}

impl OpenError {
    fn from_errno(path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ENXIO => Self::Missing(path),
            Errno::EACCES | Errno::EPERM => Self::NotPermitted(path),
            Errno::EBUSY => Self::Busy { shared: shared_sibling(&path), path },
            errno => Self::Other { path, source: errno.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tpm_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        for (path, expected) in [
            (folder.path().join("tpm0"), "does not exist"),
            (folder.path().to_owned(), "no character device"),
            ("/dev/null".into(), "\"null\""),
        ] {
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_busy_device_is_told_with_who_may_have_it_and_how_to_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpm3");
        let busy = OpenError::from_errno(&path, Errno::EBUSY).to_string();
        assert!(busy.contains("tpm3 is in use") && busy.contains("tpm2-abrmd") && !busy.contains("tpmrm"), "{busy}");
        std::fs::write(folder.path().join("tpmrm3"), "").unwrap();
        let busy = OpenError::from_errno(&path, Errno::EBUSY).to_string();
        assert!(busy.contains("tpmrm3"), "{busy}");
    }

    #[test]
    fn a_missing_right_is_told_with_the_group_that_has_it() {
        let error = OpenError::from_errno(Path::new("/dev/tpm0"), Errno::EACCES).to_string();
        assert!(error.contains("/dev/tpm0") && error.contains("tss"), "{error}");
    }
}
