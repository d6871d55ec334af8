//! Interrupts over a real socket: what may be set up, and that the client hears what the device raises.
//!
//! Covers, of the areas of libvfio-user's Python tests: `test_device_set_irqs` (validation of size, argsz, index, flags,
//! range, actions, descriptors and booleans; disable, enable, update, trigger by call), `test_device_get_irq_info`,
//! `test_irq_trigger`. Other than there: a wrong number of descriptors is any but one for each vector or none; masks are
//! kept by the server and not handed to the device; disabling an index that the device does not have is no error.

mod common;

use std::os::fd::{AsFd, AsRawFd, RawFd};

use common::ToyServer;
use common::raw_client::*;
use common::toy::{INTX, MSI, MSIX, RAM};
use nix::libc::{EINVAL, EOPNOTSUPP};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

const NONE: u32 = 0x1;
const BOOL: u32 = 0x2;
const EVENTFD: u32 = 0x4;
const MASK: u32 = 0x8;
const UNMASK: u32 = 0x10;
const TRIGGER: u32 = 0x20;
/// Errors, and the request to give the device back: one vector each.
const ERR: u32 = 3;
const REQ: u32 = 4;

fn eventfd(initial: u32) -> EventFd {
    EventFd::from_value_and_flags(initial, EfdFlags::EFD_NONBLOCK).unwrap()
}

fn count(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

/// Waits for a signal; returns how many have come.
fn wait(eventfd: &EventFd) -> u64 {
    let mut state = [PollFd::new(eventfd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut state, PollTimeout::from(60_000_u16)).unwrap(), 1, "no signal came");
    eventfd.read().unwrap()
}

fn set(client: &mut RawClient, flags: u32, index: u32, start: u32, count: u32) -> i32 {
    client.request(SET_IRQS, &irq_set(flags, index, start, count, &[])).errno()
}

fn set_bools(client: &mut RawClient, flags: u32, index: u32, bools: &[u8]) {
    let count = bools.len().try_into().unwrap();
    assert!(client.request(SET_IRQS, &irq_set(BOOL | flags, index, 0, count, bools)).ok().is_empty());
}

/// Gives eventfds to vectors from `start` on.
fn assign(client: &mut RawClient, action: u32, index: u32, start: u32, eventfds: &[EventFd]) {
    let descriptors: Vec<RawFd> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
    let body = irq_set(EVENTFD | action, index, start, eventfds.len().try_into().unwrap(), &[]);
    assert!(client.request_with(SET_IRQS, &body, &descriptors).ok().is_empty());
}

#[test]
fn infos_tell_count_and_kind() {
    let server = ToyServer::start();
    let mut client = server.client();
    for (index, flags, count) in [(INTX, 7, 1), (MSI, 1, 4), (MSIX, 1, 2048), (ERR, 1, 1), (REQ, 1, 1)] {
        let larger = words(&[32, 0, index, 0]);
        assert_eq!(client.request(GET_IRQ_INFO, &larger).ok(), words(&[16, flags, index, count]));
    }
    assert_eq!(client.request(GET_IRQ_INFO, &words(&[8, 0, REQ, 0])).errno(), EINVAL);
    assert_eq!(client.request(GET_IRQ_INFO, &irq_info(5)).errno(), EINVAL);
    assert_eq!(client.request(GET_IRQ_INFO, &words(&[0, 0])).errno(), EINVAL);
    server.stop();
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let server = ToyServer::start();
    let mut client = server.client();
    assert_eq!(client.request(SET_IRQS, &[]).errno(), EINVAL);
    assert_eq!(client.request(SET_IRQS, &words(&[0, 0])).errno(), EINVAL);
    for argsz in [0, 3, 19, 21] {
        assert_eq!(client.request(SET_IRQS, &words(&[argsz, NONE | TRIGGER, REQ, 0, 0])).errno(), EINVAL);
    }
    for (flags, index, start, count) in [
        // No such index.
        (NONE | TRIGGER, 5, 0, 0),
        (NONE | TRIGGER, u32::MAX, 0, 0),
        // Not exactly one action and one kind of data.
        (MASK | UNMASK, MSIX, 0, 0),
        (NONE | MASK | UNMASK, INTX, 0, 1),
        (NONE | BOOL | MASK, MSIX, 0, 0),
        (NONE | EVENTFD | TRIGGER, MSIX, 0, 1),
        (NONE, INTX, 0, 1),
        (TRIGGER, INTX, 0, 1),
        (0, INTX, 0, 1),
        (NONE | TRIGGER | 0x40, INTX, 0, 1),
        // Vectors that are not there.
        (NONE | TRIGGER, MSIX, 2047, 2),
        (NONE | TRIGGER, MSIX, 2049, 1),
        (NONE | TRIGGER, MSIX, 2048, 1),
        (NONE | TRIGGER, MSIX, 1, u32::MAX),
        (NONE | TRIGGER, ERR, 0, 2),
        (NONE | TRIGGER, REQ, 0, 2),
        (EVENTFD | TRIGGER, INTX, 1, 1),
        // Actions that the index does not know.
        (NONE | MASK, ERR, 0, 1),
        (NONE | UNMASK, REQ, 0, 1),
        (NONE | MASK, MSI, 0, 1),
        (EVENTFD | UNMASK, MSI, 0, 1),
        // No vectors, and not the one form that disables.
        (NONE | MASK, INTX, 0, 0),
        (NONE | TRIGGER, MSIX, 1, 0),
        (BOOL | TRIGGER, MSIX, 0, 0),
        (EVENTFD | TRIGGER, MSIX, 0, 0),
    ] {
        assert_eq!(set(&mut client, flags, index, start, count), EINVAL, "{flags:#x} {index} {start}+{count}");
    }
    assert_eq!(set(&mut client, EVENTFD | MASK, INTX, 0, 1), EOPNOTSUPP);
    for bools in [&[][..], &[1], &[1, 1, 1]] {
        assert_eq!(client.request(SET_IRQS, &irq_set(BOOL | TRIGGER, MSI, 0, 2, bools)).errno(), EINVAL);
    }
    assert_eq!(client.request(SET_IRQS, &irq_set(NONE | TRIGGER, MSI, 0, 1, &[1])).errno(), EINVAL);
    client.assert_in_step();
    server.stop();
}

#[test]
fn descriptors_have_to_be_as_many_as_vectors() {
    let server = ToyServer::start();
    let mut client = server.client();
    let eventfd = eventfd(0);
    for (flags, count, bools, descriptors) in [
        (NONE | TRIGGER, 1, &[][..], 1),
        (BOOL | TRIGGER, 1, &[0], 1),
        (EVENTFD | TRIGGER, 2, &[], 1),
        (EVENTFD | TRIGGER, 2, &[], 3),
        (EVENTFD | TRIGGER, 17, &[], 17),
    ] {
        let body = irq_set(flags, MSIX, 0, count, bools);
        let reply = client.request_with(SET_IRQS, &body, &vec![eventfd.as_raw_fd(); descriptors]);
        assert_eq!(reply.errno(), EINVAL, "{flags:#x} {count} {descriptors}");
    }
    set(&mut client, NONE | TRIGGER, MSIX, 0, 17);
    assert_eq!(count(&eventfd), 0, "none was taken");
    server.stop();
}

#[test]
fn disabled_index_can_be_disabled_and_set_up_again() {
    let server = ToyServer::start();
    let mut client = server.client();
    for index in [INTX, MSI, MSIX, ERR, REQ] {
        assert_eq!(set(&mut client, NONE | TRIGGER, index, 0, 0), 0);
        assert_eq!(set(&mut client, EVENTFD | TRIGGER, index, 0, 1), 0, "nothing to deassign");
        let eventfd = eventfd(0);
        for _ in 0..2 {
            assign(&mut client, TRIGGER, index, 0, std::slice::from_ref(&eventfd));
        }
        assert_eq!(set(&mut client, NONE | TRIGGER, index, 0, 1), 0);
        assert_eq!(count(&eventfd), 1);
        assert_eq!(set(&mut client, NONE | TRIGGER, index, 0, 0), 0);
        assert_eq!(set(&mut client, NONE | TRIGGER, index, 0, 1), 0);
        assert_eq!(count(&eventfd), 0);
    }
    server.stop();
}

#[test]
fn client_triggers_vectors_by_call() {
    let server = ToyServer::start();
    let mut client = server.client();
    let eventfds = [eventfd(4), eventfd(8)];
    assign(&mut client, TRIGGER, MSIX, 0, &eventfds);
    set(&mut client, NONE | TRIGGER, MSIX, 1, 1);
    assert_eq!(eventfds.each_ref().map(count), [4, 9]);
    set_bools(&mut client, TRIGGER, MSIX, &[0, 1]);
    assert_eq!(eventfds.each_ref().map(count), [0, 1]);
    client.send(SET_IRQS, NO_REPLY, &irq_set(NONE | TRIGGER, MSIX, 0, 1, &[]), &[]);
    client.assert_in_step();
    assert_eq!(eventfds.each_ref().map(count), [1, 0]);
    server.stop();
}

#[test]
fn messages_of_the_device_reach_their_vectors() {
    let server = ToyServer::start();
    let mut client = server.client();
    let eventfds: Vec<EventFd> = (0..4).map(|_| eventfd(4)).collect();
    assign(&mut client, TRIGGER, MSI, 0, &eventfds);
    let last = eventfd(0);
    assign(&mut client, TRIGGER, MSIX, 2047, std::slice::from_ref(&last));

    server.control.message(MSIX, 2047);
    assert_eq!(wait(&last), 1, "the client need not ask");
    server.control.message(MSI, 2);
    server.control.message(MSI, 2);
    // What the device does not have, or the client has not set up, goes nowhere.
    server.control.message(MSI, 4);
    server.control.message(MSIX, 0);
    server.control.message(99, 0);
    client.assert_in_step();
    assert_eq!(eventfds.iter().map(count).collect::<Vec<_>>(), [4, 4, 6, 4]);

    assert_eq!(set(&mut client, EVENTFD | TRIGGER, MSI, 1, 2), 0);
    for vector in 0..4 {
        server.control.message(MSI, vector);
    }
    client.assert_in_step();
    assert_eq!(eventfds.iter().map(count).collect::<Vec<_>>(), [1, 0, 0, 1], "two are deassigned");
    server.stop();
}

#[test]
fn message_that_an_access_causes_is_there_before_its_answer() {
    let server = ToyServer::start();
    let mut client = server.client();
    let eventfd = eventfd(0);
    assign(&mut client, TRIGGER, MSI, 0, std::slice::from_ref(&eventfd));
    for _ in 0..100 {
        server.control.state().messages.push((MSI, 0));
        client.region_read(RAM, 0, 1);
        assert_eq!(count(&eventfd), 1);
    }
    server.stop();
}

/// As QEMU does without KVM: a signal, an unmask by call at the next access.
#[test]
fn asserted_line_is_signalled_again_after_each_unmask_by_call() {
    let server = ToyServer::start();
    let mut client = server.client();
    let trigger = eventfd(0);
    assign(&mut client, TRIGGER, INTX, 0, std::slice::from_ref(&trigger));
    server.control.line(true);
    assert_eq!(wait(&trigger), 1);
    client.region_read(RAM, 0, 4);
    assert_eq!(count(&trigger), 0, "masked when it fired");

    assert_eq!(set(&mut client, NONE | UNMASK, INTX, 0, 1), 0);
    assert_eq!(count(&trigger), 1);
    set_bools(&mut client, UNMASK, INTX, &[0]);
    assert_eq!(count(&trigger), 0);
    set_bools(&mut client, UNMASK, INTX, &[1]);
    assert_eq!(count(&trigger), 1);

    server.control.line(false);
    assert_eq!(set(&mut client, NONE | UNMASK, INTX, 0, 1), 0);
    assert_eq!(count(&trigger), 0);
    server.control.line(true);
    assert_eq!(wait(&trigger), 1);
    server.stop();
}

/// As QEMU does with KVM: mask, an eventfd that unmasks (KVM signals it at the end of the interrupt), unmask.
#[test]
fn asserted_line_is_signalled_again_after_each_unmask_by_eventfd() {
    let server = ToyServer::start();
    let mut client = server.client();
    let (trigger, unmask) = (eventfd(0), eventfd(0));
    assign(&mut client, TRIGGER, INTX, 0, std::slice::from_ref(&trigger));
    assert_eq!(set(&mut client, NONE | MASK, INTX, 0, 1), 0);
    server.control.line(true);
    client.assert_in_step();
    assert_eq!(count(&trigger), 0, "masked");
    assign(&mut client, UNMASK, INTX, 0, std::slice::from_ref(&unmask));
    assert_eq!(set(&mut client, NONE | UNMASK, INTX, 0, 1), 0);
    assert_eq!(wait(&trigger), 1);

    for _ in 0..100 {
        unmask.write(1).unwrap();
        assert_eq!(wait(&trigger), 1);
    }
    server.control.line(false);
    unmask.write(1).unwrap();
    // Raised again after that: whichever the server has seen first, it is signalled once.
    server.control.line(true);
    assert_eq!(wait(&trigger), 1);

    // Deassigned, it says nothing more; the call still works.
    assert_eq!(set(&mut client, EVENTFD | UNMASK, INTX, 0, 1), 0);
    unmask.write(1).unwrap();
    client.assert_in_step();
    assert_eq!(count(&trigger), 0);
    assert_eq!(set(&mut client, NONE | UNMASK, INTX, 0, 1), 0);
    assert_eq!(count(&trigger), 1);
    server.stop();
}

#[test]
fn line_that_was_asserted_before_is_heard_when_it_is_set_up() {
    let server = ToyServer::start();
    server.control.line(true);
    for _ in 0..3 {
        let mut client = server.client();
        let trigger = eventfd(0);
        assign(&mut client, TRIGGER, INTX, 0, std::slice::from_ref(&trigger));
        assert_eq!(count(&trigger), 1);
        assert_eq!(set(&mut client, NONE | TRIGGER, INTX, 0, 0), 0);
        assign(&mut client, TRIGGER, INTX, 0, std::slice::from_ref(&trigger));
        assert_eq!(count(&trigger), 1, "disabling has taken the mask");
    }
    server.stop();
}

/// As with QEMU without KVM, whose main loop hears of a signal later than its processors write.
#[test]
fn a_line_that_falls_before_it_is_heard_was_never_raised() {
    let server = ToyServer::start();
    let mut client = server.client();
    let trigger = eventfd(0);
    assign(&mut client, TRIGGER, INTX, 0, std::slice::from_ref(&trigger));
    server.control.state().lines = vec![INTX];
    client.assert_in_step();
    server.control.state().lines.clear();
    client.assert_in_step();
    assert_eq!(count(&trigger), 0);
    server.control.line(true);
    assert_eq!(wait(&trigger), 1);
    server.stop();
}

#[test]
fn messages_of_the_time_without_a_client_are_forgotten() {
    let server = ToyServer::start();
    server.control.message(MSI, 0);
    let mut client = server.client();
    let eventfd = eventfd(0);
    assign(&mut client, TRIGGER, MSI, 0, std::slice::from_ref(&eventfd));
    client.assert_in_step();
    assert_eq!(count(&eventfd), 0);
    server.stop();
}

#[test]
fn eventfds_that_are_full_keep_nobody_waiting() {
    let server = ToyServer::start();
    let mut client = server.client();
    let (trigger, unmask) = (eventfd(0), eventfd(0));
    trigger.write(u64::MAX - 1).unwrap();
    unmask.write(u64::MAX - 1).unwrap();
    assign(&mut client, TRIGGER, INTX, 0, std::slice::from_ref(&trigger));
    assign(&mut client, UNMASK, INTX, 0, std::slice::from_ref(&unmask));
    server.control.line(true);
    client.assert_in_step();
    assert_eq!(count(&trigger), u64::MAX - 1);
    assert_eq!(set(&mut client, NONE | UNMASK, INTX, 0, 1), 0);
    assert_eq!(wait(&trigger), 1);
    server.stop();
}
