use super::*;
use crate::bar_map;

#[test]
fn after_power_on_the_state_is_valid_not_established_and_nobody_is_active() {
    let guest = Guest::new();
    for number in 0..5 {
        assert_eq!(guest.read32(number, LOC_STATE), 0x81);
        assert_eq!(guest.read32(number, LOC_CTRL), 0);
        assert_eq!(guest.read32(number, LOC_STS), 0);
        assert_eq!(guest.read32(number, INT_ENABLE), 0);
        assert_eq!(guest.read32(number, INT_STS), 0);
    }
}

#[test]
fn establishment_shows_inverted_at_every_locality() {
    let mut guest = Guest::new();
    guest.crb.set_establishment(true);
    for number in 0..5 {
        assert_eq!(guest.read32(number, LOC_STATE), 0x80);
    }
    guest.crb.reset();
    assert_eq!(guest.read32(0, LOC_STATE), 0x80, "the flag is the TPM's: a reset of the registers keeps it");
    guest.crb.set_establishment(false);
    assert_eq!(guest.read32(0, LOC_STATE), 0x81);
}

#[test]
fn identity_and_buffer_registers_read_without_a_locality() {
    let guest = Guest::new();
    for number in 0..5 {
        assert_eq!(guest.read32(number, INTF_ID), 0x0702_5911);
        assert_eq!(guest.read32(number, INTF_ID + 4), 0x0001_1014);
        assert_eq!(guest.read::<8>(number, INTF_ID), [0x11, 0x59, 0x02, 7, 0x14, 0x10, 1, 0], "in one");
        let buffer = [0x1000, 0xfe80_9000, 0, 0x1000, 0xfe80_9000, 0].map(u32::to_le_bytes).concat();
        assert_eq!(guest.read::<24>(number, CTRL_CMD_SIZE)[..], buffer);
    }
}

#[test]
fn the_buffers_address_follows_bar0() {
    let mut guest = Guest::new();
    guest.crb.place(0xfffe_0000);
    assert_eq!(guest.read32(0, CTRL_CMD_LADDR), 0xfffe_9000);
    assert_eq!(u64::from_le_bytes(guest.read(0, CTRL_RSP_ADDR)), 0xfffe_9000);
    guest.crb.reset();
    assert_eq!(guest.read32(0, CTRL_CMD_LADDR), 0xfffe_9000, "BAR0 is where it was");
    guest.crb.place(0);
    assert_eq!(guest.read32(0, CTRL_CMD_LADDR), 0, "nowhere");
    // No BAR of this size is there, but nobody has to rely on that.
    guest.crb.place(0xffff_fff0);
    assert_eq!(guest.read32(0, CTRL_CMD_LADDR), 0x8ff0);
    assert_eq!(guest.read32(0, CTRL_CMD_HADDR), 1);
}

#[test]
fn read_only_registers_cannot_be_written() {
    let mut guest = Guest::owning(0);
    let read_only = [
        LOC_STATE,
        LOC_STS,
        INTF_ID + 4,
        CTRL_EXT,
        CTRL_EXT + 4,
        CTRL_STS,
        INT_STS,
        CTRL_CMD_SIZE,
        CTRL_CMD_LADDR,
        CTRL_CMD_HADDR,
        CTRL_RSP_SIZE,
        CTRL_RSP_ADDR,
        CTRL_RSP_ADDR + 4,
    ];
    for register in read_only {
        let before = guest.read32(0, register);
        assert_eq!(guest.write32(0, register, !before), None);
        assert_eq!(guest.read32(0, register), before, "{register:x}");
    }
}

#[test]
fn the_interface_selector_is_fixed_and_its_lock_holds_until_reset() {
    let mut guest = Guest::new();
    guest.write32(3, INTF_ID, !(1 << 19));
    assert_eq!(guest.read32(0, INTF_ID), 0x0702_5911);
    guest.write32(3, INTF_ID, 1 << 19);
    guest.write32(3, INTF_ID, 0);
    assert_eq!(guest.read32(0, INTF_ID), 0x070a_5911);
    guest.crb.reset();
    assert_eq!(guest.read32(0, INTF_ID), 0x0702_5911);
}

#[test]
fn interrupts_are_enabled_for_each_locality_by_itself_and_only_by_the_active_one() {
    let mut guest = Guest::owning(1);
    guest.write32(1, INT_ENABLE, u32::MAX);
    guest.write32(0, INT_ENABLE, u32::MAX);
    assert_eq!(guest.read32(1, INT_ENABLE), 0x8000_000f);
    assert_eq!(guest.read32(0, INT_ENABLE), 0);
    guest.write(1, INT_ENABLE, &[0]);
    assert_eq!(guest.read32(1, INT_ENABLE), 0x8000_0000, "bytes not written keep their bits");
    guest.write32(1, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read32(1, INT_ENABLE), 0x8000_0000);
    guest.crb.reset();
    assert_eq!(guest.read32(1, INT_ENABLE), 0);
}

#[test]
fn the_same_registers_read_with_every_width() {
    let guest = Guest::executing(0, &message(12));
    let mut page = vec![0; 0x80];
    guest.crb.read(0, &mut page);
    for width in [1, 2, 3, 4, 8, 16] {
        for at in 0..page.len() - width {
            let mut data = vec![0x5a; width];
            guest.crb.read(at.try_into().expect("64 bits"), &mut data);
            assert_eq!(data, page[at..at + width], "{width} bytes at {at:x}");
        }
    }
}

#[test]
fn offsets_without_a_register_read_ones_and_drop_writes() {
    let mut guest = Guest::owning(0);
    let before = guest.crb.state();
    for offset in [0x04, 0x10, 0x2c, 0x70, 0x7c, 0x80, 0xffc] {
        assert_eq!(guest.read32(0, offset), u32::MAX, "{offset:x}");
        assert_eq!(guest.write32(0, offset, 0), None);
    }
    assert_eq!(guest.crb.state(), before);
}

#[test]
fn accesses_outside_the_windows_read_ones_and_drop_writes() {
    let mut guest = Guest::owning(0);
    let before = guest.crb.state();
    for offset in [0x5000, 0x6000, 0x8040, 0x804c, 0xa000, 0x1_0000, u64::from(bar_map::SIZE), u64::MAX - 1] {
        let mut data = [0x5a; 8];
        guest.crb.read(offset, &mut data);
        assert_eq!(data, [0xff; 8], "{offset:x}");
        assert_eq!(guest.crb.write(offset, &[1; 8]), None);
    }
    assert_eq!(guest.crb.state(), before);
}

#[test]
fn the_buffer_reads_and_writes_at_every_width_and_alignment() {
    let mut guest = Guest::new();
    let buffer = u64::from(COMMAND_BUFFER.offset);
    for (offset, data) in [(0, &[1][..]), (1, &[2, 3]), (3, &[4, 5, 6, 7, 8]), (0xffe, &[9, 10])] {
        assert_eq!(guest.crb.write(buffer + offset, data), None);
    }
    assert_eq!(guest.buffer(9), [1, 2, 3, 4, 5, 6, 7, 8, 0]);
    let mut data = [0x5a; 4];
    guest.crb.read(buffer - 2, &mut data);
    assert_eq!(data, [0xff, 0xff, 1, 2]);
    guest.crb.read(buffer + 0xffe, &mut data);
    assert_eq!(data, [9, 10, 0xff, 0xff]);
    assert_eq!(guest.crb.write(buffer - 2, &[0xee; 4]), None);
    assert_eq!(guest.crb.write(buffer + 0xffe, &[0xee; 4]), None);
    assert_eq!(guest.buffer(4), [0xee, 0xee, 3, 4]);
}

#[test]
fn the_buffer_is_the_same_for_every_locality() {
    let mut guest = Guest::executing(3, &message(12));
    guest.crb.complete(&message(20));
    guest.write32(3, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read::<20>(0, COMMAND_BUFFER.offset.into())[..], message(20), "it has no page of a locality");
}

#[test]
fn the_words_after_one_with_an_effect_are_dropped() {
    let mut guest = Guest::ready(0);
    guest.put(&message(12));
    // START and, behind it, INT_ENABLE.
    let both = [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(guest.write(0, CTRL_START, &both), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(guest.read32(0, INT_ENABLE), 0);
    // From START to the end of the buffer.
    let mut guest = Guest::ready(0);
    guest.put(&message(12));
    let all = vec![1; 0xa000 - 0x4c];
    assert_eq!(guest.write(0, CTRL_START, &all), Some(Effect::Execute(Locality::ZERO)));
    assert_eq!(guest.crb.command(), message(12));
    assert_eq!(guest.buffer(12), message(12));
}

#[test]
fn a_write_across_two_pages_reaches_both() {
    let mut guest = Guest::new();
    let mut data = vec![0; 0x1010];
    data[usize::try_from(LOC_CTRL).expect("small")] = 1;
    data[0x1000 + usize::try_from(LOC_CTRL).expect("small")] = 1;
    guest.write(1, 0, &data);
    assert_eq!(guest.read32(1, LOC_STS), 1);
    guest.write32(1, LOC_CTRL, RELINQUISH);
    assert_eq!(guest.read32(2, LOC_STS), 1, "it has waited");
}
