//! What a process was started with and does not need.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;

use super::SandboxError;

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

/// See [`super::Confinement::give_up_descriptors`]. What this process has opened or taken over is closed on exec; what it was
/// started with and does not know of is not, or it would not be here.
pub(super) fn give_up_descriptors() -> Result<(), SandboxError> {
    let failed = |error| SandboxError::Process("what it was started with", error);
    let open = fs::read_dir("/proc/self/fd").map_err(failed)?;
    let numbers: Vec<RawFd> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // SAFETY: for this one call. One that is closed by now, the folder's own, is an error of it.
        #[expect(unsafe_code, reason = "a descriptor that is known by its number only")]
        let flags = fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD);
        if flags.is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)) {
            // SAFETY: whatever this process owns is closed on exec.
            #[expect(unsafe_code, reason = "a descriptor that nobody in this process owns")]
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    Ok(())
}
