//! Puts the description's files into a folder.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Description, DescriptionError};

/// The VMM may run as another user than the server; there is nothing secret in the files.
const MODE: u32 = 0o644;

impl Description {
    /// Writes all files into `folder`, which is created if it is missing, with `tpm.json` as the last: who waits for it
    /// finds the others complete. Each file appears whole or not at all, replaces what had its name, and never follows
    /// a symbolic link of that name.
    pub fn write_to(&self, folder: &Path) -> Result<(), DescriptionError> {
        let files = self.files(folder)?;
        fs::create_dir_all(folder)
            .map_err(|source| DescriptionError::CreateFolder { path: folder.to_owned(), source })?;
        for file in files {
            replace(folder, file.name, &file.contents)
                .map_err(|source| DescriptionError::Write { path: folder.join(file.name), source })?;
        }
        Ok(())
    }
}

fn replace(folder: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let new = folder.join(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // it is gone, perhaps left behind by a process that was killed here
    }
    let written = write_new(&new, contents).and_then(|()| fs::rename(&new, folder.join(name)));
    if written.is_err() {
        let _ = fs::remove_file(&new); // the first error is the one to report
    }
    written
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_permissions(Permissions::from_mode(MODE))?; // whatever the umask
    file.write_all(contents)
}
