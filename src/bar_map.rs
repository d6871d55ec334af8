//! What lies where in BAR0, the device's only BAR, and the one register of ours in configuration space. Guests' drivers and
//! tables depend on this map: it never changes.
//!
//! The map is the same in every mode. Parts that a mode does not serve, and the gaps between the windows, read 0xff and
//! drop writes.

use std::ops::Range;

/// Size of BAR0 in bytes.
pub const SIZE: u32 = 0x2_0000;

/// The register pages of localities 0 to 4, 4 KiB each (TIS or CRB registers).
pub const LOCALITIES: Window = Window { name: "localities", offset: 0x0_0000, length: 0x5000 };

/// The page whose write starts the command of a CRB with ACPI start.
pub const DOORBELL: Window = Window { name: "doorbell", offset: 0x0_5000, length: 0x1000 };

/// The doorbell once more, in the device dependent part of configuration space (PCI Local Bus 3.0, section 6.1): its offset
/// there. It needs no address, so a method of ACPI rings it in half the time, and never writes to RAM by mistake.
pub const CONFIG_DOORBELL: u8 = 0x40;

/// The memory through which ACPI hands over physical presence requests.
pub const PPI: Window = Window { name: "ppi", offset: 0x0_6000, length: 0x1000 };

/// The page with the control area of a CRB with ACPI start, at [`CONTROL_AREA_START`] in it.
pub const CONTROL_AREA: Window = Window { name: "control-area", offset: 0x0_8000, length: 0x1000 };

/// Where in the [`CONTROL_AREA`] page the control area starts: a locality's registers come first in a CRB's page.
pub const CONTROL_AREA_START: u32 = 0x40;

/// The buffer of a CRB's command and then its response.
pub const COMMAND_BUFFER: Window = Window { name: "command-buffer", offset: 0x0_9000, length: 0x1000 };

/// The measurement log.
pub const LOG: Window = Window { name: "log", offset: 0x1_0000, length: 0x1_0000 };

/// All windows, in ascending order. What lies between them is reserved.
pub const WINDOWS: [Window; 6] = [LOCALITIES, DOORBELL, PPI, CONTROL_AREA, COMMAND_BUFFER, LOG];

/// One part of BAR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its name in `tpm.json`.
    pub name: &'static str,
    /// Bytes from the start of BAR0 to the window.
    pub offset: u32,
    /// Its size in bytes.
    pub length: u32,
}

impl Window {
    /// The offset in BAR0 of the first byte behind the window.
    #[must_use]
    pub const fn end(self) -> u32 {
        self.offset + self.length
    }

    /// Whether the byte at `bar_offset` of BAR0 is in the window.
    #[must_use]
    pub fn contains(self, bar_offset: u64) -> bool {
        (u64::from(self.offset)..u64::from(self.end())).contains(&bar_offset)
    }

    /// Which bytes of an access of `len` bytes at `bar_offset` of BAR0 are in the window, as a range of its data, and
    /// the offset in BAR0 of the first; `None` when none is.
    #[must_use]
    pub fn part(self, bar_offset: u64, len: usize) -> Option<(u32, Range<usize>)> {
        let first = u64::from(self.offset).max(bar_offset);
        let end = bar_offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX)).min(self.end().into());
        let within = |offset: u64| usize::try_from(offset.checked_sub(bar_offset)?).ok();
        let range = within(first)?..within(end)?;
        if range.is_empty() { None } else { Some((u32::try_from(first).ok()?, range)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_ascend_without_overlap_and_end_with_the_bar() {
        for pair in WINDOWS.windows(2) {
            assert!(pair[0].end() <= pair[1].offset, "{pair:x?}");
        }
        assert_eq!(LOG.end(), SIZE);
    }

    #[test]
    fn windows_are_whole_pages_so_that_each_can_be_mapped_alone() {
        for window in WINDOWS {
            assert_eq!((window.offset | window.length) & 0xfff, 0, "{window:x?}");
        }
    }

    #[test]
    fn a_window_contains_its_first_and_last_byte_and_no_other() {
        assert!(!DOORBELL.contains(0x4fff));
        assert!(DOORBELL.contains(0x5000));
        assert!(DOORBELL.contains(0x5fff));
        assert!(!DOORBELL.contains(0x6000));
    }

    #[test]
    fn an_access_is_in_a_window_with_those_bytes_that_are() {
        assert_eq!(DOORBELL.part(0x4fff, 1), None);
        assert_eq!(DOORBELL.part(0x4ffe, 4), Some((0x5000, 2..4)));
        assert_eq!(DOORBELL.part(0x5010, 4), Some((0x5010, 0..4)));
        assert_eq!(DOORBELL.part(0x5ffe, 4), Some((0x5ffe, 0..2)));
        assert_eq!(DOORBELL.part(0, 0x1_0000), Some((0x5000, 0x5000..0x6000)));
        assert_eq!(DOORBELL.part(0x6000, 4), None);
        assert_eq!(DOORBELL.part(0x5000, 0), None);
        assert_eq!(DOORBELL.part(u64::MAX, 4), None);
    }
}
