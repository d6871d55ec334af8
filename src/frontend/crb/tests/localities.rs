use super::*;

/// LOC_STATE while this locality is active.
fn assigned(number: u32) -> u32 {
    0x83 | number << 2
}

#[test]
fn a_request_is_granted_and_every_locality_sees_who_has_the_tpm() {
    let mut guest = Guest::new();
    assert_eq!(guest.write32(2, LOC_CTRL, REQUEST_ACCESS), None);
    for number in 0..5 {
        assert_eq!(guest.read32(number, LOC_STATE), assigned(2));
        assert_eq!(guest.read32(number, LOC_STS), u32::from(number == 2));
    }
}

#[test]
fn release_hands_over_to_the_highest_requester() {
    let mut guest = Guest::owning(0);
    guest.write32(1, LOC_CTRL, REQUEST_ACCESS);
    guest.write32(3, LOC_CTRL, REQUEST_ACCESS);
    assert_eq!(guest.read32(3, LOC_STS), 0, "not yet");
    guest.write32(0, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read32(0, LOC_STATE), assigned(3));
    assert_eq!(guest.read32(3, LOC_STS), 1);
    guest.write32(3, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read32(0, LOC_STATE), assigned(1));
    guest.write32(1, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read32(0, LOC_STATE), 0x81);
}

#[test]
fn seize_marks_the_loser_until_it_asks_again() {
    let mut guest = Guest::owning(1);
    guest.write32(3, LOC_CTRL, SEIZE);
    assert_eq!(guest.read32(1, LOC_STATE), assigned(3));
    assert_eq!(guest.read32(1, LOC_STS), 2);
    assert_eq!(guest.read32(3, LOC_STS), 1);
    guest.write32(1, LOC_CTRL, REQUEST_ACCESS);
    assert_eq!(guest.read32(1, LOC_STS), 0, "it waits");
}

#[test]
fn seize_by_a_lower_locality_is_ignored() {
    let mut guest = Guest::owning(2);
    guest.write32(1, LOC_CTRL, SEIZE);
    assert_eq!(guest.read32(0, LOC_STATE), assigned(2));
}

#[test]
fn several_bits_at_once_are_ignored() {
    let mut guest = Guest::owning(1);
    for both in [RELINQUISH | REQUEST_ACCESS, RELINQUISH | SEIZE, RELINQUISH | RESET_ESTABLISHMENT] {
        assert_eq!(guest.write32(1, LOC_CTRL, both), None);
        assert_eq!(guest.read32(0, LOC_STATE), assigned(1));
    }
    guest.write32(1, LOC_CTRL, 0xffff_fff0 | RELINQUISH);
    assert_eq!(guest.read32(0, LOC_STATE), 0x81, "bits that mean nothing are none");
}

#[test]
fn other_localities_see_no_control_registers_and_write_none() {
    let mut guest = Guest::executing(0, &message(12));
    for register in [CTRL_EXT, CTRL_EXT + 4, CTRL_REQ, CTRL_STS, CTRL_CANCEL, CTRL_START] {
        assert_eq!(guest.read32(1, register), u32::MAX, "{register:x}");
        assert_eq!(guest.write32(1, register, 1), None, "{register:x}");
    }
    guest.crb.complete(&message(20));
    assert_eq!(guest.read32(0, CTRL_CANCEL), 0);
    assert_eq!(guest.write32(1, CTRL_START, 1), None);
    guest.write32(1, CTRL_REQ, GO_IDLE);
    assert_eq!(guest.read32(0, CTRL_STS), 0);
}

#[test]
fn without_an_active_locality_no_control_register_shows() {
    let mut guest = Guest::new();
    for number in 0..5 {
        assert_eq!(guest.read32(number, CTRL_START), u32::MAX);
        assert_eq!(guest.write32(number, CTRL_REQ, CMD_READY), None);
    }
    guest.write32(0, LOC_CTRL, REQUEST_ACCESS);
    assert_eq!(guest.read32(0, CTRL_STS), IDLE);
}

#[test]
fn the_new_owner_finds_an_idle_tpm() {
    for lose in [RELINQUISH, SEIZE] {
        let mut guest = Guest::ready(0);
        guest.write32(0, CTRL_CANCEL, 1);
        let loser = u64::from(lose == SEIZE) * 2;
        assert_eq!(guest.write32(loser, LOC_CTRL, lose), None);
        guest.write32(2, LOC_CTRL, REQUEST_ACCESS);
        assert_eq!(guest.read32(2, CTRL_STS), IDLE);
        assert_eq!(guest.read32(2, CTRL_CANCEL), 0);
        assert_eq!(guest.start(2, &message(12)), None);
    }
}

#[test]
fn losing_the_tpm_during_execution_cancels_and_the_result_is_thrown_away() {
    for lose in [RELINQUISH, SEIZE] {
        let mut guest = Guest::executing(0, &message(12));
        let loser = u64::from(lose == SEIZE) * 2;
        assert_eq!(guest.write32(loser, LOC_CTRL, lose), Some(Effect::Cancel));
        guest.write32(2, LOC_CTRL, REQUEST_ACCESS);
        assert!(guest.crb.is_busy());
        assert!(guest.crb.command().is_empty());
        assert_eq!(guest.read32(2, CTRL_START), 1, "the TPM is not done");
        assert_eq!(guest.read32(2, CTRL_STS), 0, "nor idle");
        guest.crb.complete(&message(40));
        assert!(!guest.crb.is_busy());
        assert_eq!(guest.buffer(12), message(12), "no response");
        assert_eq!(guest.buffer(40)[12..], [0; 28]);
        assert_eq!(guest.read32(2, CTRL_START), 0);
        assert_eq!(guest.read32(2, CTRL_STS), IDLE);
    }
}

#[test]
fn the_new_owners_cmd_ready_waits_for_the_old_command() {
    let mut guest = Guest::executing(0, &message(12));
    guest.write32(2, LOC_CTRL, SEIZE);
    guest.write32(2, CTRL_REQ, CMD_READY);
    assert_eq!(guest.read32(2, CTRL_REQ), CMD_READY, "not done");
    assert_eq!(guest.start(2, &message(14)), None, "no two commands at a time");
    assert_eq!(guest.write32(2, CTRL_CANCEL, 1), None, "it is cancelled already");
    guest.crb.complete(&message(20));
    assert_eq!(guest.read32(2, CTRL_REQ), 0);
    assert_eq!(guest.read32(2, CTRL_STS), 0, "ready");
    assert_eq!(guest.start(2, &message(14)), Some(Effect::Execute(locality(2))));
    assert_eq!(guest.crb.command(), message(14));
}

#[test]
fn the_new_owner_can_take_its_cmd_ready_back() {
    let mut guest = Guest::executing(0, &message(12));
    guest.write32(2, LOC_CTRL, SEIZE);
    guest.write32(2, CTRL_REQ, CMD_READY);
    guest.write32(2, CTRL_REQ, GO_IDLE);
    assert_eq!(guest.read32(2, CTRL_REQ), 0);
    guest.crb.complete(&message(20));
    assert_eq!(guest.read32(2, CTRL_STS), IDLE);
}

#[test]
fn the_tpm_lost_again_is_idle_for_the_third_owner() {
    let mut guest = Guest::executing(0, &message(12));
    guest.write32(1, LOC_CTRL, SEIZE);
    guest.write32(1, CTRL_REQ, CMD_READY);
    assert_eq!(guest.write32(2, LOC_CTRL, SEIZE), None, "cancelled once");
    assert_eq!(guest.read32(2, CTRL_REQ), 0, "another's request");
    guest.crb.complete(&message(20));
    assert_eq!(guest.read32(2, CTRL_STS), IDLE);
}

#[test]
fn a_locality_that_withdraws_its_request_disturbs_nobody() {
    let mut guest = Guest::executing(1, &message(12));
    guest.write32(0, LOC_CTRL, REQUEST_ACCESS);
    assert_eq!(guest.write32(0, LOC_CTRL, RELINQUISH), None);
    guest.crb.complete(&message(20));
    assert_eq!(guest.buffer(20), message(20));
    guest.write32(1, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read32(0, LOC_STATE), 0x81);
}

#[test]
fn only_localities_3_and_4_reset_the_establishment() {
    let mut guest = Guest::new();
    guest.crb.set_establishment(true);
    for number in 0..3 {
        assert_eq!(guest.write32(number, LOC_CTRL, RESET_ESTABLISHMENT), None);
    }
    assert_eq!(guest.write32(3, LOC_CTRL, RESET_ESTABLISHMENT), Some(Effect::ResetEstablishment(locality(3))));
    assert_eq!(guest.read32(0, LOC_STATE), 0x80, "the TPM says when it is");
}

#[test]
fn locality_4_is_not_the_guests() {
    let mut guest = Guest::owning(0);
    for register in (0..0x80).step_by(4) {
        for value in [REQUEST_ACCESS, RELINQUISH, SEIZE, RESET_ESTABLISHMENT, u32::MAX] {
            assert_eq!(guest.write32(4, register, value), None);
        }
    }
    assert_eq!(guest.read32(0, LOC_STATE), assigned(0));
    assert_eq!(guest.read32(0, INTF_ID) & 1 << 19, 0);
    guest.write32(0, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read32(0, LOC_STATE), 0x81, "it has not even asked");
}

#[test]
fn locality_4_can_be_opened_to_the_guest() {
    let mut guest = Guest { crb: Crb::new(CrbConfig { guest_locality_4: true, ..config() }, Pages::new()) };
    assert_eq!(guest.write32(4, LOC_CTRL, RESET_ESTABLISHMENT), Some(Effect::ResetEstablishment(locality(4))));
    guest.write32(4, LOC_CTRL, SEIZE);
    guest.write32(4, CTRL_REQ, CMD_READY);
    assert_eq!(guest.start(4, &message(12)), Some(Effect::Execute(locality(4))));
}
