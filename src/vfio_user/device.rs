//! What a device must answer. Nothing here knows which device it is.

use std::error::Error;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use bitflags::bitflags;
use vfio_bindings::bindings::vfio::{VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE};

/// What the device says of itself as a whole (`DEVICE_GET_INFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Number of regions, at least 9 (`VFIO_PCI_NUM_REGIONS`) for a PCI device.
    pub regions: u32,
    /// Number of interrupt indices, 5 (`VFIO_PCI_NUM_IRQS`) for a PCI device.
    pub irqs: u32,
}

bitflags! {
    /// What a client may do with a region (`VFIO_REGION_INFO_FLAG_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// The region can be read.
        const READ = VFIO_REGION_INFO_FLAG_READ;
        /// The region can be written.
        const WRITE = VFIO_REGION_INFO_FLAG_WRITE;
    }
}

/// One region (`DEVICE_GET_REGION_INFO`); size 0 means that the device has none at this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Size in bytes.
    pub size: u64,
    /// Permitted accesses.
    pub flags: RegionFlags,
}

impl Region {
    /// No region at this index.
    pub const NONE: Self = Self { size: 0, flags: RegionFlags::empty() };
}

/// Memory of a region that the client may map, so that it reaches it without asking.
///
/// Accesses by message to the same bytes still come, and have to see the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    /// The file that holds the memory. It has to reach to the end of the last area: a client that touches what is beyond
    /// the end of the file dies of it.
    pub file: BorrowedFd<'a>,
    /// Where the first byte of the region is, or would be, in the file: a multiple of the page size, in bytes.
    pub offset: u64,
    /// What can be mapped.
    pub areas: &'a [MappableArea],
}

/// A part of a region that the client may map: whole pages inside the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappableArea {
    /// From the start of the region, in bytes.
    pub offset: u64,
    /// In bytes.
    pub size: u64,
}

/// One interrupt index (`DEVICE_GET_IRQ_INFO`); count 0 means that the device has none at this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq {
    /// Number of vectors at this index.
    pub count: u32,
    /// The client can mask and unmask (`VFIO_IRQ_INFO_MASKABLE`).
    pub maskable: bool,
    /// The interrupt masks itself when it fires (`VFIO_IRQ_INFO_AUTOMASKED`): a level-triggered line.
    pub automasked: bool,
}

/// Where a device says what its interrupts want.
pub trait Interrupts {
    /// The line `index` (an automasked index with one vector) is asserted. Whatever is between the line and the client's
    /// interrupt controller - whether it was heard already, is masked, or leads nowhere - is not the device's business.
    fn line(&mut self, index: u32);

    /// The device sends the message `vector` of `index`, once for each call. It is lost if the client has not set it up,
    /// and waits while it is masked.
    fn message(&mut self, index: u32, vector: u32);
}

/// The device's own name for an access that it answers later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// Whether an access is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// The access is done; for a read, the data is there.
    Now,
    /// The reply waits. The server asks again, with [`Device::resume`], after each [`Device::wake`] and each message.
    Later(Ticket),
}

/// Why a device cannot go on.
pub type DeviceFailure = Box<dyn Error + Send + Sync>;

/// A device that a [`super::Server`] offers.
///
/// The server has checked every access against the region's size and flags before it calls. What a guest can cause is
/// answered with data, never with an error: some clients hang on errors. Nothing here may block.
pub trait Device {
    /// Numbers of regions and interrupts.
    fn info(&self) -> DeviceInfo;

    /// The region at `index`, below [`DeviceInfo::regions`].
    fn region(&self, index: u32) -> Region;

    /// The interrupts at `index`, below [`DeviceInfo::irqs`].
    fn irq(&self, index: u32) -> Irq;

    /// What of region `index` the client may map. Such a region permits reading and writing.
    fn mapping(&self, _index: u32) -> Option<Mapping<'_>> {
        None
    }

    /// Fills `data` (1 byte up to the whole region) from `offset` of region `index`.
    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Answer;

    /// Takes `data` at `offset` of region `index`.
    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer;

    /// Goes on with an access answered by [`Answer::Later`]; `data` has the size of the read, and is empty for a write.
    /// With `must_answer` the connection can wait no longer and the answer has to be [`Answer::Now`].
    fn resume(&mut self, ticket: Ticket, data: &mut [u8], must_answer: bool) -> Answer;

    /// `DEVICE_RESET`: back to the state after power-on. Cheap, and the same when it comes twice.
    fn reset(&mut self);

    /// Says which lines are asserted now, and which messages are due since the last time.
    ///
    /// Asked after everything that can change it: every message of the client, every [`wake`](Self::wake), and when an
    /// interrupt is unmasked, which raises a line again that is still asserted. Not asked while there is no client.
    fn interrupts(&mut self, _interrupts: &mut dyn Interrupts) {}

    /// A client has connected and agreed on a version.
    fn connected(&mut self) {}

    /// The client is gone; what it was owed was asked for. The device keeps its state.
    fn disconnected(&mut self) {}

    /// Called when a source that the device registered with the server's poll became ready, or its
    /// [`deadline`](Self::deadline) passed.
    fn wake(&mut self) {}

    /// When the device wants to be woken at the latest. Once it has passed and [`wake`](Self::wake) was called, it has to
    /// be another.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The server is about to end: begin whatever must be finished first. No access follows.
    fn stop(&mut self) {}

    /// Whether everything begun by [`stop`](Self::stop) is finished. Asked only after that, and after each
    /// [`wake`](Self::wake).
    fn stopped(&self) -> bool {
        true
    }

    /// Why the device can serve no client any more, if that is so; asked before each wait for events. The server then stops
    /// the device and ends with this error.
    fn take_failure(&mut self) -> Option<DeviceFailure> {
        None
    }
}
