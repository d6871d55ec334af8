//! The CRB with ACPI start. `properties` has what always holds and what an export brings.

mod properties;

use super::{BAR0, config, message};
use crate::bar_map::{COMMAND_BUFFER, CONTROL_AREA, DOORBELL};
use crate::frontend::Effect;
use crate::frontend::crb::CrbDoorbell;
use crate::frontend::memory::pages::Pages;
use crate::tpm::{BUFFER_SIZE, Fault, Locality, TpmVersion, fault_response};

const CANCEL: u32 = CONTROL_AREA.offset + 0x48;
const START: u32 = CONTROL_AREA.offset + 0x4c;

/// The control area after power-on, with BAR0 at this address.
fn area(low_address: u32) -> Vec<u8> {
    let size = 0x1000;
    let words = [0, 0, 0, 0, 0, 0, size, low_address, 0, size, low_address, 0];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

struct Guest {
    crb: CrbDoorbell<Pages>,
}

impl Guest {
    fn new() -> Self {
        let mut crb = CrbDoorbell::new(config(), Pages::new());
        crb.place(BAR0);
        Self { crb }
    }

    /// A TPM that runs `command`.
    fn executing(command: &[u8]) -> Self {
        let mut guest = Self::new();
        assert_eq!(guest.start(command), Some(Effect::Execute(Locality::ZERO)));
        guest
    }

    fn put(&mut self, offset: u32, value: u32) {
        self.crb.memory_mut().put(offset, &value.to_le_bytes());
    }

    fn word(&self, offset: u32) -> u32 {
        self.crb.memory().word(offset)
    }

    fn buffer(&self, len: usize) -> &[u8] {
        self.crb.memory().at(COMMAND_BUFFER.offset, len)
    }

    fn area(&self) -> &[u8] {
        self.crb.memory().at(CONTROL_AREA.offset + 0x40, 0x30)
    }

    /// ACPI's `_DSM`.
    fn ring(&mut self) -> Option<Effect> {
        self.crb.write(DOORBELL.offset.into(), &1_u32.to_le_bytes())
    }

    /// Linux's `crb_send`.
    fn start(&mut self, command: &[u8]) -> Option<Effect> {
        self.put(CANCEL, 0);
        self.crb.memory_mut().put(COMMAND_BUFFER.offset, command);
        self.put(START, 1);
        self.ring()
    }
}

#[test]
fn linux_commands_and_responses_of_any_size_go_through() {
    let mut guest = Guest::new();
    for size in [10, 11, 500, 4096] {
        assert_eq!(guest.start(&message(size)), Some(Effect::Execute(Locality::ZERO)));
        assert_eq!(guest.crb.command(), message(size));
        assert!(guest.crb.is_busy());
        assert_eq!(guest.word(START), 1);
        guest.crb.complete(&message(4106 - size));
        assert_eq!(guest.word(START), 0);
        assert!(!guest.crb.is_busy());
        let response = message(4106 - size);
        assert_eq!(guest.buffer(response.len()), response);
    }
}

#[test]
fn a_driver_that_only_rings_sees_its_command_run() {
    let mut guest = Guest::new();
    guest.crb.memory_mut().put(COMMAND_BUFFER.offset, &message(12));
    assert_eq!(guest.ring(), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(guest.word(START), 1);
    guest.crb.complete(&message(10));
    assert_eq!(guest.word(START), 0);
}

#[test]
fn a_ring_while_a_command_runs_cancels_it_or_does_nothing() {
    let mut guest = Guest::executing(&message(12));
    assert_eq!(guest.ring(), None);
    guest.put(START, 0);
    assert_eq!(guest.ring(), None, "its START says nothing while a command runs");
    guest.put(CANCEL, 1);
    assert_eq!(guest.ring(), Some(Effect::Cancel));
    assert_eq!(guest.crb.command(), message(12));
    guest.crb.complete(&message(10));
    assert_eq!(guest.word(CANCEL), 1, "crb_req_canceled");
}

#[test]
fn a_command_rung_for_after_a_cancellation_is_asked_for_again() {
    for cancelled_too in [false, true] {
        let mut guest = Guest::executing(&message(12));
        guest.put(CANCEL, 1);
        assert_eq!(guest.ring(), Some(Effect::Cancel));
        assert_eq!(guest.start(&message(14)), None, "the TPM is not free");
        assert_eq!(guest.word(START), 1);
        assert_eq!(guest.crb.command(), message(12));
        if cancelled_too {
            guest.put(CANCEL, 1);
            assert_eq!(guest.ring(), Some(Effect::Cancel));
        }
        guest.crb.memory_mut().take_writes();
        guest.crb.complete(&message(20));
        let retry = fault_response(TpmVersion::V2_0, Fault::Retry).to_vec();
        let expected = [(COMMAND_BUFFER.offset, retry), (START, vec![0; 4])];
        assert_eq!(guest.crb.memory_mut().take_writes(), expected);
        assert_eq!(guest.start(&message(14)), Some(Effect::Execute(Locality::ZERO)));
        guest.crb.complete(&message(20));
        assert_eq!(guest.buffer(20), message(20));
    }
}

#[test]
fn a_second_ring_without_a_cancellation_before_is_none() {
    let mut guest = Guest::executing(&message(12));
    assert_eq!(guest.start(&message(14)), None);
    guest.put(CANCEL, 1);
    assert_eq!(guest.ring(), Some(Effect::Cancel));
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(20), message(20));
}

#[test]
fn a_superseded_command_that_fails_is_retried_too() {
    let mut guest = Guest::executing(&message(12));
    guest.put(CANCEL, 1);
    assert_eq!(guest.ring(), Some(Effect::Cancel));
    assert_eq!(guest.start(&message(14)), None);
    guest.crb.complete(&[]);
    assert_eq!(guest.buffer(10), fault_response(TpmVersion::V2_0, Fault::Retry));
}

#[test]
fn a_cancellation_that_comes_too_late_does_nothing() {
    let mut guest = Guest::executing(&message(12));
    guest.crb.complete(&message(10));
    guest.put(CANCEL, 1);
    assert_eq!(guest.ring(), None);
    assert_eq!(guest.buffer(10), message(10));
    assert_eq!(guest.start(&message(12)), Some(Effect::Execute(Locality::ZERO)));
}

#[test]
fn a_start_with_an_old_cancellation_is_a_start() {
    let mut guest = Guest::new();
    guest.crb.memory_mut().put(COMMAND_BUFFER.offset, &message(12));
    guest.put(CANCEL, 1);
    guest.put(START, 1);
    assert_eq!(guest.ring(), Some(Effect::Execute(Locality::ZERO)));
}

#[test]
fn a_write_that_touches_the_doorbells_first_word_rings() {
    for (offset, data) in [(0, &[0][..]), (3, &[0]), (0, &[0; 8]), (3, &[9; 2])] {
        let mut guest = Guest::new();
        guest.crb.memory_mut().put(COMMAND_BUFFER.offset, &message(12));
        let at = u64::from(DOORBELL.offset) + offset;
        assert_eq!(guest.crb.write(at, data), Some(Effect::Execute(Locality::ZERO)), "{offset} {data:?}");
    }
    let mut guest = Guest::new();
    guest.crb.memory_mut().put(COMMAND_BUFFER.offset, &message(12));
    assert_eq!(guest.crb.write(u64::from(DOORBELL.offset) - 2, &[1; 4]), Some(Effect::Execute(Locality::ZERO)));
}

#[test]
fn writes_beside_the_doorbells_first_word_ring_nothing() {
    let mut guest = Guest::new();
    guest.crb.memory_mut().put(COMMAND_BUFFER.offset, &message(12));
    for (offset, data) in [(0x5004, &[1; 4][..]), (0x4ffc, &[1; 4]), (0x5000, &[]), (0x5ffc, &[1; 8])] {
        assert_eq!(guest.crb.write(offset, data), None, "{offset:x}");
    }
}

#[test]
fn a_size_that_fits_no_buffer_is_answered_at_once() {
    for size in [0_u32, 9, 4097, u32::MAX] {
        let mut guest = Guest::new();
        let command = [&[0x80, 1][..], &size.to_be_bytes(), &[0; 4]].concat();
        assert_eq!(guest.start(&command), None);
        assert_eq!(guest.word(START), 0);
        assert_eq!(guest.buffer(10), fault_response(TpmVersion::V2_0, Fault::CommandSize));
        assert!(!guest.crb.is_busy());
    }
}

#[test]
fn a_response_that_is_not_whole_becomes_a_failure() {
    let mut guest = Guest::executing(&message(12));
    guest.crb.complete(&message(20)[..19]);
    assert_eq!(guest.buffer(10), fault_response(TpmVersion::V2_0, Fault::Failure));
    assert_eq!(guest.word(START), 0);
}

#[test]
fn the_response_is_written_before_start_is_cleared() {
    let mut guest = Guest::executing(&message(12));
    guest.crb.memory_mut().take_writes();
    guest.crb.complete(&message(20));
    let expected = [(COMMAND_BUFFER.offset, message(20)), (START, vec![0; 4])];
    assert_eq!(guest.crb.memory_mut().take_writes(), expected);
}

#[test]
fn a_response_without_a_command_is_ignored() {
    let mut guest = Guest::new();
    guest.crb.memory_mut().take_writes();
    guest.crb.complete(&message(20));
    assert_eq!(guest.crb.memory_mut().take_writes(), []);
}

#[test]
fn the_control_area_follows_bar0() {
    let mut guest = Guest::new();
    assert_eq!(guest.area(), area(BAR0 + COMMAND_BUFFER.offset));
    guest.crb.place(0xfffe_0000);
    assert_eq!(guest.area(), area(0xfffe_9000));
    guest.crb.place(0);
    assert_eq!(guest.area(), area(0), "nowhere");
}

#[test]
fn what_the_guest_wrote_into_the_control_area_is_gone_with_the_next_placing() {
    let mut guest = Guest::new();
    guest.crb.memory_mut().put(CONTROL_AREA.offset + 0x40, &[0xee; 0x30]);
    guest.crb.place(BAR0);
    assert_eq!(guest.area(), area(BAR0 + COMMAND_BUFFER.offset));
}

#[test]
fn placing_does_not_end_what_runs() {
    let mut guest = Guest::executing(&message(12));
    guest.crb.place(0xe000_0000);
    assert_eq!(guest.word(START), 1);
    assert_eq!(guest.crb.command(), message(12));
    *guest.crb.memory_mut() = Pages::new();
    guest.crb.place(0xe000_0000);
    assert_eq!(guest.word(START), 1, "in another memory, too");
    guest.crb.complete(&message(10));
    assert_eq!(guest.word(START), 0);
}

#[test]
fn reset_forgets_the_command_and_clears_both_pages() {
    let mut guest = Guest::executing(&message(12));
    guest.crb.memory_mut().put(CONTROL_AREA.offset, &[0xee; 0x1000]);
    guest.crb.reset();
    assert!(!guest.crb.is_busy());
    assert!(guest.crb.command().is_empty());
    assert_eq!(guest.buffer(BUFFER_SIZE), [0; BUFFER_SIZE]);
    assert_eq!(guest.area(), area(BAR0 + COMMAND_BUFFER.offset), "BAR0 is where it was");
    assert_eq!(guest.crb.memory().at(CONTROL_AREA.offset, 0x40), [0; 0x40]);
    assert_eq!(guest.crb.memory().at(CONTROL_AREA.offset + 0x70, 0xf90), [0; 0xf90]);
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(20), [0; 20]);
}

#[test]
fn trapped_accesses_reach_the_same_memory() {
    let mut guest = Guest::new();
    assert_eq!(guest.crb.write(COMMAND_BUFFER.offset.into(), &message(12)), None);
    assert_eq!(guest.crb.write(START.into(), &[1]), None, "the doorbell starts, not this");
    assert_eq!(guest.word(START), 1);
    assert_eq!(guest.ring(), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(guest.crb.command(), message(12));
    let mut data = [0; 12];
    guest.crb.read(COMMAND_BUFFER.offset.into(), &mut data);
    assert_eq!(data[..], message(12));
}

#[test]
fn what_is_no_memory_reads_ones() {
    let guest = Guest::new();
    let mut data = vec![0x5a; 0x2_0000];
    guest.crb.read(0, &mut data);
    let (control, buffer) = (0x8000..0x9000, 0x9000..0xa000);
    assert_eq!(data[control.start + 0x40..][..0x30], *guest.area());
    assert_eq!(data[buffer], [0; 0x1000]);
    assert!(data[..control.start].iter().chain(&data[0xa000..]).all(|&byte| byte == 0xff));
}

#[test]
fn an_access_across_both_pages_reaches_both() {
    let mut guest = Guest::new();
    let at = u64::from(COMMAND_BUFFER.offset) - 2;
    assert_eq!(guest.crb.write(at, &[1, 2, 3, 4]), None);
    let mut data = [0; 4];
    guest.crb.read(at, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    assert_eq!(guest.buffer(2), [3, 4]);
}

#[test]
fn a_ring_looks_at_each_thing_once() {
    let mut guest = Guest::new();
    guest.crb.memory_mut().put(COMMAND_BUFFER.offset, &message(12));
    guest.crb.memory_mut().take_reads();
    assert_eq!(guest.ring(), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(guest.crb.memory_mut().take_reads(), [(START, 4), (CANCEL, 4), (COMMAND_BUFFER.offset, BUFFER_SIZE)]);
}
