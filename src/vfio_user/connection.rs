//! One client's stream, cut into messages.
//!
//! A header is read, then exactly its body, never more: so the descriptors that arrive belong to the message in hand.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::closer::Closer;
use super::descriptors::{self, ControlBuffer, MAX_MESSAGE_DESCRIPTORS};
use super::wire::{HEADER_SIZE, Header, MAX_BODY_SIZE};

/// Bytes that are received at once, and by which the body buffer grows: memory follows what has arrived, not what is
/// claimed.
const STEP: usize = 64 << 10;

/// Why no more messages come from a client.
#[derive(Debug, Error)]
pub(super) enum ReceiveError {
    #[error("the client has closed the connection")]
    Closed,
    #[error("a message size of at least {HEADER_SIZE} bytes was expected, {0} came: the stream is out of step")]
    OutOfStep(u32),
    #[error("the socket cannot be read: {0}")]
    Socket(Errno),
}

/// What [`Connection::receive`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// [`Connection::message`] gives a message.
    Message,
    /// Nothing more has arrived.
    WouldBlock,
    /// There may be more, but others have to get their turn.
    BudgetSpent,
}

/// One message of the client.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) header: Header,
    /// `None` if it is larger than any that is served; it passes by unread.
    pub(super) body: Option<&'a [u8]>,
    /// The descriptors that came with it. Those that nobody takes are for [`Connection::let_go`].
    pub(super) descriptors: &'a mut Vec<OwnedFd>,
    /// More descriptors came than a message may carry, or than the kernel could deliver: all of them are closed.
    pub(super) descriptors_lost: bool,
}

/// What the next bytes of the stream are.
#[derive(Clone, Copy, Debug)]
enum Expecting {
    /// A header, of which `filled` bytes are there.
    Header { filled: usize },
    /// The body of this header, of which `filled` bytes are there.
    Body { size: usize, filled: usize },
    /// This many bytes that nobody wants.
    Nothing { left: usize },
}

/// A client's socket and the message that is arriving on it.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    expecting: Expecting,
    header: [u8; HEADER_SIZE],
    /// Empty but for the message in hand: what a guest writes may be secret.
    body: Zeroizing<Vec<u8>>,
    oversized: bool,
    rights: Rights,
    #[cfg(test)]
    sends: std::cell::Cell<u32>,
}

impl Connection {
    pub(super) fn new(socket: UnixStream, closer: Closer) -> Self {
        Self {
            socket,
            expecting: Expecting::Header { filled: 0 },
            header: [0; HEADER_SIZE],
            body: Zeroizing::default(),
            oversized: false,
            rights: Rights {
                control: ControlBuffer::default(),
                descriptors: Vec::new(),
                lost: false,
                closer,
                #[cfg(test)]
                receives: 0,
            },
            #[cfg(test)]
            sends: std::cell::Cell::default(),
        }
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends what the socket takes without waiting, with a descriptor if there is one.
    pub(super) fn send(&self, data: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<usize> {
        #[cfg(test)]
        self.sends.set(self.sends.get() + 1);
        let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        let Some(descriptor) = descriptor else { return Ok(send(socket, data, flags)?) };
        let rights = [descriptor.as_raw_fd()];
        Ok(sendmsg::<()>(socket, &[IoSlice::new(data)], &[ControlMessage::ScmRights(&rights)], flags, None)?)
    }

    /// System calls so far: receives and sends.
    #[cfg(test)]
    pub(super) fn calls(&self) -> (u32, u32) {
        (self.rights.receives, self.sends.get())
    }

    /// Bytes that are kept for the body in hand and those to come.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.body.capacity()
    }

    /// The message that [`receive`](Self::receive) has announced.
    pub(super) fn message(&mut self) -> Message<'_> {
        Message {
            header: zerocopy::transmute!(self.header),
            body: (!self.oversized).then_some(self.body.as_slice()),
            descriptors: &mut self.rights.descriptors,
            descriptors_lost: self.rights.lost,
        }
    }

    /// Forgets the message that was handed out, and closes those of its descriptors that nobody has taken.
    pub(super) fn let_go(&mut self) {
        self.forget_message();
    }

    /// Ends the connection.
    pub(super) fn close(mut self) {
        self.rights.close();
        self.rights.closer.hang_up(self.socket);
    }

    /// Whether descriptors are closed as fast as they come; otherwise nothing more may be received now.
    pub(super) fn has_room(&self) -> bool {
        self.rights.closer.has_room()
    }

    /// Receives until a message is complete. Each system call costs one of `budget`; one that brings descriptors all of it,
    /// so that [`has_room`](Self::has_room) is asked before there are more.
    pub(super) fn receive(&mut self, budget: &mut u32) -> Result<Progress, ReceiveError> {
        loop {
            if let Expecting::Header { filled: 0 } | Expecting::Nothing { .. } = self.expecting {
                self.forget_message();
            }
            let Some(left) = budget.checked_sub(1) else { return Ok(Progress::BudgetSpent) };
            *budget = left;
            match self.step() {
                Ok(true) => return Ok(Progress::Message),
                Ok(false) if self.rights.have_come() => *budget = 0,
                Ok(false) | Err(ReceiveError::Socket(Errno::EINTR)) => {}
                Err(ReceiveError::Socket(Errno::EAGAIN)) => return Ok(Progress::WouldBlock),
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives once; tells whether that has completed a message.
    fn step(&mut self) -> Result<bool, ReceiveError> {
        match self.expecting {
            Expecting::Header { filled } => {
                let target = self.header.get_mut(filled..).unwrap_or_default();
                let filled = filled.saturating_add(self.rights.receive(&self.socket, target)?);
                if filled < HEADER_SIZE {
                    self.expecting = Expecting::Header { filled };
                    return Ok(false);
                }
                self.take_header()
            }
            Expecting::Body { size, filled } => {
                if self.body.len() == filled {
                    self.body.resize(size.min(filled.saturating_add(STEP)), 0);
                }
                let target = self.body.get_mut(filled..).unwrap_or_default();
                let filled = filled.saturating_add(self.rights.receive(&self.socket, target)?);
                self.expecting =
                    if filled < size { Expecting::Body { size, filled } } else { Expecting::Header { filled: 0 } };
                Ok(filled == size)
            }
            Expecting::Nothing { left } => {
                self.body.resize(left.min(STEP), 0);
                let left = left.saturating_sub(self.rights.receive(&self.socket, &mut self.body)?);
                self.expecting = if left > 0 { Expecting::Nothing { left } } else { Expecting::Header { filled: 0 } };
                Ok(false)
            }
        }
    }

    /// Decides by a complete header what comes next; tells whether the message can be handed out with it.
    fn take_header(&mut self) -> Result<bool, ReceiveError> {
        let header: Header = zerocopy::transmute!(self.header);
        let claimed = header.message_size.get();
        let size = (claimed as usize).checked_sub(HEADER_SIZE).ok_or(ReceiveError::OutOfStep(claimed))?;
        self.oversized = size > MAX_BODY_SIZE;
        self.expecting = match size {
            0 => Expecting::Header { filled: 0 },
            _ if self.oversized => Expecting::Nothing { left: size },
            _ => Expecting::Body { size, filled: 0 },
        };
        Ok(size == 0 || self.oversized)
    }

    /// Closes and forgets what belonged to the last message.
    fn forget_message(&mut self) {
        self.rights.close();
        self.rights.lost = false;
        self.oversized = false;
        // As a slice: beyond its length there is nothing.
        self.body.as_mut_slice().zeroize();
        self.body.clear();
        self.body.shrink_to(STEP);
    }
}

/// The descriptors of the message in hand.
#[derive(Debug)]
struct Rights {
    control: ControlBuffer,
    descriptors: Vec<OwnedFd>,
    lost: bool,
    closer: Closer,
    #[cfg(test)]
    receives: u32,
}

impl Rights {
    /// Receives once; a message that carries too much has all its descriptors closed.
    fn receive(&mut self, socket: &UnixStream, target: &mut [u8]) -> Result<usize, ReceiveError> {
        #[cfg(test)]
        {
            self.receives += 1;
        }
        let received = descriptors::receive(socket.as_fd(), target, &mut self.control, &mut self.descriptors)
            .map_err(ReceiveError::Socket)?;
        self.lost |= received.truncated || self.descriptors.len() > MAX_MESSAGE_DESCRIPTORS;
        if self.lost {
            self.close();
        }
        if received.size == 0 { Err(ReceiveError::Closed) } else { Ok(received.size) }
    }

    /// Whether any have come with the message so far.
    fn have_come(&self) -> bool {
        self.lost || !self.descriptors.is_empty()
    }

    fn close(&mut self) {
        // Most messages have none, and the capacity is given back, which 253 of one message may have taken.
        if !self.descriptors.is_empty() {
            self.closer.close(std::mem::take(&mut self.descriptors));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zerocopy::IntoBytes;

    use super::*;

    fn bytes(id: u16, claimed: u32, body: &[u8]) -> Vec<u8> {
        let header = Header {
            message_id: id.into(),
            command: 9.into(),
            message_size: claimed.into(),
            flags: 0.into(),
            error: 0.into(),
        };
        [header.as_bytes(), body].concat()
    }

    fn whole(id: u16, body: &[u8]) -> Vec<u8> {
        bytes(id, u32::try_from(16 + body.len()).unwrap(), body)
    }

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours, Closer::start().unwrap()), theirs)
    }

    fn receive(connection: &mut Connection) -> Progress {
        connection.receive(&mut 1000).unwrap()
    }

    #[test]
    fn messages_in_one_write_come_one_by_one() {
        let (mut connection, mut client) = pair();
        client.write_all(&[whole(1, b"abc"), whole(2, b""), whole(3, b"d")].concat()).unwrap();
        for (id, body) in [(1, &b"abc"[..]), (2, b""), (3, b"d")] {
            assert_eq!(receive(&mut connection), Progress::Message);
            let message = connection.message();
            assert_eq!((message.header.message_id.get(), message.body), (id, Some(body)));
        }
        assert_eq!(receive(&mut connection), Progress::WouldBlock);
    }

    #[test]
    fn a_message_that_comes_byte_by_byte_is_put_together() {
        let (mut connection, mut client) = pair();
        let message = whole(7, b"hello");
        let (last, first) = message.split_last().unwrap();
        for byte in first {
            client.write_all(&[*byte]).unwrap();
            assert_eq!(receive(&mut connection), Progress::WouldBlock);
        }
        client.write_all(&[*last]).unwrap();
        assert_eq!(receive(&mut connection), Progress::Message);
        assert_eq!(connection.message().body, Some(&b"hello"[..]));
    }

    #[test]
    fn claimed_size_allocates_nothing_before_the_bytes_come() {
        let (mut connection, mut client) = pair();
        client.write_all(&bytes(1, 16 + u32::try_from(MAX_BODY_SIZE).unwrap(), b"x")).unwrap();
        assert_eq!(receive(&mut connection), Progress::WouldBlock);
        assert!(connection.body.capacity() <= STEP);
    }

    #[test]
    fn memory_of_a_large_body_is_given_back() {
        let (mut connection, mut client) = pair();
        let large = whole(1, &vec![5; MAX_BODY_SIZE]);
        let writer = std::thread::spawn(move || client.write_all(&large).map(|()| client).unwrap());
        while receive(&mut connection) != Progress::Message {}
        assert_eq!(connection.message().body.unwrap(), vec![5; MAX_BODY_SIZE]);
        let _client = writer.join().unwrap();
        receive(&mut connection);
        assert!(connection.body.capacity() <= STEP);
    }

    #[test]
    fn oversized_message_is_handed_out_by_its_header_and_passes_by() {
        let (mut connection, mut client) = pair();
        let size = u32::try_from(MAX_BODY_SIZE + 1).unwrap();
        client.write_all(&bytes(1, 16 + size, b"")).unwrap();
        assert_eq!(receive(&mut connection), Progress::Message);
        assert_eq!(connection.message().body, None);
        let writer = std::thread::spawn(move || {
            client.write_all(&vec![0; size as usize]).unwrap();
            client.write_all(&whole(2, b"next")).unwrap();
            client
        });
        while receive(&mut connection) != Progress::Message {
            assert!(connection.body.capacity() <= STEP);
        }
        assert_eq!(connection.message().body, Some(&b"next"[..]));
        drop(writer.join());
    }

    #[test]
    fn a_size_below_the_header_is_out_of_step() {
        for claimed in [0, 15] {
            let (mut connection, mut client) = pair();
            client.write_all(&bytes(1, claimed, b"")).unwrap();
            assert!(matches!(connection.receive(&mut 1000), Err(ReceiveError::OutOfStep(size)) if size == claimed));
        }
    }

    #[test]
    fn the_end_of_the_stream_is_told_wherever_it_comes() {
        for sent in 0..20 {
            let (mut connection, mut client) = pair();
            client.write_all(whole(1, b"abcd").get(..sent).unwrap()).unwrap();
            drop(client);
            assert!(matches!(connection.receive(&mut 1000), Err(ReceiveError::Closed)), "{sent}");
        }
    }

    #[test]
    fn receiving_pauses_after_each_piece_that_brings_descriptors() {
        let (mut connection, client) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        for (piece, count) in [(bytes(1, u32::MAX, b""), 253), (vec![0; 9], 253), (vec![0; 9], 3), (vec![0; 9], 0)] {
            let rights = vec![file.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&rights)];
            let rights = if count == 0 { &[][..] } else { &rights[..] };
            sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&piece)], rights, MsgFlags::empty(), None).unwrap();
        }
        assert_eq!(receive(&mut connection), Progress::Message);
        assert_eq!(receive(&mut connection), Progress::BudgetSpent);
        assert_eq!(receive(&mut connection), Progress::BudgetSpent);
        assert_eq!(receive(&mut connection), Progress::WouldBlock);
    }

    #[test]
    fn a_flood_of_bytes_ends_with_the_budget() {
        let (mut connection, mut client) = pair();
        client.write_all(&bytes(1, u32::MAX, &[0; 1000])).unwrap();
        let mut budget = 1;
        assert_eq!(connection.receive(&mut budget).unwrap(), Progress::Message);
        assert_eq!(connection.receive(&mut budget).unwrap(), Progress::BudgetSpent);
    }
}
