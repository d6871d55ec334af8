//! Descriptors that the starting process left open for us.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::bail;
use clap::builder::{RangedI64ValueParser, TypedValueParser};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Parses the number of such a descriptor: the standard streams are not among them.
pub(super) fn number() -> impl TypedValueParser<Value = RawFd> {
    RangedI64ValueParser::<RawFd>::new().range(3..)
}

/// Takes over a descriptor. `flag` is the one that names it.
pub(super) fn take(flag: &str, fd: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: only numbers from 3 on are accepted, each once, and before this nothing was opened that could have this
    // number but was not inherited: were it so, the next line would say that it is closed on exec.
    #[expect(unsafe_code, reason = "a descriptor given by number")]
    let descriptor = unsafe { OwnedFd::from_raw_fd(fd) };
    match fcntl(&descriptor, FcntlArg::F_GETFD).map(FdFlag::from_bits_retain) {
        Ok(flags) if !flags.contains(FdFlag::FD_CLOEXEC) => Ok(descriptor),
        Ok(_) | Err(_) => {
            // Not ours to close.
            std::mem::forget(descriptor);
            bail!("{flag}={fd}: no such descriptor was inherited; the starting process must leave it open")
        }
    }
}
