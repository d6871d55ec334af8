//! What interrupts, and until when.

use super::*;

const GLOBAL: u32 = 1 << 31;
const COMMAND_READY_INT: u32 = 0x80;
const LOCALITY_CHANGE_INT: u32 = 0x04;
const STS_VALID_INT: u32 = 0x02;
const DATA_AVAIL_INT: u32 = 0x01;
const ALL: u32 = COMMAND_READY_INT | LOCALITY_CHANGE_INT | STS_VALID_INT | DATA_AVAIL_INT;

impl Guest {
    /// Lets these interrupt at the locality, which has the TPM.
    fn enable(&mut self, number: u64, interrupts: u32) {
        self.write32(number, INT_ENABLE, GLOBAL | interrupts);
    }

    /// What is pending at the locality; then it is cleared.
    fn take_interrupts(&mut self, number: u64) -> u32 {
        let pending = self.read32(number, INT_STATUS);
        assert_eq!(self.tis.interrupt_level(), pending != 0);
        self.write32(number, INT_STATUS, pending);
        assert!(!self.tis.interrupt_level(), "all is cleared");
        pending
    }
}

#[test]
fn each_step_of_a_command_interrupts_once() {
    let mut guest = Guest::owning(0);
    guest.enable(0, ALL);
    guest.write8(0, STS, COMMAND_READY);
    assert_eq!(guest.take_interrupts(0), COMMAND_READY_INT);
    guest.write8(0, STS, COMMAND_READY);
    assert_eq!(guest.take_interrupts(0), 0, "it was ready");
    let command = message(12);
    guest.send(0, &command[..1]);
    assert_eq!(guest.take_interrupts(0), STS_VALID_INT);
    guest.send(0, &command[1..]);
    guest.write8(0, STS, GO);
    assert_eq!(guest.take_interrupts(0), 0, "stsValid stays");
    guest.tis.complete(&message(14));
    assert_eq!(guest.take_interrupts(0), DATA_AVAIL_INT);
    guest.receive(0);
    assert_eq!(guest.take_interrupts(0), 0);
    guest.write8(0, STS, RESPONSE_RETRY);
    assert_eq!(guest.take_interrupts(0), DATA_AVAIL_INT, "there is data again");
    guest.write8(0, STS, COMMAND_READY);
    assert_eq!(guest.take_interrupts(0), COMMAND_READY_INT);
}

#[test]
fn a_command_that_is_answered_here_interrupts_as_well() {
    let mut guest = Guest::owning(0);
    guest.write8(0, STS, COMMAND_READY);
    guest.send(0, &steps::begun(5, 10));
    guest.enable(0, ALL);
    assert_eq!(guest.write8(0, STS, GO), None);
    assert_eq!(guest.take_interrupts(0), DATA_AVAIL_INT);
}

#[test]
fn an_aborted_command_interrupts_when_the_tpm_is_ready_and_not_for_its_response() {
    let mut guest = Guest::executing(0, &message(12));
    guest.enable(0, ALL);
    assert_eq!(guest.write8(0, STS, COMMAND_READY), Some(Effect::Cancel));
    assert_eq!(guest.take_interrupts(0), 0);
    guest.tis.complete(&message(14));
    assert_eq!(guest.take_interrupts(0), COMMAND_READY_INT);
}

#[test]
fn a_locality_is_told_when_it_gets_the_tpm_from_another() {
    let mut guest = Guest::owning(1);
    guest.enable(1, ALL);
    guest.write8(1, ACCESS, RELINQUISH);
    guest.write8(0, ACCESS, REQUEST_USE);
    guest.enable(0, ALL);
    assert!(!guest.tis.interrupt_level(), "who gets it at once is not told");
    guest.write8(1, ACCESS, SEIZE);
    assert_eq!((guest.read32(0, INT_STATUS), guest.take_interrupts(1)), (0, LOCALITY_CHANGE_INT));
    guest.write8(0, ACCESS, REQUEST_USE);
    assert_eq!(guest.take_interrupts(1), 0);
    guest.write8(1, ACCESS, RELINQUISH);
    assert_eq!(guest.take_interrupts(0), LOCALITY_CHANGE_INT);
}

#[test]
fn what_a_locality_has_not_cleared_keeps_the_level_until_it_does() {
    let mut guest = Guest::executing(0, &message(12));
    guest.enable(0, DATA_AVAIL_INT);
    guest.tis.complete(&message(14));
    guest.write8(0, ACCESS, RELINQUISH);
    assert!(guest.tis.interrupt_level());
    guest.write32(0, INT_STATUS, ALL);
    assert!(guest.tis.interrupt_level(), "it has not got the TPM");
    guest.write8(0, ACCESS, REQUEST_USE);
    assert_eq!(guest.take_interrupts(0), DATA_AVAIL_INT);
}

#[test]
fn interrupts_that_are_off_for_all_lower_the_level_and_a_reset_forgets_them() {
    let mut guest = Guest::owning(0);
    guest.enable(0, ALL);
    guest.write8(0, STS, COMMAND_READY);
    assert!(guest.tis.interrupt_level());
    guest.write32(0, INT_ENABLE, ALL);
    assert!(!guest.tis.interrupt_level());
    guest.enable(0, ALL);
    assert!(guest.tis.interrupt_level(), "it is still pending");
    guest.tis.reset();
    assert!(!guest.tis.interrupt_level());
}
