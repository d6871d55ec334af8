//! What a process was started with and does not need.

use std::io;

use nix::errno::Errno;
use nix::libc;

/// Closes whatever this process was started with besides the standard streams. To be called before anything is opened.
///
/// # Errors
/// Those of `close_range(2)`.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in this process has opened a descriptor yet; those above 2 belong to nobody.
    #[expect(unsafe_code, reason = "there is no safe face for it")]
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    match Errno::result(closed) {
        // Linux before 5.9 cannot do this; the server's own descriptors are closed on exec anyway.
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
