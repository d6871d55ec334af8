//! Memory that the guest shares with the device.

use std::cell::RefCell;
use std::collections::VecDeque;

use vfio_user_tpm::frontend::Memory;

/// What the guest writes, and where.
pub type Race = (u32, Vec<u8>);

/// The control area's page and the buffer. Each look of the device at it gives the guest the time for one write.
pub struct Pages {
    pub bytes: RefCell<Vec<u8>>,
    pub races: RefCell<VecDeque<Race>>,
}

impl Pages {
    pub fn new() -> Self {
        Self { bytes: vec![0; 0x2000].into(), races: RefCell::default() }
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

/// Panics if that is not in one page.
fn within(offset: u32, length: usize) -> std::ops::Range<usize> {
    let start = offset.checked_sub(0x8000).expect("in the memory") as usize;
    assert!(start % 0x1000 + length <= 0x1000, "{length} bytes at {offset:#x}");
    start..start + length
}
