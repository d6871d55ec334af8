//! One of the two channels to an swtpm: a stream socket that never blocks.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use zeroize::Zeroizing;

use crate::backend::unaccompanied::refuse_descriptors;

/// Bytes that are received at once: a whole response.
const STEP: usize = 4096;

/// A connected socket and what has arrived on it.
pub(super) struct Channel {
    /// Which of the two, for messages.
    pub(super) name: &'static str,
    socket: OwnedFd,
    /// What has arrived and nobody has taken. It may be secret; so a response fits in without being moved.
    pub(super) inbox: Zeroizing<Vec<u8>>,
    /// The other side has closed it; nothing comes after the inbox.
    pub(super) is_closed: bool,
    /// Something has ever arrived.
    pub(super) has_spoken: bool,
}

impl Channel {
    /// A channel over a stream socket, which may not be connected yet.
    pub(super) fn new(name: &'static str, socket: OwnedFd) -> nix::Result<Self> {
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        refuse_descriptors(&socket)?;
        Ok(Self { name, socket, inbox: Vec::with_capacity(2 * STEP).into(), is_closed: false, has_spoken: false })
    }

    /// A channel and the socket for its other side.
    pub(super) fn pair(name: &'static str) -> nix::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self::new(name, ours)?, theirs))
    }

    /// Sends all the bytes in one write, with a descriptor if one goes along.
    ///
    /// That never has to be repeated: one message is under way at a time, and the socket has room for many.
    pub(super) fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), String> {
        let raw = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
        let rights: Vec<_> = raw.iter().map(|raw| ControlMessage::ScmRights(raw)).collect();
        let data = [IoSlice::new(bytes)];
        loop {
            match sendmsg::<()>(self.socket.as_raw_fd(), &data, &rights, MsgFlags::MSG_NOSIGNAL, None) {
                // That the other side has closed it is found out by reading, after what it may have said before.
                Err(Errno::EPIPE) => return Ok(()),
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => return Err(format!("swtpm's {} channel took {sent} of {} bytes", self.name, bytes.len())),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(format!("cannot write to swtpm's {} channel: {errno}", self.name)),
            }
        }
    }

    /// Takes in what has arrived, until there is no more; so it may be waited for by edge.
    ///
    /// `limit` is the most that may be in the inbox, in bytes. Descriptors that the other side sends along never get
    /// into this process: there is no room for them to arrive in.
    pub(super) fn fill(&mut self, limit: usize) -> Result<(), String> {
        let mut buffer = Zeroizing::new([0; STEP]);
        while !self.is_closed {
            match recv(self.socket.as_raw_fd(), buffer.as_mut_slice(), MsgFlags::empty()) {
                Ok(0) | Err(Errno::ECONNRESET) => self.is_closed = true,
                Ok(length) => {
                    self.has_spoken = true;
                    self.inbox.extend(buffer.iter().take(length));
                    if self.inbox.len() > limit {
                        return Err(format!(
                            "swtpm sent over {limit} bytes on its {} channel, more than any answer has",
                            self.name
                        ));
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(format!("cannot read from swtpm's {} channel: {errno}", self.name)),
            }
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
