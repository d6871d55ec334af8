use std::fs::File;
use std::os::unix::net::UnixStream;

use super::*;
use crate::vfio_user::device::{Answer, DeviceInfo as Info, Irq, Region, RegionFlags, Ticket};

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_INFO: u16 = 4;
const GET_REGION_INFO: u16 = 5;
const GET_IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const DEVICE_RESET: u16 = 13;

const NO_REPLY: u32 = 0x10;

/// Region 0 answers at once, 1 later; 2 can only be read, 3 only be written; 4 is huge.
const NOW: u32 = 0;
const LATER: u32 = 1;
const READ_ONLY: u32 = 2;
const WRITE_ONLY: u32 = 3;
const HUGE: u32 = 4;

/// Writes down what it is asked.
#[derive(Default)]
struct Recorder {
    calls: Vec<String>,
    begun: u64,
    /// Tickets below this are answered.
    answered: u64,
    stubborn: bool,
}

impl Recorder {
    fn answer(&mut self, region: u32) -> Answer {
        if region != LATER {
            return Answer::Now;
        }
        self.begun += 1;
        Answer::Later(Ticket(self.begun - 1))
    }
}

impl Device for Recorder {
    fn info(&self) -> Info {
        Info { regions: 9, irqs: 5 }
    }

    fn region(&self, index: u32) -> Region {
        match index {
            NOW | LATER => Region { size: 0x2000, flags: RegionFlags::all() },
            READ_ONLY => Region { size: 0x2000, flags: RegionFlags::READ },
            WRITE_ONLY => Region { size: 0x2000, flags: RegionFlags::WRITE },
            HUGE => Region { size: u64::MAX, flags: RegionFlags::all() },
            _ => Region::NONE,
        }
    }

    fn irq(&self, index: u32) -> Irq {
        Irq { count: u32::from(index == 0), maskable: index == 0, automasked: index == 0 }
    }

    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Answer {
        self.calls.push(format!("read {index} {offset:#x} {}", data.len()));
        data.fill(0x11);
        self.answer(index)
    }

    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        self.calls.push(format!("write {index} {offset:#x} {data:?}"));
        self.answer(index)
    }

    fn resume(&mut self, ticket: Ticket, data: &mut [u8], must_answer: bool) -> Answer {
        if ticket.0 >= self.answered && (!must_answer || self.stubborn) {
            return Answer::Later(ticket);
        }
        self.calls.push(format!("resume {}{}", ticket.0, if must_answer { " must" } else { "" }));
        data.fill(0x22);
        Answer::Now
    }

    fn reset(&mut self) {
        self.calls.push("reset".into());
    }

    fn connected(&mut self) {
        self.calls.push("connected".into());
    }

    fn disconnected(&mut self) {
        self.calls.push("disconnected".into());
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    id: u16,
    command: u16,
    flags: u32,
    error: u32,
    body: Vec<u8>,
}

/// A session with its device, after the negotiation.
struct Bench {
    session: Session,
    device: Recorder,
    outbox: Outbox,
    next_id: u16,
}

impl Bench {
    fn silent() -> Self {
        Self { session: Session::default(), device: Recorder::default(), outbox: Outbox::default(), next_id: 0 }
    }

    fn new() -> Self {
        let mut bench = Self::silent();
        assert_eq!(bench.request(VERSION, &[0; 4]).flags, 1);
        assert_eq!(bench.device.calls, ["connected"]);
        bench.device.calls.clear();
        bench
    }

    /// Hands over a message as it comes from a connection.
    fn hand(
        &mut self,
        command: u16,
        flags: u32,
        body: Option<&[u8]>,
        descriptors: &mut Vec<OwnedFd>,
        descriptors_lost: bool,
    ) -> Next {
        self.next_id += 1;
        let header = Header {
            message_id: self.next_id.into(),
            command: command.into(),
            message_size: 16.into(),
            flags: flags.into(),
            error: 0.into(),
        };
        self.session.handle(Message { header, body, descriptors, descriptors_lost }, &mut self.device, &mut self.outbox)
    }

    fn send(&mut self, command: u16, flags: u32, body: &[u8]) -> Next {
        self.hand(command, flags, Some(body), &mut Vec::new(), false)
    }

    fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        self.outbox
            .flush(|bytes, _| {
                let (header, body) = wire::parse::<Header>(bytes).unwrap();
                assert_eq!(header.message_size.get() as usize, bytes.len());
                replies.push(Reply {
                    id: header.message_id.get(),
                    command: header.command.get(),
                    flags: header.flags.get(),
                    error: header.error.get(),
                    body: body.to_vec(),
                });
                Ok(bytes.len())
            })
            .unwrap();
        replies
    }

    /// The one reply to a command.
    fn request(&mut self, command: u16, body: &[u8]) -> Reply {
        let _next = self.send(command, 0, body);
        let mut replies = self.replies();
        assert_eq!(replies.len(), 1);
        let reply = replies.remove(0);
        assert_eq!((reply.id, reply.command), (self.next_id, command));
        if reply.flags != 1 {
            assert_eq!(reply.flags, 0x21);
            assert!(reply.error != 0 && reply.body.is_empty());
        }
        reply
    }

    fn errno(&mut self, command: u16, body: &[u8]) -> u32 {
        self.request(command, body).error
    }

    fn ok(&mut self, command: u16, body: &[u8]) -> Vec<u8> {
        let reply = self.request(command, body);
        assert_eq!(reply.error, 0);
        reply.body
    }
}

fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    let fixed = RegionAccess { offset: offset.into(), region: region.into(), count: count.into() };
    [fixed.as_bytes(), data].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().copied().flat_map(u32::to_le_bytes).collect()
}

const EINVAL: u32 = Errno::EINVAL as u32;
const EOPNOTSUPP: u32 = Errno::EOPNOTSUPP as u32;

#[test]
fn whatever_comes_before_the_version_closes() {
    for command in (0..20).filter(|&command| command != VERSION) {
        let mut bench = Bench::silent();
        assert_eq!(bench.send(command, 0, &[0; 64]), Next::Close);
        assert!(bench.replies().iter().all(|reply| reply.flags == 0x21));
        assert!(bench.device.calls.is_empty());
    }
}

#[test]
fn refused_version_closes_and_the_device_hears_nothing() {
    for body in [&[0; 3][..], &[1, 0, 0, 0], b"\0\0\0\0{"] {
        let mut bench = Bench::silent();
        assert_eq!(bench.send(VERSION, 0, body), Next::Close);
        assert_eq!(bench.replies().first().unwrap().flags, 0x21);
        bench.session.end(&mut bench.device, &mut Outbox::default());
        assert!(bench.device.calls.is_empty());
    }
}

#[test]
fn second_version_is_refused_and_the_session_goes_on() {
    let mut bench = Bench::new();
    assert_eq!(bench.errno(VERSION, &[0; 4]), EINVAL);
    assert_eq!(bench.ok(GET_INFO, &words(&[16, 0, 0, 0])), words(&[16, 3, 9, 5]));
}

#[test]
fn unsolicited_reply_is_ignored() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(REGION_READ, 1, &access(NOW, 0, 4, &[])), Next::Continue);
    assert_eq!(bench.send(REGION_READ, 0x21, &[]), Next::Continue);
    assert!(bench.replies().is_empty() && bench.device.calls.is_empty());
    assert_eq!(Bench::silent().send(VERSION, 1, &[0; 4]), Next::Close);
}

#[test]
fn unknown_types_and_commands_are_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(GET_INFO, 2, &words(&[16, 0, 0, 0])), Next::Continue);
    assert_eq!(bench.replies().first().unwrap().error, EINVAL);
    for command in [0, 6, 11, 12, 14, 15, 16, 17, 18, 19, u16::MAX] {
        assert_eq!(bench.errno(command, &[0; 40]), EOPNOTSUPP, "{command}");
    }
}

#[test]
fn no_reply_silences_success_and_failure() {
    let mut bench = Bench::new();
    for (command, body) in [
        (REGION_WRITE, access(NOW, 0, 1, &[5])),
        (REGION_WRITE, access(NOW, 0x2000, 1, &[5])),
        (REGION_READ, access(NOW, 0, 1, &[])),
        (GET_INFO, words(&[16, 0, 0, 0])),
        (GET_INFO, vec![]),
        (GET_REGION_INFO, words(&[32, 0, 99, 0, 0, 0, 0, 0])),
        (DEVICE_RESET, vec![]),
        (VERSION, vec![0; 4]),
        (99, vec![]),
    ] {
        assert_eq!(bench.send(command, NO_REPLY, &body), Next::Continue);
    }
    assert_eq!(bench.hand(REGION_WRITE, NO_REPLY, None, &mut Vec::new(), false), Next::Continue);
    assert_eq!(bench.hand(DMA_MAP, NO_REPLY, Some(&[]), &mut Vec::new(), true), Next::Continue);
    assert!(bench.replies().is_empty());
    assert_eq!(bench.device.calls, ["write 0 0x0 [5]", "read 0 0x0 1", "reset"]);
}

#[test]
fn message_too_large_or_with_lost_descriptors_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.hand(REGION_WRITE, 0, None, &mut Vec::new(), false), Next::Continue);
    assert_eq!(bench.hand(DMA_MAP, 0, Some(&[0; 32]), &mut Vec::new(), true), Next::Continue);
    let errors: Vec<_> = bench.replies().iter().map(|reply| reply.error).collect();
    assert_eq!(errors, [Errno::EMSGSIZE as u32, EINVAL]);
}

#[test]
fn descriptors_that_nobody_takes_are_left() {
    let mut bench = Bench::new();
    let dma_map = [words(&[32, 3, 0, 0, 0x1000, 0, 0x1000, 0])].concat();
    for (command, flags, body) in [
        (DMA_MAP, 0, dma_map),
        (GET_INFO, 0, words(&[16, 0, 0, 0])),
        (DEVICE_RESET, NO_REPLY, vec![]),
        (99, 0, vec![]),
        (GET_INFO, 1, vec![]),
        (GET_INFO, 7, vec![]),
    ] {
        let mut descriptors = vec![File::open("/dev/null").unwrap().into()];
        assert_eq!(bench.hand(command, flags, Some(&body), &mut descriptors, false), Next::Continue);
        assert_eq!(descriptors.len(), 1, "{command} {flags}");
    }
    assert_eq!(bench.replies().first().unwrap().error, 0);
}

#[test]
fn structures_have_to_be_whole_and_argsz_to_hold_them() {
    let mut bench = Bench::new();
    for (command, size) in [(GET_INFO, 16), (GET_REGION_INFO, 32), (GET_IRQ_INFO, 16), (DMA_MAP, 32), (DMA_UNMAP, 24)] {
        for length in 0..size {
            let mut body = words(&[u32::try_from(size).unwrap(), 0, 0, 0, 0, 0, 0, 0]);
            body.truncate(length);
            assert_eq!(bench.errno(command, &body), EINVAL, "{command} with {length}");
        }
        for argsz in [0, u32::try_from(size - 1).unwrap()] {
            let mut body = words(&[argsz, 0, 0, 0, 0, 0, 0, 0]);
            body.truncate(size);
            assert_eq!(bench.errno(command, &body), EINVAL, "{command} with argsz {argsz}");
        }
    }
    for body in [words(&[20, 0x21, 0, 0]), words(&[19, 0x21, 0, 0, 0]), words(&[24, 0x21, 0, 0, 0])] {
        assert_eq!(bench.errno(SET_IRQS, &body), EINVAL);
    }
}

#[test]
fn infos_are_the_devices() {
    let mut bench = Bench::new();
    assert_eq!(bench.ok(GET_INFO, &words(&[1000, 0, 0, 0])), words(&[16, 3, 9, 5]));
    let ask = |index| words(&[32, 0, index, 0, 0, 0, 0, 0]);
    assert_eq!(bench.ok(GET_REGION_INFO, &ask(NOW)), words(&[32, 3, NOW, 0, 0x2000, 0, 0, 0]));
    assert_eq!(bench.ok(GET_REGION_INFO, &ask(READ_ONLY)), words(&[32, 1, READ_ONLY, 0, 0x2000, 0, 0, 0]));
    assert_eq!(bench.ok(GET_REGION_INFO, &ask(8)), words(&[32, 0, 8, 0, 0, 0, 0, 0]));
    assert_eq!(bench.errno(GET_REGION_INFO, &ask(9)), EINVAL);
    assert_eq!(bench.ok(GET_IRQ_INFO, &words(&[16, 0, 0, 0])), words(&[16, 7, 0, 1]));
    assert_eq!(bench.ok(GET_IRQ_INFO, &words(&[16, 0, 4, 0])), words(&[16, 1, 4, 0]));
    assert_eq!(bench.errno(GET_IRQ_INFO, &words(&[16, 0, 5, 0])), EINVAL);
    assert_eq!(bench.errno(SET_IRQS, &words(&[20, 0x21, 5, 0, 0])), EINVAL);
    assert!(bench.ok(SET_IRQS, &words(&[20, 0x21, 4, 0, 0])).is_empty());
}

#[test]
fn accesses_reach_the_device_and_their_replies_repeat_them() {
    let mut bench = Bench::new();
    assert_eq!(bench.ok(REGION_READ, &access(NOW, 0x1ffc, 4, &[])), access(NOW, 0x1ffc, 4, &[0x11; 4]));
    assert_eq!(bench.ok(REGION_WRITE, &access(NOW, 8, 2, &[1, 2])), access(NOW, 8, 2, &[]));
    assert_eq!(bench.device.calls, ["read 0 0x1ffc 4", "write 0 0x8 [1, 2]"]);
}

#[test]
fn accesses_outside_their_region_never_reach_the_device() {
    let mut bench = Bench::new();
    let limit = wire::MAX_DATA_XFER_SIZE;
    for (region, offset, count) in [
        (NOW, 0x2000, 1),
        (NOW, 0x1fff, 2),
        (NOW, u64::MAX, 1),
        (NOW, u64::MAX, u32::MAX),
        (NOW, 0, 0),
        (NOW, 0, 0x2001),
        (HUGE, 0, limit + 1),
        (HUGE, u64::MAX, 1),
        (8, 0, 1),
        (9, 0, 1),
        (u32::MAX, 0, 1),
        (WRITE_ONLY, 0, 1),
    ] {
        assert_eq!(bench.errno(REGION_READ, &access(region, offset, count, &[])), EINVAL, "{region} {offset} {count}");
    }
    for (region, offset, count, data) in [
        (NOW, 0x2000, 1, 1),
        (NOW, 0, 2, 1),
        (NOW, 0, 1, 2),
        (NOW, 0, 0, 0),
        (NOW, 0, u32::MAX, 4),
        (READ_ONLY, 0, 1, 1),
        (8, 0, 1, 1),
    ] {
        assert_eq!(bench.errno(REGION_WRITE, &access(region, offset, count, &vec![0; data])), EINVAL);
    }
    assert_eq!(bench.errno(REGION_READ, &access(NOW, 0, 1, &[0])), EINVAL);
    assert_eq!(bench.errno(REGION_READ, &[0; 15]), EINVAL);
    assert_eq!(bench.errno(REGION_WRITE, &[0; 15]), EINVAL);
    assert!(bench.device.calls.is_empty());
    assert_eq!(bench.ok(REGION_READ, &access(HUGE, 5, limit, &[])).len(), 16 + limit as usize);
}

#[test]
fn negotiated_transfer_size_bounds_accesses() {
    let mut bench = Bench::silent();
    let version = b"\0\0\0\0{\"capabilities\":{\"max_data_xfer_size\":8}}\0";
    assert_eq!(bench.ok(VERSION, version), version);
    assert_eq!(bench.ok(REGION_READ, &access(NOW, 0, 8, &[])).len(), 24);
    assert_eq!(bench.errno(REGION_READ, &access(NOW, 0, 9, &[])), EINVAL);
    assert_eq!(bench.errno(REGION_WRITE, &access(NOW, 0, 9, &[0; 9])), EINVAL);
}

#[test]
fn dma_windows_are_entered_and_unmapping_echoes_the_request() {
    let mut bench = Bench::new();
    let map = words(&[32, 3, 0, 0, 0x1000, 0, 0x1000, 0]);
    assert!(bench.ok(DMA_MAP, &map).is_empty());
    assert_eq!(bench.errno(DMA_MAP, &map), Errno::EEXIST as u32);
    let unmap = words(&[24, 0, 0x1000, 0, 0x1000, 0]);
    assert_eq!(bench.ok(DMA_UNMAP, &unmap), unmap);
    assert_eq!(bench.errno(DMA_UNMAP, &unmap), Errno::ENOENT as u32);
    assert_eq!(bench.ok(DMA_UNMAP, &words(&[24, 2, 0, 0, 0, 0])), words(&[24, 2, 0, 0, 0, 0]));
}

#[test]
fn dma_window_with_two_descriptors_is_refused() {
    let mut bench = Bench::new();
    let (one, two) = UnixStream::pair().unwrap();
    let map = words(&[32, 3, 0, 0, 0x1000, 0, 0x1000, 0]);
    let _next = bench.hand(DMA_MAP, 0, Some(&map), &mut vec![one.into(), two.into()], false);
    assert_eq!(bench.replies().first().unwrap().error, EINVAL);
    assert!(bench.ok(DMA_MAP, &map).is_empty());
}

#[test]
fn late_answers_come_under_the_ids_of_their_requests() {
    let mut bench = Bench::new();
    let _next = bench.send(REGION_READ, 0, &access(LATER, 4, 2, &[]));
    let _next = bench.send(REGION_WRITE, 0, &access(LATER, 8, 1, &[7]));
    assert!(bench.replies().is_empty());
    assert_eq!(bench.ok(REGION_READ, &access(NOW, 0, 1, &[])).len(), 17, "others are served meanwhile");

    bench.session.resume(&mut bench.device, &mut bench.outbox);
    assert!(bench.replies().is_empty());
    bench.device.answered = 1;
    bench.session.resume(&mut bench.device, &mut bench.outbox);
    let read = Reply { id: 2, command: REGION_READ, flags: 1, error: 0, body: access(LATER, 4, 2, &[0x22; 2]) };
    assert_eq!(bench.replies(), [read]);
    bench.device.answered = 2;
    bench.session.resume(&mut bench.device, &mut bench.outbox);
    let write = Reply { id: 3, command: REGION_WRITE, flags: 1, error: 0, body: access(LATER, 8, 1, &[]) };
    assert_eq!(bench.replies(), [write]);
    bench.session.resume(&mut bench.device, &mut bench.outbox);
    assert!(bench.replies().is_empty());
}

#[test]
fn what_one_message_has_done_may_be_what_another_waits_for() {
    let mut bench = Bench::new();
    let _next = bench.send(REGION_READ, 0, &access(LATER, 4, 2, &[]));
    bench.device.answered = 1;
    let _next = bench.send(REGION_WRITE, 0, &access(NOW, 0, 1, &[7]));
    let ids: Vec<_> = bench.replies().iter().map(|reply| reply.id).collect();
    assert_eq!(ids, [3, 2]);
}

#[test]
fn late_answer_that_nobody_wants_is_still_concluded() {
    let mut bench = Bench::new();
    let _next = bench.send(REGION_WRITE, NO_REPLY, &access(LATER, 8, 1, &[7]));
    bench.device.answered = 1;
    bench.session.resume(&mut bench.device, &mut bench.outbox);
    assert!(bench.replies().is_empty());
    assert_eq!(bench.device.calls, ["write 1 0x8 [7]", "resume 0"]);
}

#[test]
fn late_answers_are_bounded() {
    let mut bench = Bench::new();
    for _ in 0..16 {
        let _next = bench.send(REGION_READ, 0, &access(LATER, 0, 1, &[]));
    }
    assert!(bench.replies().is_empty());
    assert_eq!(bench.ok(REGION_READ, &access(LATER, 0, 1, &[])), access(LATER, 0, 1, &[0x22]));
    assert_eq!(bench.device.calls.last().unwrap(), "resume 16 must");
    bench.device.answered = 100;
    bench.session.resume(&mut bench.device, &mut bench.outbox);
    assert_eq!(bench.replies().len(), 16);
    assert_eq!(bench.ok(REGION_READ, &access(LATER, 0, 4097, &[])).len(), 16 + 4097, "too large to wait");
}

#[test]
fn reset_comes_after_the_answers_that_were_owed() {
    let mut bench = Bench::new();
    let _next = bench.send(REGION_READ, 0, &access(LATER, 0, 1, &[]));
    let _next = bench.send(REGION_READ, 0, &access(LATER, 1, 1, &[]));
    let _next = bench.send(DEVICE_RESET, 0, &[]);
    let order: Vec<_> = bench.replies().iter().map(|reply| reply.command).collect();
    assert_eq!(order, [REGION_READ, REGION_READ, DEVICE_RESET]);
    assert_eq!(bench.device.calls[2..], ["resume 0 must", "resume 1 must", "reset"]);
}

#[test]
fn reset_with_a_body_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.errno(DEVICE_RESET, &[0]), EINVAL);
    assert!(bench.device.calls.is_empty());
}

#[test]
fn device_that_does_not_answer_when_it_must_reads_as_ones() {
    let mut bench = Bench::new();
    bench.device.stubborn = true;
    let _next = bench.send(REGION_READ, 0, &access(LATER, 0, 2, &[]));
    let _next = bench.send(DEVICE_RESET, 0, &[]);
    assert_eq!(bench.replies().first().unwrap().body, access(LATER, 0, 2, &[0xff; 2]));
}

#[test]
fn end_answers_what_waits_and_then_tells_the_device_once() {
    let mut bench = Bench::new();
    let _next = bench.send(REGION_READ, 0, &access(LATER, 0, 1, &[]));
    let mut outbox = Outbox::default();
    bench.session.end(&mut bench.device, &mut outbox);
    assert!(!outbox.is_empty());
    assert_eq!(bench.device.calls.last().unwrap(), "disconnected");
    assert_eq!(bench.device.calls.iter().filter(|call| *call == "disconnected").count(), 1);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Numbers that bounds are made of, and any others.
    fn number() -> impl Strategy<Value = u32> {
        prop_oneof![
            0..5_u32,
            Just(16),
            Just(20),
            Just(24),
            Just(32),
            Just(0x1000),
            Just(0x2000),
            Just(0x21),
            Just(0x24),
            Just(0x8000_0000),
            Just(u32::MAX),
            any::<u32>(),
        ]
    }

    fn body() -> impl Strategy<Value = Vec<u8>> {
        (prop::collection::vec(number(), 0..12), 0..4_usize).prop_map(|(numbers, less)| {
            let mut body = words(&numbers);
            body.truncate(body.len().saturating_sub(less));
            body
        })
    }

    proptest! {
        #[test]
        fn every_command_is_answered_exactly_once(
            messages in prop::collection::vec((0..20_u16, any::<bool>(), body(), 0..3_usize), 1..40),
        ) {
            let mut bench = Bench::new();
            let mut expected = Vec::new();
            let mut answered = Vec::new();
            for (command, no_reply, body, descriptors) in messages {
                let mut descriptors: Vec<OwnedFd> =
                    (0..descriptors).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
                let flags = if no_reply { NO_REPLY } else { 0 };
                prop_assert_eq!(bench.hand(command, flags, Some(&body), &mut descriptors, false), Next::Continue);
                if !no_reply {
                    expected.push((bench.next_id, command));
                }
                answered.extend(bench.replies());
            }
            bench.device.answered = u64::MAX;
            bench.session.resume(&mut bench.device, &mut bench.outbox);
            answered.extend(bench.replies());
            for reply in &answered {
                prop_assert!(reply.flags == 1 && reply.error == 0 || reply.flags == 0x21 && reply.body.is_empty());
            }
            let mut answered: Vec<_> = answered.iter().map(|reply| (reply.id, reply.command)).collect();
            answered.sort_unstable();
            prop_assert_eq!(answered, expected);
        }

        #[test]
        fn any_version_is_survived(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bench = Bench::silent();
            let next = bench.send(VERSION, 0, &body);
            let replies = bench.replies();
            prop_assert_eq!(replies.len(), 1);
            let accepted = replies.iter().all(|reply| reply.flags == 1);
            prop_assert_eq!(accepted, next == Next::Continue);
        }
    }
}
