//! Memory of BAR0 that the VMM maps into its guest, so that a command needs no access for each of its bytes.
//!
//! It is a file without a name (memfd) that both sides map. Who has the file could cut it short, and the other side would
//! die of the next look at what is gone: so its size is sealed before anybody else gets it. It is mapped here too, and not
//! written by system calls: those wait for whoever writes to the file at the time, and that can be a client whose own bytes
//! never arrive.
//!
//! The other side writes whenever it likes. What is read here is a copy, and has to be judged as that.

#![forbid(unsafe_code)]
// A number from outside never overflows unseen. Tests may calculate.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, VolatileMemory, VolatileSlice};
use zeroize::Zeroizing;

use crate::bar_map::{self, Window};
use crate::frontend::Memory;

/// Bytes of the file. It is laid out as BAR0, so that an offset is the same in both; what nobody touches takes no memory.
const SIZE: usize = bar_map::SIZE as usize;

/// Linux 6.3: nobody can make the file a program. Some systems want that said of each file.
const MFD_NOEXEC_SEAL: u32 = 0x8;

/// Pages shared with one client.
#[derive(Debug)]
pub struct SharedPages {
    pages: Pages,
    /// Whether they are to be mapped, if the system lets them.
    mappable: bool,
}

#[derive(Debug)]
enum Pages {
    Shared(MmapRegion),
    /// Accesses by message alone reach them.
    Private(Box<[u8]>),
}

impl SharedPages {
    /// Pages of zeros, which nobody else has.
    #[must_use]
    pub fn new() -> Self {
        let pages = create().map_or_else(
            |error| {
                log::warn!("no memory can be shared with the next client, which makes the TPM slower for it: {error}");
                Pages::private()
            },
            Pages::Shared,
        );
        Self { pages, mappable: true }
    }

    /// Pages of zeros that nobody else will have: the guest reaches them by accesses alone.
    #[must_use]
    pub fn unmappable() -> Self {
        Self { pages: Pages::private(), mappable: false }
    }

    /// Gives up the memory to whoever else may have it, and goes on in memory that nobody has, with the same in these
    /// windows and zeros elsewhere.
    pub fn renew(&mut self, windows: &[Window]) {
        if !self.mappable {
            return;
        }
        let mut new = Self::new();
        for window in windows {
            let mut page = Zeroizing::new(vec![0; window.length as usize]);
            self.read(window.offset, &mut page);
            new.write(window.offset, &page);
        }
        *self = new;
    }

    /// The file to map, with BAR0's layout; `None` if these pages cannot be mapped.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.pages {
            Pages::Shared(region) => region.file_offset().map(|file| file.file().as_fd()),
            Pages::Private(_) => None,
        }
    }

    /// `length` bytes at `offset`, as far as they are inside.
    fn slice(region: &MmapRegion, offset: u32, length: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok()?;
        region.get_slice(offset, length.min(SIZE.checked_sub(offset)?)).ok()
    }
}

impl Pages {
    fn private() -> Self {
        Self::Private(vec![0; SIZE].into_boxed_slice())
    }
}

impl Default for SharedPages {
    fn default() -> Self {
        Self::new()
    }
}

/// What is not inside reads ones, and writes to it are dropped.
impl Memory for SharedPages {
    fn read(&self, offset: u32, data: &mut [u8]) {
        data.fill(0xff);
        match &self.pages {
            Pages::Shared(region) => {
                if let Some(slice) = Self::slice(region, offset, data.len()) {
                    slice.copy_to(data);
                }
            }
            Pages::Private(bytes) => {
                for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset as usize)) {
                    *to = *from;
                }
            }
        }
        // What is read next was written after what was read here.
        fence(Ordering::SeqCst);
    }

    fn write(&mut self, offset: u32, data: &[u8]) {
        // Who sees this write sees all that were made before it.
        fence(Ordering::SeqCst);
        match &mut self.pages {
            Pages::Shared(region) => {
                if let Some(slice) = Self::slice(region, offset, data.len()) {
                    slice.copy_from(data);
                }
            }
            Pages::Private(bytes) => {
                for (to, from) in bytes.iter_mut().skip(offset as usize).zip(data) {
                    *to = *from;
                }
            }
        }
    }
}

fn create() -> io::Result<MmapRegion> {
    let sealable = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create(c"tpm", sealable | MFdFlags::from_bits_retain(MFD_NOEXEC_SEAL)).or_else(|errno| {
        // An older kernel does not know the flag.
        if errno == Errno::EINVAL { memfd_create(c"tpm", sealable) } else { Err(errno) }
    })?;
    let file = File::from(file);
    file.set_len(u64::from(bar_map::SIZE))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
    MmapRegion::from_file(FileOffset::new(file, 0), SIZE).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::fcntl::{FallocateFlags, fallocate};

    use super::*;

    fn peer(pages: &SharedPages) -> File {
        File::from(pages.file().expect("a file").try_clone_to_owned().unwrap())
    }

    fn read(pages: &SharedPages, offset: u32, length: usize) -> Vec<u8> {
        let mut data = vec![0xaa; length];
        pages.read(offset, &mut data);
        data
    }

    #[test]
    fn both_sides_see_the_same_memory() {
        let mut pages = SharedPages::new();
        pages.write(0x9000, b"response");
        let mut seen = [0; 8];
        peer(&pages).read_exact_at(&mut seen, 0x9000).unwrap();
        assert_eq!(&seen, b"response");
        peer(&pages).write_all_at(b"command", 0x9ff0).unwrap();
        assert_eq!(read(&pages, 0x9ff0, 7), b"command");
    }

    #[test]
    fn the_other_side_can_neither_cut_the_file_nor_let_it_grow_nor_change_the_seals() {
        let pages = SharedPages::new();
        let peer = peer(&pages);
        for length in [0, 0x9000, u64::from(bar_map::SIZE) + 1] {
            assert_eq!(peer.set_len(length).unwrap_err().raw_os_error(), Some(nix::libc::EPERM), "{length}");
        }
        let seal = fcntl(&peer, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE));
        assert_eq!(seal, Err(Errno::EPERM));
    }

    #[test]
    fn a_hole_that_the_other_side_makes_reads_zero() {
        let mut pages = SharedPages::new();
        pages.write(0x9000, &[1; 16]);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(peer(&pages), hole, 0, i64::from(bar_map::SIZE)).unwrap();
        assert_eq!(read(&pages, 0x9000, 16), [0; 16]);
        pages.write(0x9000, &[2]);
        assert_eq!(read(&pages, 0x9000, 2), [2, 0]);
    }

    #[test]
    fn renewed_pages_have_the_same_contents_and_are_nobody_elses() {
        let mut pages = SharedPages::new();
        pages.write(0x8040, &[1, 2]);
        pages.write(0x9ffe, &[3, 4]);
        pages.write(0xa000, &[6]);
        let former = peer(&pages);
        pages.renew(&[bar_map::CONTROL_AREA, bar_map::COMMAND_BUFFER]);
        assert_eq!(read(&pages, 0xa000, 1), [0], "what no interface has is not handed on");
        assert_eq!((read(&pages, 0x8040, 2), read(&pages, 0x9ffe, 2)), (vec![1, 2], vec![3, 4]));
        former.write_all_at(&[9; 2], 0x8040).unwrap();
        pages.write(0x9ffe, &[5]);
        let mut seen = [0; 2];
        former.read_exact_at(&mut seen, 0x9ffe).unwrap();
        assert_eq!((read(&pages, 0x8040, 2), seen), (vec![1, 2], [3, 4]));
    }

    #[test]
    fn what_is_not_inside_reads_ones_and_takes_nothing() {
        for mut pages in [SharedPages::new(), SharedPages::unmappable()] {
            pages.write(bar_map::SIZE - 2, &[1, 2, 3, 4]);
            assert_eq!(read(&pages, bar_map::SIZE - 2, 4), [1, 2, 0xff, 0xff]);
            pages.write(u32::MAX, &[1]);
            assert_eq!(read(&pages, u32::MAX, 2), [0xff, 0xff]);
        }
    }

    #[test]
    fn pages_that_cannot_be_mapped_are_memory_all_the_same() {
        let mut pages = SharedPages::unmappable();
        pages.write(0x9ffe, &[1, 2]);
        assert_eq!(read(&pages, 0x9ffd, 4), [0, 1, 2, 0]);
        assert!(pages.file().is_none());
    }
}
