use super::*;

#[test]
fn a_request_is_granted_and_shows_as_active() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    assert_eq!(guest.write8(2, ACCESS, REQUEST_USE), None);
    assert_eq!(guest.read8(2, ACCESS), 0xa1);
    assert_eq!(guest.read8(0, ACCESS), 0x81);
}

#[test]
fn a_waiting_request_shows_as_request_there_and_as_pending_elsewhere() {
    let mut guest = Guest::owning(0);
    guest.write8(1, ACCESS, REQUEST_USE);
    assert_eq!(guest.read8(1, ACCESS), 0x83);
    assert_eq!(guest.read8(0, ACCESS), 0xa5);
    assert_eq!(guest.read8(2, ACCESS), 0x85);
}

#[test]
fn release_hands_over_to_the_highest_requester() {
    let mut guest = Guest::owning(0);
    guest.write8(1, ACCESS, REQUEST_USE);
    guest.write8(3, ACCESS, REQUEST_USE);
    guest.write8(0, ACCESS, RELINQUISH);
    assert_eq!(guest.read8(3, ACCESS), 0xa5);
    assert_eq!(guest.read8(1, ACCESS), 0x83);
}

#[test]
fn seize_marks_the_loser_until_it_clears_the_mark() {
    let mut guest = Guest::owning(1);
    guest.write8(3, ACCESS, SEIZE);
    assert_eq!(guest.read8(3, ACCESS), 0xa1, "Seize itself reads 0");
    assert_eq!(guest.read8(1, ACCESS), 0x91);
    guest.write8(1, ACCESS, BEEN_SEIZED);
    assert_eq!(guest.read8(1, ACCESS), 0x81);
}

#[test]
fn seize_by_a_lower_locality_is_ignored() {
    let mut guest = Guest::owning(2);
    guest.write8(1, ACCESS, SEIZE);
    assert_eq!(guest.read8(2, ACCESS), 0xa1);
    assert_eq!(guest.read8(1, ACCESS), 0x81);
}

#[test]
fn of_several_access_bits_seize_wins_over_relinquish_over_request() {
    let mut guest = Guest::owning(0);
    guest.write8(0, ACCESS, RELINQUISH | REQUEST_USE);
    assert_eq!(guest.read8(0, ACCESS), 0x81, "relinquished and not requested again");

    let mut guest = Guest::owning(1);
    guest.write8(1, ACCESS, SEIZE | RELINQUISH);
    assert_eq!(guest.read8(1, ACCESS), 0xa1, "seizing from oneself is nothing");

    let mut guest = Guest::owning(0);
    guest.write8(2, ACCESS, SEIZE);
    guest.write8(0, ACCESS, BEEN_SEIZED | REQUEST_USE);
    assert_eq!(guest.read8(0, ACCESS), 0x83, "the mark is cleared beside any other");
}

#[test]
fn other_localities_see_no_status_and_no_fifo() {
    let mut guest = Guest::executing(0, &message(12));
    guest.tis.complete(&message(20));
    assert_eq!(guest.read32(1, STS), 0xffff_ffff);
    assert_eq!(guest.read32(1, DATA_FIFO), 0xffff_ffff);
    assert_eq!(guest.read::<8>(1, XDATA_FIFO), [0xff; 8]);
    guest.write8(1, STS, COMMAND_READY);
    guest.write8(1, DATA_FIFO, 0);
    assert_eq!(guest.receive(0), message(20), "nothing was taken or aborted");
}

#[test]
fn without_an_active_locality_no_status_shows() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    for number in 0..5 {
        assert_eq!(guest.read32(number, STS), 0xffff_ffff);
        assert_eq!(guest.write8(number, STS, COMMAND_READY), None);
    }
}

#[test]
fn losing_the_tpm_during_reception_aborts_to_idle() {
    for lose in [RELINQUISH, SEIZE] {
        let mut guest = Guest::owning(0);
        guest.write8(0, STS, COMMAND_READY);
        guest.send(0, &message(12));
        let loser = u64::from(lose == SEIZE) * 2;
        assert_eq!(guest.write8(loser, ACCESS, lose), None);
        guest.write8(2, ACCESS, REQUEST_USE);
        assert_eq!(guest.read8(2, STS), 0);
        assert_eq!(guest.write8(2, STS, GO), None, "the old owner's command is gone");
    }
}

#[test]
fn losing_the_tpm_before_the_response_is_read_loses_the_response() {
    let mut guest = Guest::executing(0, &message(12));
    guest.tis.complete(&message(20));
    guest.read8(0, DATA_FIFO);
    guest.write8(3, ACCESS, SEIZE);
    assert_eq!(guest.read8(3, STS), 0);
    guest.write8(3, STS, RESPONSE_RETRY);
    assert_eq!(guest.read8(3, STS), 0);
    assert_eq!(guest.read8(3, DATA_FIFO), 0xff);
}

#[test]
fn losing_the_tpm_during_execution_cancels_and_the_result_is_thrown_away() {
    let mut guest = Guest::executing(0, &message(12));
    assert_eq!(guest.write8(2, ACCESS, SEIZE), Some(Effect::Cancel));
    assert!(guest.tis.is_busy());
    assert!(guest.tis.command().is_empty());
    assert_eq!(guest.read8(2, STS), 0);
    guest.tis.complete(&message(20));
    assert!(!guest.tis.is_busy());
    assert_eq!(guest.read8(2, STS), 0, "idle");
    assert_eq!(guest.read8(2, DATA_FIFO), 0xff);
}

#[test]
fn release_during_execution_cancels() {
    let mut guest = Guest::executing(0, &message(12));
    assert_eq!(guest.write8(0, ACCESS, RELINQUISH), Some(Effect::Cancel));
    guest.write8(0, ACCESS, REQUEST_USE);
    assert_eq!(guest.read32(0, STS) & 0x00ff_ffff, 0);
}

#[test]
fn the_new_owners_command_ready_waits_for_the_old_command() {
    let mut guest = Guest::executing(0, &message(12));
    guest.write8(2, ACCESS, SEIZE);
    assert_eq!(guest.write8(2, STS, COMMAND_READY), None, "cancelled already");
    guest.send(2, &message(12));
    assert_eq!(guest.write8(2, STS, GO), None, "no second command while one is outstanding");
    assert_eq!(guest.read8(2, STS), 0);
    guest.tis.complete(&message(20));
    assert_eq!(guest.read8(2, STS), COMMAND_READY);
}

#[test]
fn a_command_ready_is_not_inherited_by_the_next_owner() {
    let mut guest = Guest::executing(0, &message(12));
    guest.write8(2, ACCESS, SEIZE);
    guest.write8(2, STS, COMMAND_READY);
    assert_eq!(guest.write8(3, ACCESS, SEIZE), None, "cancelled already");
    guest.tis.complete(&message(20));
    assert_eq!(guest.read8(3, STS), 0);
}

#[test]
fn a_request_that_waits_leaves_the_command_alone() {
    let mut guest = Guest::executing(0, &message(12));
    assert_eq!(guest.write8(3, ACCESS, REQUEST_USE), None);
    assert_eq!(guest.write8(3, ACCESS, RELINQUISH), None);
    guest.tis.complete(&message(20));
    assert_eq!(guest.receive(0), message(20));
}

#[test]
fn the_effect_names_the_locality_that_runs_the_command() {
    for number in 0..4 {
        let mut guest = Guest::owning(number.into());
        guest.write8(number.into(), STS, COMMAND_READY);
        guest.send(number.into(), &message(10));
        assert_eq!(guest.write8(number.into(), STS, GO), Some(Effect::Execute(locality(number))));
    }
}

#[test]
fn the_guest_can_read_but_not_write_locality_4() {
    let mut guest = Guest::owning(0);
    guest.write8(4, ACCESS, SEIZE);
    guest.write8(4, ACCESS, REQUEST_USE);
    guest.write32(4, INTERFACE_ID, 1 << 19);
    assert_eq!(guest.read8(4, ACCESS), 0x81);
    assert_eq!(guest.read32(4, INTERFACE_ID), 0x2100);
    assert_eq!(guest.read8(0, ACCESS), 0xa1);
}

#[test]
fn locality_4_works_when_the_configuration_opens_it() {
    let tis = Tis::new(TisConfig { guest_locality_4: true, ..config(TpmVersion::V2_0) });
    let mut guest = Guest { tis };
    guest.write8(0, ACCESS, REQUEST_USE);
    guest.write8(4, ACCESS, SEIZE);
    guest.write8(4, STS, COMMAND_READY);
    guest.write(4, XDATA_FIFO, &message(10));
    assert_eq!(guest.write8(4, STS, GO), Some(Effect::Execute(Locality::FOUR)));
    guest.tis.complete(&message(14));
    assert_eq!(guest.receive(4), message(14));
}

#[test]
fn the_hash_sequence_is_closed_to_the_guest() {
    for guest_locality_4 in [false, true] {
        let mut guest = Guest { tis: Tis::new(TisConfig { guest_locality_4, ..config(TpmVersion::V2_0) }) };
        guest.write8(4, ACCESS, REQUEST_USE);
        guest.write8(4, STS, COMMAND_READY);
        let before = guest.read32(4, STS);
        for register in [0x28, 0x24, 0x20] {
            assert_eq!(guest.write32(4, register, 0), None);
            assert_eq!(guest.read32(4, STS), before);
        }
    }
}

#[test]
fn only_localities_3_and_4_reset_the_establishment_bit() {
    for number in 0..5 {
        let tis = Tis::new(TisConfig { guest_locality_4: true, ..config(TpmVersion::V2_0) });
        let mut guest = Guest { tis };
        guest.write8(number.into(), ACCESS, REQUEST_USE);
        let expected = (number >= 3).then_some(Effect::ResetEstablishment(locality(number)));
        assert_eq!(guest.write32(number.into(), STS, RESET_ESTABLISHMENT), expected);
    }
}

#[test]
fn reset_clears_localities_and_forgets_the_command() {
    let mut guest = Guest::executing(0, &message(12));
    guest.write8(2, ACCESS, REQUEST_USE);
    guest.tis.reset();
    assert!(!guest.tis.is_busy());
    for number in 0..5 {
        assert_eq!(guest.read8(number, ACCESS), 0x81);
    }
    guest.write8(0, ACCESS, REQUEST_USE);
    assert_eq!(guest.read8(0, STS), 0);
}
