//! How a server tells who started it that its TPM is up: as services of systemd's `Type=notify` do, by the message
//! `READY=1` to the datagram socket that the environment variable `NOTIFY_SOCKET` names (sd_notify(3)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// The environment variable with the socket's path, or `@` and its abstract name.
pub(super) const VARIABLE: &str = "NOTIFY_SOCKET";

const READY: &[u8] = b"READY=1";

/// Whom to tell that the TPM is up.
#[derive(Debug)]
pub(super) struct Starter(UnixDatagram);

impl Starter {
    /// The one that wants to know, if any does: connected to it already, since a server that is confined cannot connect.
    pub(super) fn find() -> Option<Self> {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&name),
        };
        let connected = address.and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect_addr(&address)?;
            Ok(Self(socket))
        });
        connected.inspect_err(|error| log::warn!("cannot reach {VARIABLE} {name:?}: {error}")).ok()
    }

    /// Tells it that the TPM is up.
    pub(super) fn tell(self) {
        if let Err(error) = self.0.send(READY) {
            log::warn!("cannot tell {VARIABLE} that the TPM is up: {error}");
        }
    }
}

/// The other end: waits for a server to be ready.
#[derive(Debug)]
pub(super) struct ReadySocket(UnixDatagram);

impl ReadySocket {
    /// A new socket at `path`, where nothing may be yet.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Whether the server has said that it is ready. Asks without waiting.
    pub(super) fn is_told(&self) -> io::Result<bool> {
        let mut message = [0; 128];
        match self.0.recv(&mut message) {
            Ok(length) => Ok(message.get(..length) == Some(READY)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for ReadySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
