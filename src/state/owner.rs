//! Whose the files in a folder are.

use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, fchown, getegid, geteuid};

/// Gives a file that was just made to the user and the group of its folder, if that is another user's: whoever works there
/// as root does so for that user, who has to read the file afterwards. Only for files that are new: one that the folder's
/// owner has put there may be a link to somebody else's.
///
/// # Errors
/// Any of the system's.
pub(super) fn give_to_owner_of(folder: impl AsFd, file: impl AsFd) -> io::Result<()> {
    let owner = fstat(folder)?;
    let is_root_of_another_group = geteuid().is_root() && owner.st_gid != getegid().as_raw();
    if owner.st_uid != geteuid().as_raw() || is_root_of_another_group {
        fchown(file, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))?;
    }
    Ok(())
}

/// Whether files in this folder are made for its owner: this user is root, and the folder somebody else's.
///
/// # Errors
/// Any of the system's.
pub(super) fn is_served_by_root(folder: impl AsFd) -> io::Result<bool> {
    Ok(geteuid().is_root() && fstat(folder)?.st_uid != geteuid().as_raw())
}
