use super::*;

#[test]
fn after_power_on_access_is_valid_not_established_and_nobody_is_active() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    for number in 0..5 {
        assert_eq!(guest.read8(number, ACCESS), 0x81);
    }
}

#[test]
fn establishment_shows_inverted_at_every_locality() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    guest.tis.set_establishment(true);
    for number in 0..5 {
        assert_eq!(guest.read8(number, ACCESS), 0x80);
    }
    guest.tis.reset();
    assert_eq!(guest.read8(0, ACCESS), 0x80, "the flag is the TPM's: a reset of the registers keeps it");
    guest.tis.set_establishment(false);
    assert_eq!(guest.read8(0, ACCESS), 0x81);
}

#[test]
fn identity_and_capability_registers_read_without_a_locality() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    for number in 0..5 {
        assert_eq!(guest.read32(number, INTF_CAPABILITY), 0x3000_0697);
        assert_eq!(guest.read32(number, INTERFACE_ID), 0x2100);
        assert_eq!(guest.read32(number, DID_VID), 0x0001_1014);
        assert_eq!(guest.read8(number, RID), 7);
    }
}

#[test]
fn tpm_1_2_shows_tis_1_3_and_no_interface_id() {
    let mut guest = Guest::new(TpmVersion::V1_2);
    guest.write8(0, ACCESS, REQUEST_USE);
    assert_eq!(guest.read32(0, INTF_CAPABILITY), 0x2000_0697);
    assert_eq!(guest.read32(0, INTERFACE_ID), 0xffff_ffff);
    guest.write32(0, INTERFACE_ID, 0);
    assert_eq!(guest.read32(0, INTERFACE_ID), 0xffff_ffff);
    assert_eq!(guest.read32(0, STS), 0, "no family bits");
}

#[test]
fn tpm_2_0_shows_its_family_in_every_state() {
    let mut guest = Guest::owning(0);
    assert_eq!(guest.read32(0, STS), 0x0400_0000);
    guest.write8(0, STS, COMMAND_READY);
    assert_eq!(guest.read8(0, STS + 3), 0x04);
}

#[test]
fn read_only_registers_cannot_be_written() {
    let mut guest = Guest::owning(0);
    for register in [INTF_CAPABILITY, DID_VID, RID] {
        let before = guest.read32(0, register);
        assert_eq!(guest.write32(0, register, !before), None);
        assert_eq!(guest.read32(0, register), before);
    }
}

#[test]
fn offsets_without_a_register_read_ones_and_drop_writes() {
    let mut guest = Guest::owning(0);
    for register in [0x04, 0x1c, 0x20, 0x28, 0x2c, 0x34, 0x7c, 0xc0, 0xefc, 0xf08, 0xffc] {
        assert_eq!(guest.write32(0, register, 0xffff_ffff), None);
        assert_eq!(guest.read32(0, register), 0xffff_ffff, "{register:#x}");
    }
}

#[test]
fn accesses_past_the_pages_read_ones_and_drop_writes() {
    let mut tis = Tis::new(config(TpmVersion::V2_0));
    for offset in [Tis::SIZE, Tis::SIZE + 0x18, 0x100_0000, u64::MAX - 3, u64::MAX] {
        let mut data = [0; 16];
        tis.read(offset, &mut data);
        assert_eq!(data, [0xff; 16]);
        assert_eq!(tis.write(offset, &[0xff; 16]), None);
    }
    let mut data = [0; 8];
    tis.read(Tis::SIZE - 0x1000 + ACCESS, &mut data);
    assert_eq!(data, [0x81, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
}

#[test]
fn the_same_registers_read_with_every_width() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    assert_eq!(guest.read32(0, ACCESS), 0x81, "reserved bytes beside a byte register read 0");
    assert_eq!(guest.read::<8>(0, DID_VID), [0x14, 0x10, 0x01, 0x00, 0x07, 0x00, 0x00, 0x00]);
    assert_eq!(guest.read::<2>(0, DID_VID + 2), [0x01, 0x00]);
    assert_eq!(guest.read::<3>(0, DID_VID + 3), [0x00, 0x07, 0x00]);
    assert_eq!(guest.read::<8>(0, 0x10), [0, 0, 0, 0, 0x97, 0x06, 0, 0x30]);
}

#[test]
fn access_is_its_lowest_byte_only() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    guest.write32(0, ACCESS, 0x0202_0200);
    guest.write(0, ACCESS + 1, &[REQUEST_USE; 3]);
    assert_eq!(guest.read8(0, ACCESS), 0x81);
    guest.write32(0, ACCESS, REQUEST_USE.into());
    assert_eq!(guest.read8(0, ACCESS), 0xa1);
    guest.write(0, ACCESS, &[RELINQUISH, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.read8(0, ACCESS), 0x81);
}

#[test]
fn a_write_across_two_pages_reaches_both() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    guest.write(0, 0xffc, &[0, 0, 0, 0, REQUEST_USE, 0, 0, 0]);
    assert_eq!(guest.read8(1, ACCESS), 0xa1);
}

#[test]
fn the_words_after_one_with_an_effect_are_dropped() {
    let mut guest = Guest::executing(0, &message(10));
    let mut data = [0; 0x1001];
    data[0] = RELINQUISH;
    data[0x1000] = REQUEST_USE;
    assert_eq!(guest.write(0, ACCESS, &data), Some(Effect::Cancel));
    assert_eq!(guest.read8(1, ACCESS), 0x81);
}

#[test]
fn interrupt_registers_hold_what_the_active_locality_writes() {
    let mut guest = Guest::owning(0);
    assert_eq!(guest.read32(0, INT_ENABLE), 0x08, "off, low level");
    guest.write32(0, INT_ENABLE, 0xffff_ffff);
    assert_eq!(guest.read32(0, INT_ENABLE), 0x8000_009f);
    guest.write8(0, INT_ENABLE + 3, 0);
    assert_eq!(guest.read32(0, INT_ENABLE), 0x0000_009f);
    guest.write8(0, INT_VECTOR, 0xfa);
    assert_eq!(guest.read32(0, INT_VECTOR), 0x0a);
    guest.write32(0, INT_STATUS, 0xffff_ffff);
    assert_eq!(guest.read32(0, INT_STATUS), 0);
    guest.tis.reset();
    assert_eq!(guest.read32(0, INT_ENABLE), 0x08);
    assert_eq!(guest.read8(0, INT_VECTOR), 0);
}

#[test]
fn interrupt_registers_of_other_localities_read_but_cannot_be_written() {
    let mut guest = Guest::owning(1);
    guest.write32(0, INT_ENABLE, 0x8000_0001);
    guest.write8(0, INT_VECTOR, 5);
    assert_eq!(guest.read32(0, INT_ENABLE), 0x08);
    assert_eq!(guest.read8(0, INT_VECTOR), 0);
}

#[test]
fn the_interface_selector_is_fixed_and_its_lock_holds_until_reset() {
    let mut guest = Guest::new(TpmVersion::V2_0);
    guest.write32(0, INTERFACE_ID, 1 << 17 | 0xf);
    assert_eq!(guest.read32(0, INTERFACE_ID), 0x2100);
    guest.write32(0, INTERFACE_ID, 1 << 19);
    guest.write32(2, INTERFACE_ID, 0);
    for number in 0..5 {
        assert_eq!(guest.read32(number, INTERFACE_ID), 0x8_2100);
    }
    guest.tis.reset();
    assert_eq!(guest.read32(0, INTERFACE_ID), 0x2100);
}
