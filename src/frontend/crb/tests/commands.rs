use std::cell::Cell;

use super::*;
use crate::frontend::Memory;
use crate::tpm::{BUFFER_SIZE, Fault, TpmVersion, fault_response};

fn fault(fault: Fault) -> [u8; 10] {
    fault_response(TpmVersion::V2_0, fault)
}

/// A command of which only the header is true: its size field says `size`.
fn header(size: u32) -> [u8; 10] {
    Header { tag: 0x8001, size, code: 0x17b }.to_bytes()
}

/// CTRL_REQ, CTRL_STS and CTRL_START as locality 0 reads them.
fn control(guest: &Guest) -> [u32; 3] {
    [CTRL_REQ, CTRL_STS, CTRL_START].map(|register| guest.read32(0, register))
}

#[test]
fn each_state_shows_in_the_control_registers() {
    let mut guest = Guest::owning(0);
    assert_eq!(control(&guest), [0, IDLE, 0], "idle");
    guest.write32(0, CTRL_REQ, CMD_READY);
    assert_eq!(control(&guest), [0, 0, 0], "ready");
    guest.start(0, &message(12));
    assert_eq!(control(&guest), [0, 0, 1], "execution");
    guest.crb.complete(&message(10));
    assert_eq!(control(&guest), [0, 0, 0], "completion");
    guest.write32(0, CTRL_REQ, GO_IDLE);
    assert_eq!(control(&guest), [0, IDLE, 0], "idle again");
}

#[test]
fn an_idle_tpm_takes_no_command() {
    let mut guest = Guest::owning(0);
    assert_eq!(guest.start(0, &message(10)), None);
    assert_eq!(control(&guest), [0, IDLE, 0]);
    guest.write32(0, CTRL_REQ, CMD_READY);
    guest.write32(0, CTRL_REQ, GO_IDLE);
    assert_eq!(guest.start(0, &message(10)), None);
}

#[test]
fn ready_and_idle_can_be_asked_for_again_and_again() {
    let mut guest = Guest::ready(0);
    guest.write32(0, CTRL_REQ, CMD_READY);
    assert_eq!(control(&guest), [0, 0, 0]);
    guest.write32(0, CTRL_REQ, GO_IDLE);
    guest.write32(0, CTRL_REQ, GO_IDLE);
    assert_eq!(control(&guest), [0, IDLE, 0]);
}

#[test]
fn the_command_runs_at_the_locality_that_started_it() {
    let mut guest = Guest::ready(3);
    assert_eq!(guest.start(3, &message(12)), Some(Effect::Execute(locality(3))));
    assert_eq!(guest.crb.command(), message(12));
    assert!(guest.crb.is_busy());
}

#[test]
fn a_command_is_as_long_as_its_size_field_says() {
    for size in [10, 11, 4095, 4096] {
        let mut guest = Guest::ready(0);
        guest.put(&[0xee; BUFFER_SIZE]);
        guest.start(0, &message(size));
        assert_eq!(guest.crb.command(), message(size));
    }
}

#[test]
fn a_size_that_fits_no_buffer_is_answered_at_once() {
    for size in [0, 9, 4097, 0x8000_0000, u32::MAX] {
        let mut guest = Guest::ready(0);
        assert_eq!(guest.start(0, &header(size)), None);
        assert_eq!(control(&guest), [0, 0, 0], "completion");
        assert_eq!(guest.buffer(10), fault(Fault::CommandSize));
        assert!(!guest.crb.is_busy());
        assert!(guest.crb.command().is_empty());
        assert_eq!(guest.start(0, &message(12)), Some(Effect::Execute(Locality::ZERO)), "the next one runs");
    }
}

#[test]
fn what_the_guest_writes_after_start_changes_nothing() {
    let mut guest = Guest::executing(0, &message(12));
    guest.put(&header(4096));
    assert_eq!(guest.crb.command(), message(12));
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(20), message(20));
}

/// A memory in which the size field grows with every look at it.
#[derive(Clone, Debug)]
struct Growing(Cell<u32>);

impl Memory for Growing {
    fn read(&self, _: u32, data: &mut [u8]) {
        let size = self.0.replace(4096);
        for (to, from) in data.iter_mut().zip(message(size)) {
            *to = from;
        }
    }

    fn write(&mut self, _: u32, _: &[u8]) {}
}

#[test]
fn a_size_that_grows_after_start_is_not_seen() {
    let mut crb = Crb::new(config(), Growing(Cell::new(12)));
    for (register, value) in [(LOC_CTRL, 1), (CTRL_REQ, 1)] {
        assert_eq!(crb.write(register, &[value]), None);
    }
    assert_eq!(crb.write(CTRL_START, &[1]), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(crb.command(), message(12));
}

#[test]
fn a_command_is_read_in_one() {
    let mut guest = Guest::ready(0);
    guest.crb.memory_mut().take_reads();
    guest.start(0, &message(12));
    assert_eq!(guest.crb.memory_mut().take_reads(), [(COMMAND_BUFFER.offset, BUFFER_SIZE)]);
    guest.crb.complete(&message(20));
    assert_eq!(guest.crb.memory_mut().take_reads(), [], "nothing of it is looked at again");
}

#[test]
fn a_running_command_is_neither_started_again_nor_stopped_by_requests() {
    let mut guest = Guest::executing(0, &message(12));
    assert_eq!(guest.write32(0, CTRL_START, 1), None);
    for bit in [CMD_READY, GO_IDLE] {
        assert_eq!(guest.write32(0, CTRL_REQ, bit), None);
        assert_eq!(control(&guest), [0, 0, 1]);
    }
    guest.crb.complete(&message(10));
    assert_eq!(control(&guest), [0, 0, 0]);
}

#[test]
fn start_can_be_written_one_only() {
    let mut guest = Guest::ready(0);
    guest.put(&message(12));
    for value in [0, 2, 0xffff_fffe] {
        assert_eq!(guest.write32(0, CTRL_START, value), None);
    }
    assert_eq!(guest.write32(0, CTRL_START, u32::MAX), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(guest.write32(0, CTRL_START, 0), None);
    assert_eq!(guest.read32(0, CTRL_START), 1);
}

#[test]
fn several_request_bits_at_once_are_ignored() {
    let mut guest = Guest::owning(0);
    guest.write32(0, CTRL_REQ, CMD_READY | GO_IDLE);
    assert_eq!(control(&guest), [0, IDLE, 0]);
    guest.write32(0, CTRL_REQ, 0xffff_fffc | CMD_READY);
    assert_eq!(control(&guest), [0, 0, 0], "bits that mean nothing are none");
}

#[test]
fn cancel_reads_back_and_acts_only_on_a_running_command() {
    let mut guest = Guest::ready(0);
    assert_eq!(guest.write32(0, CTRL_CANCEL, 1), None);
    assert_eq!(guest.read32(0, CTRL_CANCEL), 1);
    assert_eq!(guest.start(0, &message(12)), Some(Effect::Execute(Locality::ZERO)), "an old cancellation is none");
    assert_eq!(guest.write32(0, CTRL_CANCEL, 0), None);
    assert_eq!(guest.read32(0, CTRL_CANCEL), 0);
    assert_eq!(guest.write32(0, CTRL_CANCEL, 1), Some(Effect::Cancel));
    assert_eq!(guest.write(0, CTRL_CANCEL + 1, &[1, 1, 1]), None, "beside it");
    assert_eq!(guest.read32(0, CTRL_CANCEL), 1);
    guest.crb.complete(&fault(Fault::Canceled));
    assert_eq!(guest.buffer(10), fault(Fault::Canceled));
    assert_eq!(guest.write32(0, CTRL_CANCEL, 1), None);
}

#[test]
fn a_command_started_after_a_cancellation_is_asked_for_again() {
    for cancelled_too in [false, true] {
        let mut guest = Guest::executing(0, &message(12));
        guest.write32(0, CTRL_CANCEL, 1);
        guest.write32(0, CTRL_CANCEL, 0);
        assert_eq!(guest.start(0, &message(14)), None, "the TPM is not free");
        assert_eq!(control(&guest), [0, 0, 1]);
        assert_eq!(guest.crb.command(), message(12));
        if cancelled_too {
            assert_eq!(guest.write32(0, CTRL_CANCEL, 1), Some(Effect::Cancel));
        }
        guest.crb.complete(&message(20));
        assert_eq!(guest.buffer(14), [&fault(Fault::Retry)[..], &message(14)[10..]].concat());
        assert_eq!(control(&guest), [0, 0, 0]);
        assert_eq!(guest.start(0, &message(14)), Some(Effect::Execute(Locality::ZERO)));
        guest.crb.complete(&message(20));
        assert_eq!(guest.buffer(20), message(20), "an old cancellation is none");
    }
}

#[test]
fn a_second_start_without_a_cancellation_before_is_none() {
    let mut guest = Guest::ready(0);
    guest.write32(0, CTRL_CANCEL, 1);
    guest.start(0, &message(12));
    assert_eq!(guest.write32(0, CTRL_START, 1), None);
    assert_eq!(guest.write32(0, CTRL_CANCEL, 1), Some(Effect::Cancel));
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(20), message(20));
}

#[test]
fn a_superseded_command_is_forgotten_with_its_locality() {
    let mut guest = Guest::executing(0, &message(12));
    guest.write32(0, CTRL_CANCEL, 1);
    guest.write32(0, CTRL_START, 1);
    assert_eq!(guest.write32(1, LOC_CTRL, SEIZE), Some(Effect::Cancel));
    guest.write32(1, CTRL_REQ, CMD_READY);
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(12), message(12), "nobody is answered");
    assert_eq!(guest.start(1, &message(14)), Some(Effect::Execute(locality(1))));
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(20), message(20));
}

#[test]
fn the_response_is_in_the_buffer_and_the_rest_of_the_buffer_as_it_was() {
    let mut guest = Guest::executing(0, &message(40));
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(40), [&message(20)[..], &message(40)[20..]].concat());
    assert!(guest.crb.command().is_empty());
}

#[test]
fn a_response_that_is_not_whole_becomes_a_failure() {
    for response in [&[][..], &message(20)[..19], &message(9), &message(5000)] {
        let mut guest = Guest::executing(0, &message(12));
        guest.crb.complete(response);
        assert_eq!(guest.buffer(10), fault(Fault::Failure));
        assert_eq!(control(&guest), [0, 0, 0]);
    }
}

#[test]
fn a_response_without_a_command_is_ignored() {
    for mut guest in [Guest::owning(0), Guest::ready(0)] {
        let before = control(&guest);
        guest.crb.complete(&message(20));
        assert_eq!(control(&guest), before);
        assert_eq!(guest.buffer(20), [0; 20]);
    }
}

#[test]
fn reset_forgets_the_command_and_clears_the_buffer() {
    let mut guest = Guest::executing(2, &message(12));
    guest.crb.reset();
    assert!(!guest.crb.is_busy());
    assert!(guest.crb.command().is_empty());
    assert_eq!(guest.buffer(BUFFER_SIZE), [0; BUFFER_SIZE]);
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(20), [0; 20]);
    assert_eq!(guest.read32(2, CTRL_START), u32::MAX, "nobody has the TPM");
}
