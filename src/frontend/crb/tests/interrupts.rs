//! What interrupts, and until when.

use super::*;

const GLOBAL: u32 = 1 << 31;
const LOCALITY_CHANGE_INT: u32 = 0x8;
const ESTABLISHMENT_CLEAR_INT: u32 = 0x4;
const CMD_READY_INT: u32 = 0x2;
const START: u32 = 1;
const START_INT: u32 = 0x1;
const ALL: u32 = 0xf;

impl Guest {
    /// Lets these interrupt at the locality, which has the TPM.
    fn enable(&mut self, number: u64, interrupts: u32) {
        self.write32(number, INT_ENABLE, GLOBAL | interrupts);
    }

    /// What is pending at the locality; then it is cleared.
    fn take_interrupts(&mut self, number: u64) -> u32 {
        let pending = self.read32(number, INT_STS);
        assert_eq!(self.crb.interrupt_level(), pending != 0);
        self.write32(number, INT_STS, pending);
        assert!(!self.crb.interrupt_level(), "all is cleared");
        pending
    }
}

#[test]
fn a_command_interrupts_when_the_tpm_is_ready_and_when_it_is_done() {
    let mut guest = Guest::owning(0);
    guest.enable(0, ALL);
    guest.write32(0, CTRL_REQ, CMD_READY);
    assert_eq!(guest.take_interrupts(0), CMD_READY_INT);
    guest.put(&message(12));
    guest.write32(0, CTRL_START, START);
    assert_eq!(guest.take_interrupts(0), 0);
    guest.crb.complete(&message(14));
    assert_eq!(guest.take_interrupts(0), START_INT);
    guest.write32(0, CTRL_REQ, GO_IDLE);
    assert_eq!(guest.take_interrupts(0), 0);
}

#[test]
fn a_command_that_is_answered_here_interrupts_as_well() {
    let mut guest = Guest::owning(0);
    guest.write32(0, CTRL_REQ, CMD_READY);
    guest.enable(0, ALL);
    guest.put(&[0; 10]);
    assert_eq!(guest.write32(0, CTRL_START, START), None);
    assert_eq!(guest.take_interrupts(0), START_INT);
}

#[test]
fn a_locality_is_told_when_it_gets_the_tpm_from_another_and_when_that_ones_command_has_ended() {
    let mut guest = Guest::owning(1);
    guest.enable(1, ALL);
    guest.write32(1, LOC_CTRL, RELINQUISH);
    guest.write32(0, LOC_CTRL, REQUEST_ACCESS);
    assert!(!guest.crb.interrupt_level(), "who gets it at once is not told");
    guest.write32(0, CTRL_REQ, CMD_READY);
    guest.put(&message(12));
    guest.write32(0, CTRL_START, START);
    assert_eq!(guest.write32(1, LOC_CTRL, SEIZE), Some(Effect::Cancel));
    assert_eq!(guest.take_interrupts(1), LOCALITY_CHANGE_INT);
    guest.write32(1, CTRL_REQ, CMD_READY);
    assert_eq!(guest.take_interrupts(1), 0);
    guest.crb.complete(&message(14));
    assert_eq!(guest.take_interrupts(1), START_INT | CMD_READY_INT);
}

#[test]
fn the_active_locality_is_told_of_a_dynamic_launch_once() {
    let mut guest = Guest::owning(0);
    guest.enable(0, ALL);
    for (established, expected) in [(true, ESTABLISHMENT_CLEAR_INT), (true, 0), (false, 0)] {
        guest.crb.set_establishment(established);
        assert_eq!(guest.take_interrupts(0), expected);
    }
}

#[test]
fn nothing_interrupts_that_is_not_enabled_and_only_the_active_locality_clears_its_own() {
    let mut guest = Guest::owning(0);
    for enable in [ALL, GLOBAL] {
        guest.write32(0, INT_ENABLE, enable);
        guest.write32(0, CTRL_REQ, CMD_READY);
        assert_eq!(guest.take_interrupts(0), 0, "{enable:#x}");
    }
    guest.enable(0, CMD_READY_INT);
    guest.write32(0, CTRL_REQ, CMD_READY);
    guest.write32(0, LOC_CTRL, RELINQUISH);
    guest.write32(0, INT_STS, ALL);
    assert!(guest.crb.interrupt_level(), "it has not got the TPM");
    guest.crb.reset();
    assert!(!guest.crb.interrupt_level());
}
