//! Memory that the guest and the register file share.

use crate::bar_map::Window;

/// Windows of BAR0 that the guest may have mapped ([`CONTROL_AREA`](crate::bar_map::CONTROL_AREA),
/// [`COMMAND_BUFFER`](crate::bar_map::COMMAND_BUFFER) and [`LOG`](crate::bar_map::LOG)): it reads and writes them at any
/// moment, without an access that we see. What is read twice may be two things.
///
/// Offsets are BAR0's; an access never leaves the window that it begins in.
pub trait Memory {
    /// Copies what is at `offset` now.
    fn read(&self, offset: u32, data: &mut [u8]);

    /// Changes what is at `offset`. Of two calls, the guest sees the first one's bytes first.
    fn write(&mut self, offset: u32, data: &[u8]);
}

/// Reads those bytes of an access that are in the window.
pub(super) fn read_window(memory: &impl Memory, window: Window, offset: u64, data: &mut [u8]) {
    let Some((at, range)) = window.part(offset, data.len()) else { return };
    if let Some(data) = data.get_mut(range) {
        memory.read(at, data);
    }
}

/// Writes those bytes of an access that are in the window.
pub(super) fn write_window(memory: &mut impl Memory, window: Window, offset: u64, data: &[u8]) {
    let Some((at, range)) = window.part(offset, data.len()) else { return };
    if let Some(data) = data.get(range) {
        memory.write(at, data);
    }
}

#[cfg(test)]
pub(super) mod pages {
    //! The windows as a test has them.

    use std::cell::RefCell;

    use super::Memory;
    use crate::bar_map::{CONTROL_AREA, SIZE, WINDOWS};

    /// From the control area to the end of BAR0, and what the register file has done to them since somebody last looked.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(in crate::frontend) struct Pages {
        bytes: Vec<u8>,
        reads: RefCell<Vec<(u32, usize)>>,
        writes: Vec<(u32, Vec<u8>)>,
    }

    impl Pages {
        /// Full of what nobody has cleared yet.
        pub(in crate::frontend) fn new() -> Self {
            let size = SIZE - CONTROL_AREA.offset;
            Self { bytes: vec![0x5a; size.try_into().expect("small")], reads: RefCell::default(), writes: Vec::new() }
        }

        /// What the guest reads.
        pub(in crate::frontend) fn at(&self, offset: u32, len: usize) -> &[u8] {
            &self.bytes[index(offset)..][..len]
        }

        /// What the guest writes.
        pub(in crate::frontend) fn put(&mut self, offset: u32, data: &[u8]) {
            self.bytes[index(offset)..][..data.len()].copy_from_slice(data);
        }

        pub(in crate::frontend) fn word(&self, offset: u32) -> u32 {
            u32::from_le_bytes(self.at(offset, 4).try_into().expect("four bytes"))
        }

        /// Where the register file has read, and how many bytes.
        pub(in crate::frontend) fn take_reads(&mut self) -> Vec<(u32, usize)> {
            self.reads.take()
        }

        /// What the register file has written, and where.
        pub(in crate::frontend) fn take_writes(&mut self) -> Vec<(u32, Vec<u8>)> {
            std::mem::take(&mut self.writes)
        }
    }

    fn index(offset: u32) -> usize {
        (offset - CONTROL_AREA.offset).try_into().expect("64 bits")
    }

    impl Memory for Pages {
        fn read(&self, offset: u32, data: &mut [u8]) {
            stays_in_its_window(offset, data.len());
            data.copy_from_slice(self.at(offset, data.len()));
            self.reads.borrow_mut().push((offset, data.len()));
        }

        fn write(&mut self, offset: u32, data: &[u8]) {
            stays_in_its_window(offset, data.len());
            self.put(offset, data);
            self.writes.push((offset, data.to_vec()));
        }
    }

    fn stays_in_its_window(offset: u32, len: usize) {
        let inside = WINDOWS.iter().any(|window| window.part(offset.into(), len) == Some((offset, 0..len)));
        assert!(inside, "{len} bytes at {offset:#x}");
    }
}
