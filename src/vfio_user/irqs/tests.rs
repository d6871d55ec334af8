use std::os::unix::net::UnixStream;

use nix::sys::eventfd::{EfdFlags, EventFd as ClientEventFd};
use nix::unistd::dup;

use super::super::device::{Answer, DeviceInfo, Region, Ticket};
use super::*;

const NONE: u32 = VFIO_IRQ_SET_DATA_NONE;
const BOOL: u32 = VFIO_IRQ_SET_DATA_BOOL;
const EVENTFD: u32 = VFIO_IRQ_SET_DATA_EVENTFD;
const MASK: u32 = VFIO_IRQ_SET_ACTION_MASK;
const UNMASK: u32 = VFIO_IRQ_SET_ACTION_UNMASK;
const TRIGGER: u32 = VFIO_IRQ_SET_ACTION_TRIGGER;

/// A line like INTx, with more vectors than it would have.
const LINE: Irq = Irq { count: 4, maskable: true, automasked: true };
/// Messages like MSI.
const MESSAGES: Irq = Irq { count: 4, maskable: false, automasked: false };
/// What the device does not have.
const ABSENT: Irq = Irq { count: 0, maskable: false, automasked: false };

fn request(flags: u32, start: u32, count: u32) -> IrqSet {
    IrqSet { argsz: 20.into(), flags: flags.into(), index: 0.into(), start: start.into(), count: count.into() }
}

/// An eventfd with counter 0, and a copy of it to be given away.
fn eventfd() -> (ClientEventFd, OwnedFd) {
    let eventfd = ClientEventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
    let copy = dup(eventfd.as_fd()).unwrap();
    (eventfd, copy)
}

fn set(irqs: &mut Irqs, flags: u32, start: u32, count: u32, data: &[u8], irq: Irq) -> Result<(), Errno> {
    irqs.set(&request(flags, start, count), data, irq, &mut Vec::new()).map_err(|refusal| refusal.errno)
}

/// Gives `vectors` an eventfd each, from vector 0 on.
fn assigned(vectors: u32, irq: Irq) -> (Irqs, Vec<ClientEventFd>) {
    let mut irqs = Irqs::default();
    let (eventfds, mut copies): (Vec<_>, Vec<_>) = (0..vectors).map(|_| eventfd()).unzip();
    irqs.set(&request(EVENTFD | TRIGGER, 0, vectors), &[], irq, &mut copies).unwrap();
    (irqs, eventfds)
}

fn counts(eventfds: &[ClientEventFd]) -> Vec<u64> {
    eventfds.iter().map(|eventfd| eventfd.read().unwrap_or(0)).collect()
}

#[test]
fn client_triggers_the_vectors_it_chooses() {
    let (mut irqs, eventfds) = assigned(4, MESSAGES);
    set(&mut irqs, NONE | TRIGGER, 1, 2, &[], MESSAGES).unwrap();
    assert_eq!(counts(&eventfds), [0, 1, 1, 0]);
    set(&mut irqs, BOOL | TRIGGER, 0, 4, &[1, 0, 0, 1], MESSAGES).unwrap();
    assert_eq!(counts(&eventfds), [1, 0, 0, 1]);
}

#[test]
fn no_descriptors_deassign_the_vectors() {
    let (mut irqs, eventfds) = assigned(4, MESSAGES);
    set(&mut irqs, EVENTFD | TRIGGER, 1, 2, &[], MESSAGES).unwrap();
    set(&mut irqs, NONE | TRIGGER, 0, 4, &[], MESSAGES).unwrap();
    assert_eq!(counts(&eventfds), [1, 0, 0, 1]);
}

#[test]
fn disabling_forgets_one_index_and_is_never_refused() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    let other = IrqSet { index: 1.into(), ..request(NONE | TRIGGER, 0, 0) };
    irqs.set(&other, &[], ABSENT, &mut Vec::new()).unwrap();
    irqs.line(0);
    assert_eq!(counts(&eventfds), [1]);
    set(&mut irqs, NONE | TRIGGER, 0, 0, &[], LINE).unwrap();
    irqs.line(0);
    assert_eq!(counts(&eventfds), [0]);
    set(&mut irqs, NONE | TRIGGER, 0, 0, &[], LINE).unwrap();
}

#[test]
fn line_is_signalled_once_until_it_is_unmasked() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    irqs.line(0);
    irqs.line(0);
    assert_eq!(counts(&eventfds), [1]);
    set(&mut irqs, BOOL | UNMASK, 0, 1, &[0], LINE).unwrap();
    irqs.line(0);
    assert_eq!(counts(&eventfds), [0]);
    for (flags, data) in [(NONE | UNMASK, &[][..]), (BOOL | UNMASK, &[1])] {
        set(&mut irqs, flags, 0, 1, data, LINE).unwrap();
        assert_eq!(counts(&eventfds), [0], "the device says whether it is still asserted");
        irqs.line(0);
        assert_eq!(counts(&eventfds), [1]);
    }
}

#[test]
fn masked_line_is_silent() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    for (flags, data) in [(NONE | MASK, &[][..]), (BOOL | MASK, &[1])] {
        set(&mut irqs, flags, 0, 1, data, LINE).unwrap();
        irqs.line(0);
        assert_eq!(counts(&eventfds), [0]);
        set(&mut irqs, NONE | UNMASK, 0, 1, &[], LINE).unwrap();
    }
    set(&mut irqs, BOOL | MASK, 0, 1, &[0], LINE).unwrap();
    irqs.line(0);
    assert_eq!(counts(&eventfds), [1]);
}

#[test]
fn line_is_heard_by_an_eventfd_that_comes_later() {
    let mut irqs = Irqs::default();
    irqs.line(0);
    let (trigger, copy) = eventfd();
    irqs.set(&request(EVENTFD | TRIGGER, 0, 1), &[], LINE, &mut vec![copy]).unwrap();
    irqs.line(0);
    assert_eq!(counts(&[trigger]), [1]);
}

#[test]
fn replaced_trigger_of_a_masked_line_stays_silent() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    irqs.line(0);
    let (trigger, copy) = eventfd();
    irqs.set(&request(EVENTFD | TRIGGER, 0, 1), &[], LINE, &mut vec![copy]).unwrap();
    irqs.line(0);
    assert_eq!((counts(&eventfds), counts(&[trigger])), (vec![1], vec![0]));
}

#[test]
fn disabling_takes_the_mask_too() {
    let (mut irqs, _eventfds) = assigned(1, LINE);
    irqs.line(0);
    set(&mut irqs, NONE | TRIGGER, 0, 0, &[], LINE).unwrap();
    let (trigger, copy) = eventfd();
    irqs.set(&request(EVENTFD | TRIGGER, 0, 1), &[], LINE, &mut vec![copy]).unwrap();
    irqs.line(0);
    assert_eq!(counts(&[trigger]), [1]);
}

#[test]
fn messages_go_to_their_vectors_each_once() {
    let (mut irqs, eventfds) = assigned(4, MESSAGES);
    irqs.message(0, 2);
    irqs.message(0, 2);
    irqs.message(0, 3);
    irqs.message(0, 4);
    irqs.message(1, 0);
    assert_eq!(counts(&eventfds), [0, 0, 2, 1]);
}

#[test]
fn message_waits_while_masked_and_is_lost_without_an_eventfd() {
    let maskable = Irq { count: 2, maskable: true, automasked: false };
    let (mut irqs, eventfds) = assigned(1, maskable);
    set(&mut irqs, NONE | MASK, 0, 2, &[], maskable).unwrap();
    irqs.message(0, 0);
    irqs.message(0, 0);
    irqs.message(0, 1);
    assert_eq!(counts(&eventfds), [0]);
    let (late, copy) = eventfd();
    irqs.set(&request(EVENTFD | TRIGGER, 1, 1), &[], maskable, &mut vec![copy]).unwrap();
    set(&mut irqs, NONE | UNMASK, 0, 2, &[], maskable).unwrap();
    assert_eq!((counts(&eventfds), counts(&[late])), (vec![1], vec![0]));
    set(&mut irqs, NONE | UNMASK, 0, 2, &[], maskable).unwrap();
    assert_eq!(counts(&eventfds), [0], "delivered once");
}

#[test]
fn client_tests_its_eventfd_without_regard_to_the_mask() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    set(&mut irqs, NONE | MASK, 0, 1, &[], LINE).unwrap();
    set(&mut irqs, NONE | TRIGGER, 0, 1, &[], LINE).unwrap();
    assert_eq!(counts(&eventfds), [1]);
    set(&mut irqs, NONE | UNMASK, 0, 1, &[], LINE).unwrap();
    set(&mut irqs, NONE | TRIGGER, 0, 1, &[], LINE).unwrap();
    irqs.line(0);
    assert_eq!(counts(&eventfds), [2], "the test has not masked it");
}

/// A line that is asserted, signalled, and unmasked by an eventfd.
fn resampled() -> (Irqs, Vec<ClientEventFd>, ClientEventFd) {
    let (mut irqs, eventfds) = assigned(1, LINE);
    let (unmask, copy) = eventfd();
    irqs.set(&request(EVENTFD | UNMASK, 0, 1), &[], LINE, &mut vec![copy]).unwrap();
    irqs.line(0);
    assert_eq!(counts(&eventfds), [1]);
    (irqs, eventfds, unmask)
}

/// Whether there is something to take.
fn is_due(irqs: &Irqs) -> bool {
    let mut events = [PollFd::new(irqs.unmask_events().unwrap(), PollFlags::POLLIN)];
    poll(&mut events, PollTimeout::ZERO).unwrap() > 0
}

#[test]
fn each_signal_of_the_unmask_eventfd_unmasks_once() {
    let (mut irqs, eventfds, unmask) = resampled();
    for _ in 0..3 {
        assert!(!is_due(&irqs));
        irqs.take_unmasks();
        irqs.line(0);
        assert_eq!(counts(&eventfds), [0]);
        unmask.write(1).unwrap();
        assert!(is_due(&irqs));
        irqs.take_unmasks();
        irqs.line(0);
        assert_eq!(counts(&eventfds), [1]);
    }
}

#[test]
fn unmask_eventfd_that_was_signalled_before_counts() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    irqs.line(0);
    let (unmask, copy) = eventfd();
    unmask.write(1).unwrap();
    irqs.set(&request(EVENTFD | UNMASK, 0, 1), &[], LINE, &mut vec![copy]).unwrap();
    irqs.take_unmasks();
    irqs.line(0);
    assert_eq!(counts(&eventfds), [2]);
}

#[test]
fn unmask_eventfd_that_was_taken_away_replaced_or_disabled_is_deaf() {
    for end in [
        |irqs: &mut Irqs| set(irqs, EVENTFD | UNMASK, 0, 1, &[], LINE),
        |irqs: &mut Irqs| {
            let mut other = vec![eventfd().1];
            irqs.set(&request(EVENTFD | UNMASK, 0, 1), &[], LINE, &mut other).map_err(|refusal| refusal.errno)
        },
        |irqs: &mut Irqs| set(irqs, NONE | TRIGGER, 0, 0, &[], LINE),
    ] {
        let (mut irqs, _eventfds, unmask) = resampled();
        end(&mut irqs).unwrap();
        unmask.write(1).unwrap();
        assert!(!is_due(&irqs));
    }
}

#[test]
fn many_unmask_eventfds_are_taken_in_turns() {
    let many = Irq { count: 40, maskable: true, automasked: false };
    let (mut irqs, eventfds) = assigned(40, many);
    let (unmasks, mut copies): (Vec<_>, Vec<_>) = (0..40).map(|_| eventfd()).unzip();
    irqs.set(&request(EVENTFD | UNMASK, 0, 40), &[], many, &mut copies).unwrap();
    set(&mut irqs, NONE | MASK, 0, 40, &[], many).unwrap();
    for (vector, unmask) in (0..).zip(&unmasks) {
        irqs.message(0, vector);
        unmask.write(1).unwrap();
    }
    while is_due(&irqs) {
        irqs.take_unmasks();
    }
    assert_eq!(counts(&eventfds), [1; 40]);
}

#[test]
fn refused_unmask_eventfds_leave_the_old_ones() {
    let (mut irqs, _eventfds, unmask) = resampled();
    let mut wrong = vec![std::fs::File::open("/dev/null").unwrap().into()];
    let result = irqs.set(&request(EVENTFD | UNMASK, 0, 1), &[], LINE, &mut wrong);
    assert_eq!(result.unwrap_err().errno, Errno::EINVAL);
    unmask.write(1).unwrap();
    assert!(is_due(&irqs));
}

#[test]
fn masking_is_refused_where_it_was_not_offered() {
    let mut irqs = Irqs::default();
    for action in [MASK, UNMASK] {
        assert_eq!(set(&mut irqs, NONE | action, 0, 1, &[], MESSAGES), Err(Errno::EINVAL));
    }
    assert_eq!(set(&mut irqs, EVENTFD | MASK, 0, 1, &[], LINE), Err(Errno::EOPNOTSUPP));
    let result = irqs.set(&request(EVENTFD | MASK, 0, 1), &[], LINE, &mut vec![eventfd().1]);
    assert_eq!(result.unwrap_err().errno, Errno::EOPNOTSUPP);
}

#[test]
fn exactly_one_data_and_one_action_flag_are_wanted() {
    let mut irqs = Irqs::default();
    let valid = [NONE, BOOL, EVENTFD];
    for flags in 0..0x80 {
        let (data, action) = (flags & 7, flags & 0x38);
        let good = valid.contains(&data) && [MASK, UNMASK, TRIGGER].contains(&action) && flags < 0x40;
        let booleans: &[u8] = if data == BOOL { &[0] } else { &[] };
        let result = set(&mut irqs, flags, 0, 1, booleans, LINE);
        if !good {
            assert_eq!(result, Err(Errno::EINVAL), "{flags:#x}");
        } else if flags != EVENTFD | MASK {
            assert_eq!(result, Ok(()), "{flags:#x}");
        }
    }
}

#[test]
fn vectors_outside_the_interrupt_are_refused() {
    let mut irqs = Irqs::default();
    for (start, count) in [(0, 5), (4, 1), (3, 2), (5, 0), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX)] {
        assert_eq!(set(&mut irqs, NONE | TRIGGER, start, count, &[], LINE), Err(Errno::EINVAL), "{start}+{count}");
    }
    assert_eq!(set(&mut irqs, NONE | TRIGGER, 0, 1, &[], ABSENT), Err(Errno::EINVAL));
}

#[test]
fn zero_vectors_only_disable() {
    let mut irqs = Irqs::default();
    for (flags, start) in [
        (NONE | MASK, 0),
        (NONE | UNMASK, 0),
        (NONE | TRIGGER, 1),
        (BOOL | TRIGGER, 0),
        (EVENTFD | TRIGGER, 0),
        (TRIGGER, 0),
    ] {
        assert_eq!(set(&mut irqs, flags, start, 0, &[], LINE), Err(Errno::EINVAL), "{flags:#x} {start}");
    }
}

#[test]
fn data_has_the_size_of_its_kind() {
    let mut irqs = Irqs::default();
    for (flags, data) in [
        (BOOL | TRIGGER, &[][..]),
        (BOOL | TRIGGER, &[1]),
        (BOOL | TRIGGER, &[1, 1, 1]),
        (NONE | TRIGGER, &[1, 1]),
        (EVENTFD | TRIGGER, &[0; 8]),
    ] {
        assert_eq!(set(&mut irqs, flags, 0, 2, data, LINE), Err(Errno::EINVAL), "{flags:#x} {data:?}");
    }
}

#[test]
fn descriptors_are_one_for_each_vector_or_none_and_only_with_their_kind() {
    let mut irqs = Irqs::default();
    for (flags, data, descriptors) in [
        (EVENTFD | TRIGGER, &[][..], 1),
        (EVENTFD | TRIGGER, &[], 3),
        (NONE | TRIGGER, &[], 1),
        (BOOL | TRIGGER, &[0, 0], 2),
    ] {
        let mut descriptors: Vec<OwnedFd> = (0..descriptors).map(|_| eventfd().1).collect();
        let result = irqs.set(&request(flags, 0, 2), data, LINE, &mut descriptors);
        assert_eq!(result.unwrap_err().errno, Errno::EINVAL, "{flags:#x}");
    }
    assert!(irqs.vectors.is_empty());
}

#[test]
fn what_is_no_eventfd_is_refused_left_and_changes_nothing() {
    let (mut irqs, eventfds) = assigned(2, MESSAGES);
    let (_kept, given) = UnixStream::pair().unwrap();
    // An anonymous inode as well, which could wait for whatever it contains.
    let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap().0;
    let file = std::fs::File::open("/dev/null").unwrap();
    let (_reader, pipe) = nix::unistd::pipe().unwrap();
    for wrong in [given.into(), file.into(), pipe, tempfile::tempfile().unwrap().into(), epoll] {
        let mut descriptors = vec![eventfd().1, wrong];
        let result = irqs.set(&request(EVENTFD | TRIGGER, 0, 2), &[], MESSAGES, &mut descriptors);
        assert_eq!(result.unwrap_err().errno, Errno::EINVAL);
        assert_eq!(descriptors.len(), 2);
    }
    set(&mut irqs, NONE | TRIGGER, 0, 2, &[], MESSAGES).unwrap();
    assert_eq!(counts(&eventfds), [1, 1]);
}

#[test]
fn full_blocking_eventfd_does_not_block() {
    let full = ClientEventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let mut irqs = Irqs::default();
    let mut given = vec![dup(full.as_fd()).unwrap()];
    irqs.set(&request(EVENTFD | TRIGGER, 0, 1), &[], LINE, &mut given).unwrap();
    irqs.message(0, 0);
    // The client takes O_NONBLOCK back.
    fcntl(full.as_fd(), FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
    irqs.message(0, 0);
    assert_eq!(full.read().unwrap(), u64::MAX - 1);
}

/// A device with one line.
struct Wire(bool);

impl Device for Wire {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5 }
    }

    fn region(&self, _: u32) -> Region {
        Region::NONE
    }

    fn irq(&self, _: u32) -> Irq {
        LINE
    }

    fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Answer {
        Answer::Now
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Answer {
        Answer::Now
    }

    fn resume(&mut self, _: Ticket, _: &mut [u8], _: bool) -> Answer {
        Answer::Now
    }

    fn reset(&mut self) {}

    fn interrupts(&mut self, interrupts: &mut dyn Interrupts) {
        if self.0 {
            interrupts.line(0);
        }
    }
}

#[test]
fn a_signal_that_nobody_has_heard_is_taken_back_and_the_line_can_be_raised_again() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    for _ in 0..3 {
        irqs.update(&mut Wire(true));
        irqs.update(&mut Wire(false));
        assert_eq!(counts(&eventfds), [0]);
    }
    irqs.update(&mut Wire(true));
    assert_eq!(counts(&eventfds), [1], "without an unmask: nothing was heard");
}

#[test]
fn a_signal_that_was_heard_keeps_the_line_masked() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    irqs.update(&mut Wire(true));
    assert_eq!(counts(&eventfds), [1]);
    irqs.update(&mut Wire(false));
    irqs.update(&mut Wire(true));
    assert_eq!(counts(&eventfds), [0], "masked until the client has dealt with it");
    set(&mut irqs, NONE | UNMASK, 0, 1, &[], LINE).unwrap();
    irqs.update(&mut Wire(true));
    assert_eq!(counts(&eventfds), [1]);
}

#[test]
fn what_others_have_signalled_is_not_taken_back() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    eventfds[0].write(5).unwrap();
    irqs.update(&mut Wire(false));
    assert_eq!(counts(&eventfds), [5], "no signal of ours was in it");
    set(&mut irqs, NONE | MASK, 0, 1, &[], LINE).unwrap();
    eventfds[0].write(5).unwrap();
    irqs.update(&mut Wire(true));
    irqs.update(&mut Wire(false));
    assert_eq!(counts(&eventfds), [5], "masked");
}

/// The client takes `O_NONBLOCK` back; a read of an empty eventfd would wait.
#[test]
fn an_eventfd_that_blocks_is_not_waited_for() {
    let (mut irqs, eventfds) = assigned(1, LINE);
    irqs.update(&mut Wire(true));
    assert_eq!(counts(&eventfds), [1]);
    fcntl(&eventfds[0], FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    irqs.update(&mut Wire(false));
    irqs.update(&mut Wire(true));
    fcntl(&eventfds[0], FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    assert_eq!(counts(&eventfds), [0]);
}
