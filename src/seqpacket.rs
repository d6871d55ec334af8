//! Sockets by which the processes of this program talk to each other: pairs of `SOCK_SEQPACKET`, which keep messages apart,
//! and pass descriptors. What the messages say is the affair of those who talk.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv, recvmsg, sendmsg,
    socketpair,
};

/// Most descriptors that come with a message: those of a worker's first one.
const MAX_DESCRIPTORS: usize = 4;

/// Most that the kernel delivers at once (`SCM_MAX_FD`). With room for them all, none stays open that we do not know of.
const MAX_DELIVERED: usize = 253;

/// A connected pair, close-on-exec.
///
/// # Errors
/// Those of `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message with the descriptors that go with it.
///
/// # Errors
/// Those of `sendmsg(2)`; `EAGAIN` if the socket does not block and has no room.
pub fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let data = [IoSlice::new(message)];
    uninterrupted(|| sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)).map(drop)
}

/// Receives one message into `buffer`. An empty one is the end of the stream.
///
/// Descriptors that the other side sends along never get into this process: there is no room for them to arrive in.
///
/// # Errors
/// Those of `recvmsg(2)`; `EAGAIN` if the socket does not block and nothing is there; `EMSGSIZE` for a message that is
/// larger than `buffer`.
pub fn receive<'a>(socket: BorrowedFd<'_>, buffer: &'a mut [u8]) -> nix::Result<&'a [u8]> {
    // With MSG_TRUNC the length is that of the message, whatever the buffer's.
    let length = uninterrupted(|| recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC))?;
    buffer.get(..length).ok_or(Errno::EMSGSIZE)
}

/// As [`receive`], with the descriptors that came along. For a side that trusts the other.
///
/// # Errors
/// As [`receive`]; `ENOBUFS` for more descriptors than any message has.
pub fn receive_with_descriptors<'a>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
) -> nix::Result<(&'a [u8], Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_DELIVERED]);
    let mut vectors = [IoSliceMut::new(buffer)];
    // Never interrupted: who waits here has blocked the signals that could do it.
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut vectors, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = control {
            for fd in rights {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
                #[expect(unsafe_code, reason = "received descriptors come as plain numbers")]
                descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    let (length, flags) = (received.bytes, received.flags);
    let message = buffer.get(..length).filter(|_| !flags.contains(MsgFlags::MSG_TRUNC)).ok_or(Errno::EMSGSIZE)?;
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::ENOBUFS);
    }
    Ok((message, descriptors))
}

/// Repeats a system call that a signal has interrupted.
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_and_its_descriptors_cross_the_socket_together() {
        let (a, b) = pair().unwrap();
        let (extra, _) = pair().unwrap();
        send(a.as_fd(), b"message", &[extra.as_fd(), a.as_fd()]).unwrap();
        let mut buffer = [0; 100];
        let (message, descriptors) = receive_with_descriptors(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((message, descriptors.len()), (&b"message"[..], 2));
    }

    #[test]
    fn more_descriptors_than_any_message_has_are_closed_and_refused() {
        let (a, b) = pair().unwrap();
        let (extra, other_end) = pair().unwrap();
        send(a.as_fd(), b"message", &[extra.as_fd(); 40]).unwrap();
        drop(extra);
        assert_eq!(receive_with_descriptors(b.as_fd(), &mut [0; 100]).unwrap_err(), Errno::ENOBUFS);
        assert_eq!(receive(other_end.as_fd(), &mut [0; 8]), Ok(&[][..]));
    }

    #[test]
    fn descriptors_that_nobody_expects_stay_outside() {
        let (a, b) = pair().unwrap();
        let (extra, other_end) = pair().unwrap();
        send(a.as_fd(), b"message", &[extra.as_fd(); 40]).unwrap();
        drop(extra);
        assert_eq!(receive(b.as_fd(), &mut [0; 100]), Ok(&b"message"[..]));
        // The end of the stream tells that nobody has the other end open any more.
        assert_eq!(receive(other_end.as_fd(), &mut [0; 8]), Ok(&[][..]));
    }

    #[test]
    fn a_message_larger_than_the_buffer_is_refused() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[0; 101], &[]).unwrap();
        assert_eq!(receive(b.as_fd(), &mut [0; 100]), Err(Errno::EMSGSIZE));
    }

    #[test]
    fn the_end_of_the_stream_is_an_empty_message() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut [0; 100]), Ok(&[][..]));
    }
}
