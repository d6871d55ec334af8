//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::owner;

/// Writes a file for this user alone: under another name beside it first, synced, then renamed, and the folder synced.
///
/// # Errors
/// Any of the system's; [`io::ErrorKind::AlreadyExists`] if there is a file of that name and `replace` is not set.
pub fn write(path: &Path, bytes: &[u8], replace: bool) -> io::Result<()> {
    write_prepared(path, bytes, replace, |_| Ok(()))
}

/// As [`write()`], for the owner of the folder if this is root: so that a command of root's leaves nothing that the user of a
/// server could not open. It does not replace.
///
/// # Errors
/// As [`write()`].
pub(super) fn write_for_owner(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = File::open(parent(path))?;
    let for_owner = owner::is_served_by_root(&folder)?;
    write_prepared(path, bytes, false, |new| if for_owner { owner::give_to_owner_of(&folder, new) } else { Ok(()) })
}

fn write_prepared(
    path: &Path,
    bytes: &[u8],
    replace: bool,
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("a path to a file is needed"))?;
    let parent = parent(path);
    if !replace && path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut new = OsString::from(".");
    new.push(name);
    new.push(format!(".{}.new", std::process::id()));
    let new = parent.join(new);
    let written = create(&new, bytes, prepare).and_then(|()| rename(&new, path, replace));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&new);
    }
    written?;
    File::open(parent)?.sync_all()
}

/// Says what a [`write()`] of `path` that was killed has left beside it. It is not deleted: another may be under way.
pub fn warn_of_unfinished(path: &Path) {
    let (parent, Some(name)) = (parent(path), path.file_name()) else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if is_unfinished(entry.file_name().as_bytes(), name.as_bytes()) {
            log::warn!(
                "{} was left by a command that was interrupted, if none is at work on it: delete it, it may hold secrets",
                parent.join(entry.file_name()).display()
            );
        }
    }
}

/// Whether a name is one under which a process writes what is to be named `name`.
fn is_unfinished(new: &[u8], name: &[u8]) -> bool {
    let number =
        new.strip_prefix(b".").and_then(|new| new.strip_prefix(name)?.strip_prefix(b".")?.strip_suffix(b".new"));
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn create(path: &Path, bytes: &[u8], prepare: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    match fs::remove_file(path) {
        // One may be left of a process of the same number that was killed here.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    prepare(&file)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn rename(new: &Path, path: &Path, replace: bool) -> io::Result<()> {
    if replace {
        return fs::rename(new, path);
    }
    match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
        // Not all file systems can; it was not there a moment ago.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(new, path),
        renamed => Ok(renamed?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_private_and_not_replaced_unless_asked_for() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        write(&path, b"one", false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(write(&path, b"two", false).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write(&path, b"two", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("folder")).unwrap();
        assert!(write(&temp.path().join("folder"), b"x", true).is_err());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        assert!(write(Path::new("/"), b"x", true).is_err());
    }
}
