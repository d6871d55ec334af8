//! The file by which Linux cancels a chip's command. It has one for TPM 1.2 chips only, at places that changed with time.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the cancel file that a user named cannot be used.
#[derive(Debug, Error)]
#[error("cannot open the cancel file {path} for writing")]
pub struct CancelFileError {
    path: PathBuf,
    source: io::Error,
}

/// Opens the cancel file at `path`.
pub(super) fn open(path: &Path) -> Result<OwnedFd, CancelFileError> {
    let opened = File::options().write(true).open(path);
    opened.map(OwnedFd::from).map_err(|source| CancelFileError { path: path.to_owned(), source })
}

/// Opens the cancel file of the device that the kernel calls `name`, if there is one. `sysfs` is `/sys`.
pub(super) fn find(sysfs: &Path, name: &str) -> Option<OwnedFd> {
    // The resource manager's device has no attributes of the chip; that of the same number has.
    let name = name.strip_prefix("tpmrm").map_or_else(|| name.to_owned(), |number| format!("tpm{number}"));
    let places = [
        format!("class/tpm/{name}/device/cancel"),
        format!("class/tpm/{name}/cancel"),
        // Before Linux 4.0.
        format!("class/misc/{name}/device/cancel"),
    ];
    let path = places.iter().map(|place| sysfs.join(place)).find(|path| path.exists())?;
    match open(&path) {
        Ok(file) => {
            log::info!("commands are cancelled by {}", path.display());
            Some(file)
        }
        Err(CancelFileError { path, source }) => {
            log::warn!(
                "{}: {source}; with the right to write it, the guest's commands could be cancelled",
                path.display()
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_found_at_each_of_its_places_for_either_device() {
        for place in ["class/tpm/tpm7/device", "class/tpm/tpm7", "class/misc/tpm7/device"] {
            let sysfs = tempfile::tempdir().unwrap();
            assert!(find(sysfs.path(), "tpm7").is_none());
            std::fs::create_dir_all(sysfs.path().join(place)).unwrap();
            std::fs::write(sysfs.path().join(place).join("cancel"), "").unwrap();
            assert!(find(sysfs.path(), "tpm7").is_some(), "{place}");
            assert!(find(sysfs.path(), "tpmrm7").is_some(), "{place}");
            assert!(find(sysfs.path(), "tpm70").is_none());
        }
    }

    #[test]
    fn a_file_that_was_named_has_to_be_there() {
        let error = open(Path::new("/nowhere/cancel")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/cancel"), "{error}");
    }
}
