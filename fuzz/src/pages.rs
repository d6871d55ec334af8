//! Memory that the guest shares with the device.

use std::cell::RefCell;
use std::collections::VecDeque;

use vfio_user_tpm::frontend::Memory;

/// Bytes from the control area's page to the end of BAR0.
pub const SIZE: usize = 0x1_8000;

/// What the guest writes, and where.
pub type Race = (u32, Vec<u8>);

/// From the control area's page to the end of BAR0. Each look of the device at it gives the guest the time for one write.
pub struct Pages {
    pub bytes: RefCell<Vec<u8>>,
    pub races: RefCell<VecDeque<Race>>,
}

impl Pages {
    pub fn new() -> Self {
        Self { bytes: vec![0; SIZE].into(), races: RefCell::default() }
    }

    pub fn put(&self, offset: u32, data: &[u8]) {
        self.bytes.borrow_mut()[within(offset, data.len())].copy_from_slice(data);
    }
}

impl Memory for Pages {
    fn read(&self, offset: u32, data: &mut [u8]) {
        data.copy_from_slice(&self.bytes.borrow()[within(offset, data.len())]);
        let race = self.races.borrow_mut().pop_front();
        if let Some((offset, data)) = race {
            self.put(offset, &data);
        }
    }

    fn write(&mut self, offset: u32, data: &[u8]) {
        self.put(offset, data);
    }
}

/// Panics if that is not in one window.
fn within(offset: u32, length: usize) -> std::ops::Range<usize> {
    let start = offset.checked_sub(0x8000).expect("in the memory") as usize;
    let window = if offset < 0x1_0000 { 0x1000 } else { 0x1_0000 };
    assert!(offset as usize % window + length <= window, "{length} bytes at {offset:#x}");
    start..start + length
}
