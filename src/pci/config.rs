//! Configuration space with a type 0 header: what it holds, and which bits of it can be written.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6; offsets and names by `linux/pci_regs.h`. The device is on the
//! root bus and has no capabilities: above all neither a function level reset nor power management, since with either
//! a guest could reset the TPM alone.

mod state;

pub use state::{ConfigSpaceState, ConfigSpaceStateError};

/// Bytes of conventional configuration space.
pub const CONFIG_SIZE: usize = 256;

const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const REVISION_ID: usize = 0x08;
const CLASS_CODE: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
const BASE_ADDRESS_0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const STATUS: usize = 0x06;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

/// Memory space, bus master, parity error response, SERR#, interrupt disable: what a device of this kind can have on.
/// I/O space is not among them, since there is no I/O BAR.
const COMMAND_WRITABLE: u16 = 0x0002 | 0x0004 | 0x0040 | 0x0100 | 0x0400;

/// "Interrupt Disable" of the command register (section 6.2.2), in its second byte.
const COMMAND_INTERRUPT_DISABLE: u8 = 0x04;
/// "Interrupt Status" of the status register (section 6.2.3): whether an interrupt is pending, disabled or not.
const STATUS_INTERRUPT: u8 = 0x08;

/// Bits of a memory BAR that hold its address.
const BAR_ADDRESS: u32 = 0xffff_fff0;

/// Who the device says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id, also of the subsystem.
    pub vendor_id: u16,
    /// Device id, also of the subsystem.
    pub device_id: u16,
    /// Revision id.
    pub revision_id: u8,
    /// Class code: base class, subclass and programming interface in the low three bytes.
    pub class_code: u32,
}

/// A 32-bit, non-prefetchable memory BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBar(u32);

impl MemoryBar {
    /// A BAR of `size` bytes; `None` unless that is a power of two of at least 16.
    #[must_use]
    pub const fn new(size: u32) -> Option<Self> {
        if size.is_power_of_two() && size >= 16 { Some(Self(size)) } else { None }
    }

    const fn writable(self) -> u32 {
        // A power of two has a two's complement of ones above and zeros below.
        self.0.wrapping_neg() & BAR_ADDRESS
    }
}

/// The pin by which a device interrupts (section 6.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterruptPin {
    /// It does not.
    #[default]
    None,
    /// INTA#, the only one that a device of one function may have.
    IntA,
}

/// The configuration space of a device with BAR 0 and nothing else. Every other BAR and the ROM read zero whatever is
/// written, which is how a client that sizes them learns that there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    content: [u8; CONFIG_SIZE],
    /// Content after power-on.
    initial: [u8; CONFIG_SIZE],
    /// Bits that a write changes.
    writable: [u8; CONFIG_SIZE],
    /// Whether the device has an interrupt pending. It is the device's to know, and so no part of the state.
    interrupt_pending: bool,
}

impl ConfigSpace {
    /// The configuration space after power-on.
    #[must_use]
    pub fn new(identity: Identity, bar0: MemoryBar, pin: InterruptPin) -> Self {
        let mut initial = [0; CONFIG_SIZE];
        let [class0, class1, class2, _] = identity.class_code.to_le_bytes();
        put(&mut initial, VENDOR_ID, &identity.vendor_id.to_le_bytes());
        put(&mut initial, DEVICE_ID, &identity.device_id.to_le_bytes());
        put(&mut initial, REVISION_ID, &[identity.revision_id]);
        put(&mut initial, CLASS_CODE, &[class0, class1, class2]);
        put(&mut initial, SUBSYSTEM_VENDOR_ID, &identity.vendor_id.to_le_bytes());
        put(&mut initial, SUBSYSTEM_ID, &identity.device_id.to_le_bytes());
        put(&mut initial, INTERRUPT_PIN, &[u8::from(pin == InterruptPin::IntA)]);

        let mut writable = [0; CONFIG_SIZE];
        put(&mut writable, COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        put(&mut writable, CACHE_LINE_SIZE, &[0xff]);
        put(&mut writable, BASE_ADDRESS_0, &bar0.writable().to_le_bytes());
        put(&mut writable, INTERRUPT_LINE, &[0xff]);
        Self { content: initial, initial, writable, interrupt_pending: false }
    }

    /// Reads from `offset`; what lies behind the end reads ones, as where no device answers.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, content) in data.iter_mut().zip(self.content.iter().skip(start)) {
            *byte = *content;
        }
        let status = STATUS.checked_sub(start).and_then(|at| data.get_mut(at));
        if let Some(status) = status.filter(|_| self.interrupt_pending) {
            *status |= STATUS_INTERRUPT;
        }
    }

    /// Writes at `offset`; only writable bits change.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let cells = self.content.iter_mut().zip(&self.writable).skip(start);
        for (byte, (content, mask)) in data.iter().zip(cells) {
            *content = (*content & !mask) | (byte & mask);
        }
    }

    /// Back to the content after power-on, with no interrupt pending.
    pub fn reset(&mut self) {
        self.content = self.initial;
        self.interrupt_pending = false;
    }

    /// Shows whether the device has an interrupt pending. Without a pin it has none.
    pub fn set_interrupt_pending(&mut self, pending: bool) {
        self.interrupt_pending = pending && self.byte(INTERRUPT_PIN) != 0;
    }

    /// Whether the device asserts its pin: an interrupt is pending, and the guest has not disabled them.
    #[must_use]
    pub fn asserts_interrupt(&self) -> bool {
        self.interrupt_pending && self.byte(COMMAND.saturating_add(1)) & COMMAND_INTERRUPT_DISABLE == 0
    }

    fn byte(&self, offset: usize) -> u8 {
        self.content.get(offset).copied().unwrap_or_default()
    }

    /// Where the client has put BAR 0 in the guest's memory; zero if nowhere yet.
    #[must_use]
    pub fn bar0_address(&self) -> u32 {
        let mut bytes = [0; 4];
        self.read(BASE_ADDRESS_0 as u64, &mut bytes);
        u32::from_le_bytes(bytes) & BAR_ADDRESS
    }
}

/// Only for offsets known here, all of them inside.
fn put(space: &mut [u8; CONFIG_SIZE], offset: usize, bytes: &[u8]) {
    for (cell, byte) in space.iter_mut().skip(offset).zip(bytes) {
        *cell = *byte;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> ConfigSpace {
        let identity = Identity { vendor_id: 0x7666, device_id: 0x5450, revision_id: 1, class_code: 0x10_80_00 };
        ConfigSpace::new(identity, MemoryBar::new(0x2_0000).unwrap(), InterruptPin::None)
    }

    fn with_pin() -> ConfigSpace {
        let identity = Identity { vendor_id: 0x7666, device_id: 0x5450, revision_id: 1, class_code: 0x10_80_00 };
        ConfigSpace::new(identity, MemoryBar::new(0x2_0000).unwrap(), InterruptPin::IntA)
    }

    fn read<const N: usize>(config: &ConfigSpace, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        config.read(offset, &mut data);
        data
    }

    #[test]
    fn the_identity_is_where_pci_says() {
        let config = config();
        assert_eq!(read(&config, 0), [0x66, 0x76, 0x50, 0x54]);
        assert_eq!(read(&config, 8), [1, 0x00, 0x80, 0x10]);
        assert_eq!(read(&config, 0x2c), [0x66, 0x76, 0x50, 0x54]);
        assert_eq!(read(&config, 0x0e), [0], "header type 0, one function");
        assert_eq!(read(&config, 0x34), [0], "no capabilities");
        assert_eq!(read(&config, 0x3d), [0], "no interrupt pin");
    }

    #[test]
    fn a_client_that_sizes_bar_0_finds_128_kib_of_32_bit_memory() {
        let mut config = config();
        config.write(0x10, &[0xff; 4]);
        assert_eq!(u32::from_le_bytes(read(&config, 0x10)), 0xfffe_0000);
    }

    #[test]
    fn all_other_bars_and_the_rom_size_to_nothing() {
        let mut config = config();
        for offset in [0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
            config.write(offset, &0xffff_f800u32.to_le_bytes());
            assert_eq!(read(&config, offset), [0; 4], "offset {offset:#x}");
        }
    }

    #[test]
    fn the_bar_address_follows_the_client_byte_by_byte_too() {
        let mut config = config();
        config.write(0x10, &0xfebc_0000u32.to_le_bytes());
        assert_eq!(config.bar0_address(), 0xfebc_0000);
        config.write(0x13, &[0xfd]);
        assert_eq!(config.bar0_address(), 0xfdbc_0000);
    }

    #[test]
    fn status_has_nothing_to_clear_and_command_keeps_what_it_knows() {
        let mut config = config();
        config.write(0x04, &[0xff; 4]);
        assert_eq!(read(&config, 0x04), [0x46, 0x05, 0, 0]);
    }

    #[test]
    fn a_reset_forgets_all_that_was_written() {
        let mut config = config();
        config.write(0, &[0xa5; CONFIG_SIZE]);
        config.reset();
        assert_eq!(config, self::config());
    }

    #[test]
    fn a_pending_interrupt_shows_in_the_status_and_goes_out_by_the_pin() {
        let mut config = with_pin();
        assert_eq!(read(&config, 0x3d), [1], "INTA#");
        assert!(!config.asserts_interrupt());
        config.set_interrupt_pending(true);
        assert_eq!(read(&config, 0x06), [0x08, 0]);
        assert_eq!(read(&config, 0x04), [0, 0, 0x08], "with the command register");
        assert_eq!(read(&config, 0x07), [0], "the bytes beside");
        assert!(config.asserts_interrupt());
        config.set_interrupt_pending(false);
        assert_eq!(read(&config, 0x06), [0, 0]);
        assert!(!config.asserts_interrupt());
    }

    #[test]
    fn a_disabled_interrupt_is_still_pending() {
        let mut config = with_pin();
        config.set_interrupt_pending(true);
        config.write(0x04, &0x0402u16.to_le_bytes());
        assert_eq!(read(&config, 0x06), [0x08, 0]);
        assert!(!config.asserts_interrupt());
        config.write(0x04, &0x0002u16.to_le_bytes());
        assert!(config.asserts_interrupt());
        config.reset();
        assert!(!config.asserts_interrupt());
        assert_eq!(config, with_pin());
    }

    #[test]
    fn without_a_pin_no_interrupt_is_pending() {
        let mut config = config();
        config.set_interrupt_pending(true);
        assert_eq!(read(&config, 0x06), [0, 0]);
        assert!(!config.asserts_interrupt());
    }

    #[test]
    fn a_bar_that_is_no_power_of_two_is_refused() {
        assert_eq!(MemoryBar::new(0x3000), None);
        assert_eq!(MemoryBar::new(8), None);
    }

    proptest! {
        #[test]
        fn no_access_anywhere_changes_a_read_only_bit(offset in any::<u64>(), data in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut config, fresh) = (config(), config());
            config.write(offset % 512, &data);
            config.write(offset, &data);
            for index in 0..CONFIG_SIZE {
                prop_assert_eq!((config.content[index] ^ fresh.content[index]) & !fresh.writable[index], 0);
            }
            let mut long = vec![0; data.len()];
            config.read(offset, &mut long);
        }
    }
}
