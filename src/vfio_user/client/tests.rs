use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::eventfd::EventFd;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use proptest::prelude::*;

use super::*;
use crate::vfio_user::device::{Answer, DeviceInfo, Interrupts, Irq, Region, RegionFlags, Ticket};
use crate::vfio_user::wire::{HEADER_SIZE, Header, MAX_BODY_SIZE, parse};

const VERSION: u16 = 1;
const GET_INFO: u16 = 4;
const REGION_READ: u16 = 9;
const NO_REPLY: u32 = 0x10;
/// None of these clients is disconnected for descriptors that are closed too slowly.
const LIMIT: Duration = Duration::from_secs(3600);

/// Region 0 answers at once, 1 later; 2 is larger than any access. Its line is always asserted.
struct Simple;

impl Device for Simple {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5 }
    }

    fn region(&self, index: u32) -> Region {
        let size = match index {
            0 | 1 => 0x2000,
            2 => u64::MAX,
            _ => 0,
        };
        Region { size, flags: RegionFlags::all() }
    }

    fn irq(&self, index: u32) -> Irq {
        Irq { count: 4, maskable: index == 0, automasked: index == 0 }
    }

    fn read(&mut self, index: u32, _offset: u64, _data: &mut [u8]) -> Answer {
        if index == 1 { Answer::Later(Ticket(0)) } else { Answer::Now }
    }

    fn write(&mut self, index: u32, _offset: u64, _data: &[u8]) -> Answer {
        if index == 1 { Answer::Later(Ticket(0)) } else { Answer::Now }
    }

    fn resume(&mut self, ticket: Ticket, _data: &mut [u8], must_answer: bool) -> Answer {
        if must_answer { Answer::Now } else { Answer::Later(ticket) }
    }

    fn reset(&mut self) {}

    fn interrupts(&mut self, interrupts: &mut dyn Interrupts) {
        interrupts.line(0);
        interrupts.message(1, 3);
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_le_bytes).collect()
}

fn message(id: u16, command: u16, flags: u32, size: u32, body: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes()[..], &command.to_le_bytes(), &words(&[size, flags, 0]), body].concat()
}

fn whole(id: u16, command: u16, body: &[u8]) -> Vec<u8> {
    message(id, command, 0, u32::try_from(HEADER_SIZE + body.len()).unwrap(), body)
}

/// A client with the other end of its socket, and an event loop that knows only these.
struct Bench {
    client: Client,
    other: UnixStream,
    replies: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let (ours, other) = UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        Self { client: Client::new(ours, Closer::start().unwrap()), other, replies: Vec::new() }
    }

    /// Serves until there is nothing to do, as the event loop would.
    fn serve(&mut self) -> Result<(), Farewell> {
        loop {
            match self.other.read_to_end(&mut self.replies) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let wanted = match self.client.waiting() {
                Waiting::ToReceive => PollFlags::POLLIN,
                Waiting::ToSend => PollFlags::POLLOUT,
                // To be asked again.
                Waiting::ForRoom => PollFlags::empty(),
            };
            if !wanted.is_empty()
                && poll(&mut [PollFd::new(self.client.socket().as_fd(), wanted)], PollTimeout::ZERO).unwrap() == 0
            {
                return Ok(());
            }
            self.client.serve(&mut Simple, LIMIT)?;
            // A vector doubles.
            assert!(self.client.connection.memory() <= 2 * MAX_BODY_SIZE);
            assert!(self.client.outbox.memory() <= 4 << 20);
        }
    }

    /// Sends everything, the descriptors with the first bytes.
    fn send(&mut self, mut bytes: &[u8], mut descriptors: &[RawFd]) -> Result<(), Farewell> {
        while !bytes.is_empty() {
            let rights = [ControlMessage::ScmRights(descriptors)];
            let rights = if descriptors.is_empty() { &[][..] } else { &rights[..] };
            let parts = [IoSlice::new(bytes)];
            match sendmsg::<()>(self.other.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    descriptors = &[];
                }
                Err(Errno::EAGAIN) => {}
                // It may have closed while there was more to send.
                Err(_) => return self.serve(),
            }
            self.serve()?;
        }
        Ok(())
    }

    /// Checks that only whole replies were sent; returns the last of them.
    fn last_reply(&self) -> Option<&[u8]> {
        let (mut last, mut rest) = (None, &self.replies[..]);
        while !rest.is_empty() {
            let (header, _) = parse::<Header>(rest).unwrap();
            let (reply, others) = rest.split_at(header.message_size.get() as usize);
            let flags = header.flags.get();
            assert!(
                flags == 1 && header.error.get() == 0 || flags == 0x21 && header.error.get() > 0 && reply.len() == 16
            );
            (last, rest) = (Some(reply), others);
        }
        last
    }
}

#[test]
fn an_access_costs_two_receives_and_one_send() {
    let mut bench = Bench::new();
    bench.send(&whole(1, VERSION, &[0; 4]), &[]).unwrap();
    let (receives, sends) = bench.client.connection.calls();
    for id in 0..100 {
        bench.send(&whole(id, REGION_READ, &words(&[0, 0, 0, 4])), &[]).unwrap();
        assert_eq!(bench.last_reply().unwrap().len(), 36);
    }
    assert_eq!(bench.client.connection.calls(), (receives + 200, sends + 100));
}

#[test]
fn messages_that_arrived_together_are_served_in_as_many_turns() {
    let mut bench = Bench::new();
    bench.send(&whole(1, VERSION, &[0; 4]), &[]).unwrap();
    let batch: Vec<u8> = (2..12).flat_map(|id| whole(id, GET_INFO, &words(&[16, 0, 0, 0]))).collect();
    bench.other.write_all(&batch).unwrap();
    for id in 2_u16..12 {
        bench.client.serve(&mut Simple, LIMIT).unwrap();
        let mut reply = [0; 32];
        bench.other.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..2], id.to_le_bytes());
    }
    bench.client.serve(&mut Simple, LIMIT).unwrap();
    assert_eq!(bench.other.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

/// A piece of a stream: bytes that are sent at once, and what goes with them.
#[derive(Clone, Debug)]
struct Piece {
    bytes: Vec<u8>,
    descriptors: usize,
    eventfds: bool,
}

/// Numbers that bounds are made of, and any others.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => 0..5_u32,
        4 => prop::sample::select(vec![16, 20, 24, 32, 48, 0x1000, 0x2000, 1 << 20, 0x8000_0000, u32::MAX]),
        4 => prop::sample::select(vec![0x21, 0x24, 0x14, 0x11, 0x09, 0x22]),
        1 => any::<u32>(),
    ]
}

/// A command as a client may send it.
fn valid() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let access = |region, offset: u64, count: u32, data: usize| {
        [&offset.to_le_bytes()[..], &words(&[region, count]), &vec![7; data]].concat()
    };
    let small = prop_oneof![
        Just((VERSION, vec![0; 4])),
        Just((2, words(&[32, 3, 0, 0, 0x1000, 0, 0x1000, 0]))),
        Just((3, words(&[24, 0, 0x1000, 0, 0x1000, 0]))),
        Just((GET_INFO, words(&[16, 0, 0, 0]))),
        (0..10_u32).prop_map(|index| (5, words(&[32, 0, index, 0, 0, 0, 0, 0]))),
        (0..6_u32).prop_map(|index| (7, words(&[16, 0, index, 0]))),
        (prop::sample::select(vec![0x21, 0x24, 0x14, 0x11, 0x09]), 0..2_u32, 0..4_u32, 0..3_u32)
            .prop_map(|(flags, index, start, count)| (8, words(&[20, flags, index, start, count]))),
        (0..3_u32, 0..0x2000_u64, 1..9_u32)
            .prop_map(move |(region, offset, count)| (9, access(region, offset, count, 0))),
        (0..3_u32, 0..0x2000_u64, 1..9_usize).prop_map(move |(region, offset, count)| (
            10,
            access(region, offset, u32::try_from(count).unwrap(), count)
        )),
        Just((13, vec![])),
    ];
    let large = prop::sample::select(vec![(9, access(2, 5, 1 << 20, 0)), (10, access(2, 0, 100_000, 100_000))]);
    prop_oneof![40 => small, 1 => large]
}

/// A command, perhaps with a body of any numbers, a size that lies, any flags, or bytes changed or missing.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        6 => valid(),
        1 => (0..20_u16, prop::collection::vec(number(), 0..12)).prop_map(|(command, numbers)| (command, words(&numbers))),
    ];
    let size = prop_oneof![
        20 => Just(None),
        1 => prop::sample::select(vec![0, 15, 16, 17, (1 << 20) + 32, (1 << 20) + 33, 3 << 20, u32::MAX]).prop_map(Some),
    ];
    let flags = prop_oneof![8 => Just(0), 2 => Just(NO_REPLY), 1 => number()];
    let change = prop_oneof![4 => Just(None), 1 => any::<(prop::sample::Index, u8)>().prop_map(Some)];
    let missing = prop_oneof![8 => Just(0), 1 => 0..40_usize];
    (any::<u16>(), body, size, flags, change, missing).prop_map(
        |(id, (command, body), size, flags, change, missing)| {
            let size = size.unwrap_or_else(|| u32::try_from(HEADER_SIZE + body.len()).unwrap());
            let mut bytes = message(id, command, flags, size, &body);
            if let Some((index, value)) = change {
                *index.get_mut(&mut bytes) = value;
            }
            bytes.truncate(bytes.len().saturating_sub(missing));
            bytes
        },
    )
}

fn piece() -> impl Strategy<Value = Piece> {
    let bytes = prop_oneof![20 => mutated(), 1 => prop::collection::vec(any::<u8>(), 1..100)];
    let descriptors = prop_oneof![10 => Just(0), 4 => 1..4_usize, 1 => 15..20_usize];
    (bytes, descriptors, any::<bool>()).prop_map(|(bytes, descriptors, eventfds)| Piece {
        bytes,
        descriptors,
        eventfds,
    })
}

/// What the end of a stream leaves open.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// These bytes complete the last message.
    Completed(Vec<u8>),
    /// The last message is too long to be completed here.
    Long,
    /// Some header claims less than itself, once these bytes have completed it.
    OutOfStep(Vec<u8>),
}

/// Walks a stream by its sizes alone.
fn end_of(stream: &[u8]) -> End {
    let mut stream = stream.to_vec();
    let (mut start, sent) = (0, stream.len());
    while start < stream.len() {
        if stream.len() < start + HEADER_SIZE {
            stream.resize(start + HEADER_SIZE, 0);
        }
        let (header, _) = parse::<Header>(&stream[start..]).unwrap();
        let size = header.message_size.get() as usize;
        if size < HEADER_SIZE {
            return End::OutOfStep(stream.split_off(sent));
        }
        start += size;
    }
    if start - sent > 4 << 20 {
        return End::Long;
    }
    stream.resize(start, 0);
    End::Completed(stream.split_off(sent))
}

/// Sends a stream, then completes its last message and asks a question; checks that the answer comes, or that the client
/// was disconnected for good reason.
fn check_stream(pieces: &[Piece], negotiated: bool) {
    let mut bench = Bench::new();
    let (mut kept, given) = UnixStream::pair().unwrap();
    let eventfd = EventFd::new().unwrap();
    let outcome = if negotiated { bench.send(&whole(1, VERSION, &[0; 4]), &[]) } else { Ok(()) };
    let stream: Vec<u8> = pieces.iter().flat_map(|piece| &piece.bytes).copied().collect();
    let outcome = outcome.and_then(|()| {
        pieces.iter().try_for_each(|piece| {
            let descriptor = if piece.eventfds { eventfd.as_raw_fd() } else { given.as_raw_fd() };
            bench.send(&piece.bytes, &vec![descriptor; piece.descriptors])
        })
    });
    let end = end_of(&stream);
    let outcome = outcome.and_then(|()| match &end {
        End::Completed(rest) => {
            bench.send(rest, &[])?;
            bench.send(&whole(0xbeef, GET_INFO, &words(&[16, 0, 0, 0])), &[])
        }
        End::OutOfStep(rest) => bench.send(rest, &[]),
        End::Long => Ok(()),
    });
    match (outcome, &end) {
        (Ok(()), End::Completed(_)) => {
            let expected = [message(0xbeef, GET_INFO, 1, 32, &[]), words(&[16, 3, 9, 5])].concat();
            assert_eq!(bench.last_reply(), Some(&expected[..]));
            assert!(bench.client.connection.memory() <= 64 << 10);
            assert!(bench.client.outbox.memory() <= 64 << 10);
        }
        (Ok(()), End::Long) | (Err(Farewell::Receive(_)), End::OutOfStep(_)) => {}
        (Err(Farewell::Refused), _) if !negotiated => {}
        (outcome, end) => panic!("{outcome:?} after a stream with the end {end:?}"),
    }
    bench.client.end(&mut Simple);
    drop(given);
    // Those that were sent after the end are still on their way to nobody.
    drop(bench.other);
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "every descriptor is closed");
}

proptest! {
    #[test]
    fn any_stream_of_a_client_that_has_negotiated_leaves_the_server_in_step(
        pieces in prop::collection::vec(piece(), 0..12),
    ) {
        check_stream(&pieces, true);
    }

    #[test]
    fn any_stream_leaves_the_server_in_step_or_disconnected(pieces in prop::collection::vec(piece(), 0..4)) {
        check_stream(&pieces, false);
    }

    #[test]
    fn a_session_cut_into_any_pieces_is_answered_alike(
        messages in prop::collection::vec(valid(), 1..20),
        cuts in prop::collection::vec(1..60_usize, 1..8),
    ) {
        let mut session = whole(1, VERSION, &[0; 4]);
        for (id, (command, body)) in (2..).zip(messages) {
            session.extend(whole(id, command, &body));
        }
        let mut at_once = Bench::new();
        at_once.send(&session, &[]).unwrap();
        let mut in_pieces = Bench::new();
        let mut rest = &session[..];
        for cut in cuts.iter().cycle() {
            let (piece, others) = rest.split_at((*cut).min(rest.len()));
            in_pieces.send(piece, &[]).unwrap();
            rest = others;
            if rest.len() > 10_000 {
                in_pieces.send(rest, &[]).unwrap();
                rest = &[];
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(at_once.replies, in_pieces.replies);
    }
}

#[test]
fn descriptor_of_a_file_is_never_kept() {
    let mut bench = Bench::new();
    let file = File::open("/dev/null").unwrap();
    bench.send(&whole(1, VERSION, &[0; 4]), &[file.as_raw_fd(); 16]).unwrap();
    bench.send(&whole(2, GET_INFO, &words(&[16, 0, 0, 0])), &[file.as_raw_fd(); 253]).unwrap();
    assert_eq!(bench.last_reply().unwrap()[12..], words(&[Errno::EINVAL as u32]));
}
