//! One client, played: what it has sent, and whether what comes back fits.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{self, ControlMessage, MsgFlags, Shutdown};

/// Bytes that wait for room in the socket; more are not worth the time.
const MOST: usize = 3 << 20;

pub struct Peer {
    socket: OwnedFd,
    /// Whether every reply has to come in the order of the commands.
    in_order: bool,
    /// What is still to be sent, each part with its descriptors.
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    sent: Framer,
    received: Vec<u8>,
    /// What was received and is not of a whole reply; checked replies are counted only.
    first_reply_succeeded: Option<bool>,
    replies: usize,
    expected: VecDeque<(u16, u16)>,
    pub reads: bool,
    /// The server has closed the connection.
    pub is_closed: bool,
    /// Whether it will send more.
    sends: Sends,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    More,
    NoMore,
    /// The server has closed the connection before it took all.
    Nowhere,
}

impl Peer {
    pub fn new(socket: OwnedFd, in_order: bool) -> Self {
        Self {
            socket,
            in_order,
            outgoing: VecDeque::new(),
            sent: Framer::default(),
            received: Vec::new(),
            first_reply_succeeded: None,
            replies: 0,
            expected: VecDeque::new(),
            reads: true,
            is_closed: false,
            sends: Sends::More,
        }
    }

    pub fn push(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) {
        let waiting: usize = self.outgoing.iter().map(|(bytes, _)| bytes.len()).sum();
        if !bytes.is_empty() && waiting + bytes.len() < MOST && self.sends == Sends::More {
            self.outgoing.push_back((bytes.to_vec(), descriptors));
        }
    }

    /// Sends what the socket takes, and reads what is there.
    pub fn turn(&mut self) {
        while let Some((bytes, descriptors)) = self.outgoing.front_mut() {
            match send(&self.socket, bytes, descriptors) {
                Ok(count) => {
                    self.sent.take(&bytes[..count], &mut self.expected);
                    bytes.drain(..count);
                    descriptors.clear();
                    if bytes.is_empty() {
                        self.outgoing.pop_front();
                    }
                }
                Err(Errno::EAGAIN) => break,
                // More descriptors are on their way than the kernel allows.
                Err(Errno::ETOOMANYREFS) => descriptors.clear(),
                Err(_) => {
                    self.sends = Sends::Nowhere;
                    self.outgoing.clear();
                }
            }
        }
        if self.reads {
            self.read();
        }
    }

    /// Whether it has sent all that it wants to.
    pub fn has_sent(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Will send nothing more.
    pub fn shut(&mut self) {
        if self.sends == Sends::More {
            self.sends = Sends::NoMore;
            let _gone_already = socket::shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        }
    }

    fn read(&mut self) {
        let mut buffer = [0; 1 << 12];
        while !self.is_closed {
            // Descriptors that come along have no room to arrive in, and are closed by the kernel.
            match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => self.is_closed = true,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(Errno::EAGAIN) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let mut received = std::mem::take(&mut self.received);
        let mut rest = received.as_slice();
        while let Some((header, _)) = rest.split_first_chunk::<16>() {
            let size = word(header, 4) as usize;
            assert!((16..=(1 << 20) + 32).contains(&size), "a reply of {size} bytes");
            let Some(after) = rest.get(size..) else { break };
            self.check(header, size);
            rest = after;
        }
        received.drain(..received.len() - rest.len());
        self.received = received;
    }

    fn check(&mut self, header: &[u8; 16], size: usize) {
        let (flags, error) = (word(header, 8), word(header, 12));
        match flags {
            1 => assert_eq!(error, 0),
            0x21 => assert!(error != 0 && size == 16, "error {error}, {size} bytes"),
            _ => panic!("flags {flags:#x} of a reply"),
        }
        self.replies += 1;
        self.first_reply_succeeded.get_or_insert(flags == 1);
        let found = (half(header, 0), half(header, 2));
        let place = self.expected.iter().position(|expected| *expected == found);
        let place = place.unwrap_or_else(|| panic!("nobody asked {found:?}: {:?}", self.expected));
        assert!(place == 0 || !self.in_order, "{found:?} is answered out of turn: {:?}", self.expected);
        self.expected.remove(place);
    }

    /// The server is gone, or has closed: each command that was sent in a session that stayed in step has its answer.
    pub fn end(mut self, server_heard_all: bool) {
        self.read();
        assert!(self.received.is_empty(), "half a reply");
        let complete = server_heard_all && self.outgoing.is_empty() && self.sends == Sends::NoMore;
        if complete
            && self.in_order
            && self.sent.in_step
            && !self.sent.is_silent
            && self.first_reply_succeeded == Some(true)
        {
            assert!(self.expected.is_empty(), "no answers to {:?}", self.expected);
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> nix::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    socket::sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)
}

/// Cuts what was sent into messages, as the protocol says.
struct Framer {
    header: Vec<u8>,
    left: u64,
    in_step: bool,
    /// There was a message.
    any: bool,
    /// The first, which decides whether there is a session, wanted no answer.
    is_silent: bool,
}

impl Default for Framer {
    fn default() -> Self {
        Self { header: Vec::new(), left: 0, in_step: true, any: false, is_silent: false }
    }
}

impl Framer {
    fn take(&mut self, mut bytes: &[u8], expected: &mut VecDeque<(u16, u16)>) {
        while let (true, Some((first, rest))) = (self.in_step, bytes.split_first()) {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                self.note(expected);
                continue;
            }
            self.header.push(*first);
            bytes = rest;
            if self.header.len() == 16 {
                let Some(left) = word(&self.header, 4).checked_sub(16) else {
                    self.in_step = false;
                    return;
                };
                self.left = left.into();
                // One that is larger than any is refused as soon as its header is there.
                self.note_at_header(expected);
            }
        }
    }

    fn note_at_header(&mut self, expected: &mut VecDeque<(u16, u16)>) {
        const LARGEST: u64 = (1 << 20) + 16;
        if self.left > LARGEST {
            self.command(expected);
            self.header.clear();
        } else {
            self.note(expected);
        }
    }

    /// The message is whole.
    fn note(&mut self, expected: &mut VecDeque<(u16, u16)>) {
        if self.left == 0 && self.header.len() == 16 {
            self.command(expected);
            self.header.clear();
        }
    }

    fn command(&mut self, expected: &mut VecDeque<(u16, u16)>) {
        let flags = word(&self.header, 8);
        let wants_answer = flags & 0x0f != 1 && flags & 0x10 == 0;
        if wants_answer {
            expected.push_back((half(&self.header, 0), half(&self.header, 2)));
        } else if !self.any {
            // Nobody hears what became of it, and whether there is a session.
            self.is_silent = true;
        }
        self.any = true;
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two"))
}
