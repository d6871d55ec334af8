//! Others than the client, on a socket of their own: connections of bytes that an attendant serves.
//!
//! They are strangers like any client. Nothing here waits for them, nor for what they send to be closed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, send};

use super::closer::Closer;
use super::descriptors::{self, ControlBuffer};
use super::listener::ListeningSocket;
use super::rights::AllowedUsers;

/// A socket on which visitors arrive. Its file is removed when this goes.
#[derive(Debug)]
pub struct Visitors {
    pub(super) socket: ListeningSocket,
    pub(super) allowed: AllowedUsers,
    pub(super) closer: Closer,
}

/// A connection. It ends when this goes.
#[derive(Debug)]
pub struct Visitor {
    /// There until the end.
    socket: Option<UnixStream>,
    control: ControlBuffer,
    closer: Closer,
}

impl Visitors {
    /// The next one, if it is let in.
    ///
    /// # Errors
    /// Those of `accept(2)`, `WouldBlock` when there is nobody left; `PermissionDenied` if it was a stranger, who is
    /// disconnected; `ResourceBusy` while too many descriptors are still to be closed.
    pub fn accept(&self) -> io::Result<Visitor> {
        if !self.closer.has_room() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let socket = self.socket.accept()?;
        let admitted = self.allowed.admit(&socket);
        let visitor = Visitor { socket: Some(socket), control: ControlBuffer::default(), closer: self.closer.clone() };
        admitted.map_err(|stranger| io::Error::new(io::ErrorKind::PermissionDenied, stranger))?;
        Ok(visitor)
    }
}

impl AsRawFd for Visitors {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Visitor {
    /// Receives what is there, without waiting; 0 bytes at the end of the stream. Descriptors that come along are closed.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`; `WouldBlock` when there is nothing.
    pub fn receive(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let Some(socket) = &self.socket else { return Ok(0) };
        let mut unwanted = Vec::new();
        let received = descriptors::receive(socket.as_fd(), data, &mut self.control, &mut unwanted)?;
        self.closer.close(unwanted);
        Ok(received.size)
    }

    /// Sends what the other side takes now.
    ///
    /// # Errors
    /// Those of `send(2)`; `WouldBlock` when it takes nothing.
    pub fn send(&self, data: &[u8]) -> io::Result<usize> {
        Ok(send(self.as_raw_fd(), data, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }
}

impl AsRawFd for Visitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.closer.hang_up(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::unistd::Uid;

    use super::super::{Listener, Server};
    use super::*;

    fn visitors(folder: &tempfile::TempDir, users: Vec<Uid>) -> (Visitors, UnixStream) {
        let server = Server::new(Listener::bind(&folder.path().join("s")).unwrap()).unwrap();
        let path = folder.path().join("v");
        let listener = Listener::bind(&path).unwrap().allow_only(users).unwrap();
        let visitors = server.visitors(listener).unwrap();
        (visitors, UnixStream::connect(path).unwrap())
    }

    #[test]
    fn who_is_let_in_exchanges_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (visitors, mut outside) = visitors(&folder, vec![Uid::effective()]);
        let mut visitor = visitors.accept().unwrap();
        assert_eq!(visitors.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(visitor.receive(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        nix::unistd::write(&outside, b"ask").unwrap();
        let mut asked = [0; 8];
        assert_eq!(visitor.receive(&mut asked).unwrap(), 3);
        assert_eq!(&asked[..3], b"ask");
        assert_eq!(visitor.send(b"answer").unwrap(), 6);
        drop(visitor);
        let mut answer = String::new();
        outside.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    }

    #[test]
    fn another_user_is_disconnected_unheard() {
        let folder = tempfile::tempdir().unwrap();
        let other = Uid::from_raw(Uid::effective().as_raw() ^ 1);
        let (visitors, mut outside) = visitors(&folder, vec![other]);
        assert_eq!(visitors.accept().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(outside.read(&mut [0; 8]).unwrap(), 0);
    }
}
