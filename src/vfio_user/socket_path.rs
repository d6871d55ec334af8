//! What is at a socket's path, found out without a connection: that would be a client for the server that is there.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// What is at a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtPath {
    /// Nothing.
    Nothing,
    /// A socket that somebody has bound.
    Bound,
    /// A socket whose owner is gone.
    Abandoned,
    /// Something else.
    NoSocket,
}

/// Looks at a path.
///
/// # Errors
/// `ENAMETOOLONG` for a path that fits into no address, and those of `lstat(2)` and `connect(2)`.
pub fn look_at(path: &Path) -> io::Result<AtPath> {
    let address = UnixAddr::new(path)?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(AtPath::Nothing),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Ok(AtPath::NoSocket),
        Ok(_) => {}
    }
    // The kernel looks for the socket's owner first, and refuses then one that takes streams (unix(7)).
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    match connect(probe.as_raw_fd(), &address) {
        Ok(()) | Err(Errno::EPROTOTYPE) => Ok(AtPath::Bound),
        Err(Errno::ECONNREFUSED) => Ok(AtPath::Abandoned),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn what_is_there_is_told_and_not_disturbed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(look_at(&at("none")).unwrap(), AtPath::Nothing);
        fs::write(at("file"), "").unwrap();
        assert_eq!(look_at(&at("file")).unwrap(), AtPath::NoSocket);
        let listener = UnixListener::bind(at("stream")).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(look_at(&at("stream")).unwrap(), AtPath::Bound);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(look_at(&at("stream")).unwrap(), AtPath::Abandoned);
        let datagrams = UnixDatagram::bind(at("datagram")).unwrap();
        assert_eq!(look_at(&at("datagram")).unwrap(), AtPath::Bound);
        drop(datagrams);
        assert!(look_at(&at(&"x".repeat(108))).is_err());
    }
}
