//! The client's DMA windows, for the record: this server never touches guest memory ("VFIO_USER_DMA_MAP",
//! "VFIO_USER_DMA_UNMAP").

use std::collections::BTreeMap;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
};

use super::refusal::Refusal;
use super::version::Agreed;
use super::wire::{DmaMap, DmaUnmap};

/// The most windows at one time; the specification's default for `max_dma_maps`.
pub(super) const MAX_DMA_MAPS: usize = 65535;

/// The smallest page size, in bytes; the specification's default for `pgsizes`.
pub(super) const MIN_PAGE_SIZE: u64 = 4096;

/// The windows: address of the first byte to address of the last byte.
#[derive(Debug, Default)]
pub(super) struct DmaTable {
    windows: BTreeMap<u64, u64>,
}

impl DmaTable {
    /// Enters a window that overlaps no other.
    pub(super) fn map(&mut self, request: &DmaMap, agreed: &Agreed) -> Result<(), Refusal> {
        let flags = request.flags.get();
        if flags & !(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE) != 0 {
            return Err(Refusal::invalid(format!("a DMA window has unknown flags {flags:#x}")));
        }
        let (first, size) = (request.address.get(), request.size.get());
        let last = last_byte(first, size)?;
        // A page size is a power of two.
        if (first | size) & agreed.page_size.wrapping_neg() != (first | size) {
            return Err(Refusal::invalid(format!(
                "the DMA window {first:#x}+{size:#x} is not made of pages of {} bytes",
                agreed.page_size
            )));
        }
        if request.offset.get().checked_add(size).is_none() {
            return Err(Refusal::invalid(format!("the DMA window {first:#x}+{size:#x} goes over the end of its file")));
        }
        // The windows do not overlap each other, so only the last that begins before this one's end can reach into it.
        if self.windows.range(..=last).next_back().is_some_and(|(_, &other)| other >= first) {
            return Err(Refusal::new(Errno::EEXIST, format!("the DMA window {first:#x}+{size:#x} overlaps another")));
        }
        if self.windows.len() >= agreed.max_dma_maps {
            return Err(Refusal::new(Errno::ENOSPC, format!("more than {} DMA windows", agreed.max_dma_maps)));
        }
        self.windows.insert(first, last);
        Ok(())
    }

    /// Removes exactly the window that is named, or all.
    pub(super) fn unmap(&mut self, request: &DmaUnmap) -> Result<(), Refusal> {
        let (first, size) = (request.address.get(), request.size.get());
        match request.flags.get() {
            0 => {
                let last = last_byte(first, size)?;
                if self.windows.get(&first) != Some(&last) {
                    return Err(Refusal::new(Errno::ENOENT, format!("there is no DMA window {first:#x}+{size:#x}")));
                }
                self.windows.remove(&first);
                Ok(())
            }
            VFIO_DMA_UNMAP_FLAG_ALL if first == 0 && size == 0 => {
                self.windows.clear();
                Ok(())
            }
            VFIO_DMA_UNMAP_FLAG_ALL => Err(Refusal::invalid("unmapping all DMA windows names one of them")),
            VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP => Err(Refusal::unsupported("dirty pages are not tracked")),
            flags => Err(Refusal::invalid(format!("unmapping of DMA has unknown flags {flags:#x}"))),
        }
    }
}

/// The address of the last byte of a window.
fn last_byte(first: u64, size: u64) -> Result<u64, Refusal> {
    size.checked_sub(1).and_then(|last| first.checked_add(last)).ok_or_else(|| {
        Refusal::invalid(format!("the DMA window {first:#x}+{size:#x} is empty or goes over the address space"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(address: u64, size: u64) -> DmaMap {
        DmaMap { argsz: 32.into(), flags: 3.into(), offset: 0.into(), address: address.into(), size: size.into() }
    }

    fn unmap(flags: u32, address: u64, size: u64) -> DmaUnmap {
        DmaUnmap { argsz: 24.into(), flags: flags.into(), address: address.into(), size: size.into() }
    }

    fn errno(result: Result<(), Refusal>) -> Errno {
        result.unwrap_err().errno
    }

    #[test]
    fn overlap_in_any_form_exists_already() {
        let (mut table, agreed) = (DmaTable::default(), Agreed::default());
        table.map(&map(0x10000, 0x4000), &agreed).unwrap();
        for (address, size) in [
            (0x10000, 0x4000),
            (0x10000, 0x1000),
            (0x11000, 0x1000),
            (0xf000, 0x2000),
            (0x13000, 0x2000),
            (0xf000, 0x10000),
            (0, 0xffff_ffff_ffff_f000),
        ] {
            assert_eq!(errno(table.map(&map(address, size), &agreed)), Errno::EEXIST, "{address:#x}+{size:#x}");
        }
        table.map(&map(0xf000, 0x1000), &agreed).unwrap();
        table.map(&map(0x14000, 0x1000), &agreed).unwrap();
    }

    #[test]
    fn windows_that_are_no_pages_or_overflow_are_refused() {
        let (mut table, agreed) = (DmaTable::default(), Agreed::default());
        for (address, size) in [
            (0, 0),
            (0x800, 0x1000),
            (0x1000, 0x801),
            (u64::MAX - 0xfff, 0x2000),
            (0x1000, u64::MAX),
            (0x2000, u64::MAX - 0xfff),
        ] {
            assert_eq!(errno(table.map(&map(address, size), &agreed)), Errno::EINVAL, "{address:#x}+{size:#x}");
        }
        let over_the_file = DmaMap { offset: u64::MAX.into(), ..map(0, 0x1000) };
        assert_eq!(errno(table.map(&over_the_file, &agreed)), Errno::EINVAL);
        assert_eq!(errno(table.map(&DmaMap { flags: 8.into(), ..map(0, 0x1000) }, &agreed)), Errno::EINVAL);
        table.map(&map(u64::MAX - 0xfff, 0x1000), &agreed).unwrap();
        assert_eq!(table.windows.len(), 1);
    }

    #[test]
    fn larger_agreed_pages_are_wanted() {
        let mut table = DmaTable::default();
        let agreed = Agreed { page_size: 0x10000, ..Agreed::default() };
        assert_eq!(errno(table.map(&map(0x1000, 0x10000), &agreed)), Errno::EINVAL);
        table.map(&map(0x10000, 0x10000), &agreed).unwrap();
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = DmaTable::default();
        let agreed = Agreed { max_dma_maps: 2, ..Agreed::default() };
        table.map(&map(0, 0x1000), &agreed).unwrap();
        table.map(&map(0x1000, 0x1000), &agreed).unwrap();
        assert_eq!(errno(table.map(&map(0x2000, 0x1000), &agreed)), Errno::ENOSPC);
        table.unmap(&unmap(0, 0, 0x1000)).unwrap();
        table.map(&map(0x2000, 0x1000), &agreed).unwrap();
    }

    #[test]
    fn unmap_matches_exactly() {
        let (mut table, agreed) = (DmaTable::default(), Agreed::default());
        table.map(&map(0x1000, 0x2000), &agreed).unwrap();
        for (address, size) in [(0x1000, 0x1000), (0x2000, 0x1000), (0, 0x3000), (0x1000, 0x3000)] {
            assert_eq!(errno(table.unmap(&unmap(0, address, size))), Errno::ENOENT);
        }
        assert_eq!(errno(table.unmap(&unmap(0, 0, 0))), Errno::EINVAL);
        table.unmap(&unmap(0, 0x1000, 0x2000)).unwrap();
        assert_eq!(errno(table.unmap(&unmap(0, 0x1000, 0x2000))), Errno::ENOENT);
    }

    #[test]
    fn unmap_all_empties_the_table_and_names_no_window() {
        let (mut table, agreed) = (DmaTable::default(), Agreed::default());
        table.map(&map(0x1000, 0x1000), &agreed).unwrap();
        table.map(&map(0x5000, 0x1000), &agreed).unwrap();
        assert_eq!(errno(table.unmap(&unmap(VFIO_DMA_UNMAP_FLAG_ALL, 0x1000, 0x1000))), Errno::EINVAL);
        table.unmap(&unmap(VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)).unwrap();
        assert!(table.windows.is_empty());
        table.unmap(&unmap(VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)).unwrap();
    }

    #[test]
    fn dirty_bitmap_and_unknown_flags_are_refused() {
        let mut table = DmaTable::default();
        let dirty = unmap(VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, 0, 0x1000);
        assert_eq!(errno(table.unmap(&dirty)), Errno::EOPNOTSUPP);
        assert_eq!(errno(table.unmap(&unmap(4, 0, 0x1000))), Errno::EINVAL);
    }
}
