//! Sockets on which a TPM's process can say what it likes, and send no descriptors.
//!
//! What arrives with a message that is received without room for it, or lies unread in a socket that is closed, the kernel
//! closes there and then; and to close a descriptor may take as long as who sent it likes.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

/// `include/uapi/asm-generic/socket.h`.
pub(crate) const SO_PASSRIGHTS: libc::c_int = 83;

/// From now on the other side cannot send descriptors to this socket: it gets `EPERM`. Linux before 6.16 cannot do this.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub(super) fn refuse_descriptors(socket: impl AsFd) -> nix::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    let no: libc::c_int = 0;
    // SAFETY: the value is a whole number of four bytes, as is said, and is only read.
    #[expect(unsafe_code, reason = "an option for which there is no safe face yet")]
    let set = unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, (&raw const no).cast(), 4) };
    match Errno::result(set) {
        Ok(_) | Err(Errno::ENOPROTOOPT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
