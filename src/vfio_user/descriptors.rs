//! Receiving bytes together with the file descriptors that travel with them (`SCM_RIGHTS`).
//!
//! `nix` makes the system call, but gives no access to the descriptors of a truncated control message, and those would
//! stay open for ever. So the control messages are read here.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::socket::{MsgFlags, recvmsg};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Descriptors that one message may carry (`max_msg_fds`). QEMU takes no server that offers more.
pub(super) const MAX_MESSAGE_DESCRIPTORS: usize = 16;

/// Words for all descriptors that the kernel can deliver at once (253, `SCM_MAX_FD`), and for a few other control
/// messages that options of an inherited socket may add.
const CONTROL_WORDS: usize = 256;

/// Room for the control messages of one call, allocated once. It is all zeros between the calls.
#[derive(Debug)]
pub(super) struct ControlBuffer(Box<[usize; CONTROL_WORDS]>);

impl Default for ControlBuffer {
    fn default() -> Self {
        Self(Box::new([0; CONTROL_WORDS]))
    }
}

/// What one call received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes of data; 0 at the end of the stream.
    pub(super) size: usize,
    /// The kernel could not deliver all descriptors.
    pub(super) truncated: bool,
}

/// Receives into `data` without waiting. The descriptors that came along are appended to `descriptors`, closed on exec.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    data: &mut [u8],
    control: &mut ControlBuffer,
    descriptors: &mut Vec<OwnedFd>,
) -> nix::Result<Received> {
    let control = control.0.as_mut_slice();
    let (size, flags) = {
        let mut parts = [IoSliceMut::new(data)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(control.as_mut_bytes()), flags)?;
        (message.bytes, message.flags)
    };
    for_each_right(control.as_bytes(), |descriptor| {
        // SAFETY: the kernel has just opened this descriptor for us, it stands in the control messages once, and the
        // buffer is cleared before it is used again: nobody else owns it.
        descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
    });
    // The first word is the length of the first control message: most messages have none.
    if control.first().is_some_and(|&length| length != 0) {
        control.fill(0);
    }
    Ok(Received { size, truncated: flags.contains(MsgFlags::MSG_CTRUNC) })
}

/// `struct cmsghdr`, as the kernel writes it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ControlHeader {
    /// Bytes of this control message, header included; 0 where the kernel has written nothing more.
    length: usize,
    level: i32,
    kind: i32,
}

/// Calls `found` with each descriptor of the `SCM_RIGHTS` messages in a control buffer.
fn for_each_right(mut control: &[u8], mut found: impl FnMut(RawFd)) {
    while let Ok((header, rest)) = ControlHeader::read_from_prefix(control) {
        let Some(payload) = header.length.checked_sub(size_of::<ControlHeader>()).and_then(|size| rest.get(..size))
        else {
            return;
        };
        if (header.level, header.kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            for descriptor in payload.chunks_exact(size_of::<RawFd>()) {
                if let Ok(descriptor) = RawFd::read_from_bytes(descriptor) {
                    if descriptor >= 0 {
                        found(descriptor);
                    }
                }
            }
        }
        control = control.get(header.length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{ControlMessage, sendmsg, setsockopt, sockopt};

    use super::*;

    fn send(socket: &UnixStream, data: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(data)], rights, MsgFlags::empty(), None).unwrap();
    }

    #[test]
    fn descriptors_come_with_their_bytes_and_close_on_exec() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut kept, given) = UnixStream::pair().unwrap();
        send(&theirs, b"ab", &[given.as_raw_fd(), given.as_raw_fd()]);
        send(&theirs, b"cd", &[]);
        drop(given);

        let (mut control, mut descriptors) = (ControlBuffer::default(), Vec::new());
        let mut data = [0; 8];
        let received = receive(ours.as_fd(), &mut data, &mut control, &mut descriptors).unwrap();
        assert_eq!(received, Received { size: 2, truncated: false });
        assert_eq!(descriptors.len(), 2);
        for descriptor in &descriptors {
            let flags = fcntl(descriptor, FcntlArg::F_GETFD).unwrap();
            assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
        }
        let received = receive(ours.as_fd(), &mut data, &mut control, &mut Vec::new()).unwrap();
        assert_eq!(received, Received { size: 2, truncated: false });

        drop(descriptors);
        assert_eq!(kept.read(&mut [0]).unwrap(), 0, "both copies are closed");
    }

    #[test]
    fn other_control_messages_are_passed_over() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        setsockopt(&ours, sockopt::PassCred, &true).unwrap();
        send(&theirs, b"a", &[theirs.as_raw_fd()]);
        let mut descriptors = Vec::new();
        receive(ours.as_fd(), &mut [0; 8], &mut ControlBuffer::default(), &mut descriptors).unwrap();
        assert_eq!(descriptors.len(), 1);
    }

    #[test]
    fn all_descriptors_the_kernel_can_carry_fit() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&theirs, b"a", &[theirs.as_raw_fd(); 253]);
        let mut descriptors = Vec::new();
        let received = receive(ours.as_fd(), &mut [0; 8], &mut ControlBuffer::default(), &mut descriptors).unwrap();
        assert!(!received.truncated);
        assert_eq!(descriptors.len(), 253);
    }

    #[test]
    fn an_empty_socket_would_block_and_a_closed_one_ends() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = ControlBuffer::default();
        let result = receive(ours.as_fd(), &mut [0; 8], &mut control, &mut Vec::new());
        assert_eq!(result, Err(Errno::EAGAIN));
        drop(theirs);
        let received = receive(ours.as_fd(), &mut [0; 8], &mut control, &mut Vec::new()).unwrap();
        assert_eq!(received.size, 0);
    }

    #[test]
    fn control_messages_with_impossible_lengths_end_the_walk() {
        for length in [0, 1, 15, 17, 4096, usize::MAX] {
            let header = ControlHeader { length, level: libc::SOL_SOCKET, kind: libc::SCM_RIGHTS };
            let mut control = header.as_bytes().to_vec();
            control.resize(18, 0);
            for_each_right(&control, |descriptor| panic!("{descriptor} in {length}"));
        }
    }
}
