//! The messages as they are on the socket: header, commands, bodies.
//!
//! Everything is little-endian ("the endianness of the host", and every host that serves this device is). Sizes are in bytes.

use nix::errno::Errno;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::refusal::Refusal;

/// Bytes in a header.
pub(super) const HEADER_SIZE: usize = size_of::<Header>();

/// The most data that one access may carry (`max_data_xfer_size`); the specification's default, so that a client that
/// does not negotiate it means the same.
pub(super) const MAX_DATA_XFER_SIZE: u32 = 1 << 20;

/// Bytes in the largest body that is received: a `REGION_WRITE` of [`MAX_DATA_XFER_SIZE`].
pub(super) const MAX_BODY_SIZE: usize = size_of::<RegionAccess>() + MAX_DATA_XFER_SIZE as usize;

const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 0x10;
const ERROR: u32 = 0x20;

/// The header before every message ("Header").
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) message_id: U16,
    pub(super) command: U16,
    /// The header included.
    pub(super) message_size: U32,
    pub(super) flags: U32,
    pub(super) error: U32,
}

/// What the type bits of a header say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageType {
    Command,
    Reply,
    Unknown(u32),
}

impl Header {
    pub(super) fn message_type(&self) -> MessageType {
        match self.flags.get() & TYPE_MASK {
            TYPE_COMMAND => MessageType::Command,
            TYPE_REPLY => MessageType::Reply,
            other => MessageType::Unknown(other),
        }
    }

    /// Whether the sender wants no reply, not even an error.
    pub(super) fn no_reply(&self) -> bool {
        self.flags.get() & NO_REPLY != 0
    }

    /// The header of the reply to this command. The size is set when the reply is built.
    pub(super) fn reply(&self) -> Self {
        Self { flags: TYPE_REPLY.into(), error: 0.into(), ..*self }
    }

    /// The header that is the whole error reply to this command.
    pub(super) fn error_reply(&self, errno: Errno) -> Self {
        // An errno is a small positive number.
        Self { flags: (TYPE_REPLY | ERROR).into(), error: (errno as i32).unsigned_abs().into(), ..*self }
    }
}

/// The commands of the specification ("Commands"). 14 is not assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Version,
    DmaMap,
    DmaUnmap,
    DeviceGetInfo,
    DeviceGetRegionInfo,
    DeviceGetRegionIoFds,
    DeviceGetIrqInfo,
    DeviceSetIrqs,
    RegionRead,
    RegionWrite,
    DmaRead,
    DmaWrite,
    DeviceReset,
    RegionWriteMulti,
    DeviceFeature,
    MigDataRead,
    MigDataWrite,
}

impl Command {
    /// The command with this number, if there is one.
    pub(super) fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Version,
            2 => Self::DmaMap,
            3 => Self::DmaUnmap,
            4 => Self::DeviceGetInfo,
            5 => Self::DeviceGetRegionInfo,
            6 => Self::DeviceGetRegionIoFds,
            7 => Self::DeviceGetIrqInfo,
            8 => Self::DeviceSetIrqs,
            9 => Self::RegionRead,
            10 => Self::RegionWrite,
            11 => Self::DmaRead,
            12 => Self::DmaWrite,
            13 => Self::DeviceReset,
            15 => Self::RegionWriteMulti,
            16 => Self::DeviceFeature,
            17 => Self::MigDataRead,
            18 => Self::MigDataWrite,
            _ => return None,
        })
    }
}

/// The fixed part of `VERSION`, request and reply; the rest is JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Version {
    pub(super) major: U16,
    pub(super) minor: U16,
}

/// The request of `DMA_MAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DmaMap {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    /// Into the file of the descriptor.
    pub(super) offset: U64,
    pub(super) address: U64,
    pub(super) size: U64,
}

/// The request of `DMA_UNMAP`, and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DmaUnmap {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) address: U64,
    pub(super) size: U64,
}

/// The request and reply of `DEVICE_GET_INFO` (`struct vfio_device_info` without its capabilities).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) num_regions: U32,
    pub(super) num_irqs: U32,
}

/// The request and reply of `DEVICE_GET_REGION_INFO` (`struct vfio_region_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RegionInfo {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) index: U32,
    pub(super) cap_offset: U32,
    pub(super) size: U64,
    /// For `mmap` on the region's descriptor; accesses by message count from the start of the region.
    pub(super) offset: U64,
}

/// What a capability of a region begins with (`struct vfio_info_cap_header`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct CapabilityHeader {
    pub(super) id: U16,
    pub(super) version: U16,
    /// Where the next one begins, counted from the [`RegionInfo`]; 0 in the last.
    pub(super) next: U32,
}

/// The fixed part of the capability that names the areas of a region that can be mapped
/// (`struct vfio_region_info_cap_sparse_mmap`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SparseMmap {
    pub(super) header: CapabilityHeader,
    pub(super) nr_areas: U32,
    pub(super) reserved: U32,
}

/// An area of a [`SparseMmap`] (`struct vfio_region_sparse_mmap_area`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SparseMmapArea {
    pub(super) offset: U64,
    pub(super) size: U64,
}

/// The request and reply of `DEVICE_GET_IRQ_INFO` (`struct vfio_irq_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct IrqInfo {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) index: U32,
    pub(super) count: U32,
}

/// The fixed part of the request of `DEVICE_SET_IRQS` (`struct vfio_irq_set`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct IrqSet {
    pub(super) argsz: U32,
    pub(super) flags: U32,
    pub(super) index: U32,
    pub(super) start: U32,
    pub(super) count: U32,
}

/// The fixed part of `REGION_READ` and `REGION_WRITE`, request and reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RegionAccess {
    pub(super) offset: U64,
    pub(super) region: U32,
    pub(super) count: U32,
}

/// Splits a body into its structure and what follows it.
pub(super) fn parse<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<(T, &[u8]), Refusal> {
    T::read_from_prefix(body).map_err(|_| {
        Refusal::invalid(format!("a body of at least {} bytes was expected, {} came", size_of::<T>(), body.len()))
    })
}

/// The size of a structure, as `argsz` and the like say it.
pub(super) fn structure_size<T>() -> U32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX).into()
}

/// Checks that the client has room for the `T` of the reply, or declares the `T` of the request.
pub(super) fn check_argsz<T>(argsz: U32) -> Result<(), Refusal> {
    if (argsz.get() as usize) < size_of::<T>() {
        return Err(Refusal::invalid(format!(
            "argsz of at least {} was expected, it is {}",
            size_of::<T>(),
            argsz.get()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u32) -> Header {
        Header {
            message_id: 0x1234.into(),
            command: 9.into(),
            message_size: 32.into(),
            flags: flags.into(),
            error: 0.into(),
        }
    }

    #[test]
    fn structures_have_the_sizes_of_the_specification() {
        assert_eq!(HEADER_SIZE, 16);
        assert_eq!(size_of::<Version>(), 4);
        assert_eq!(size_of::<DmaMap>(), 32);
        assert_eq!(size_of::<DmaUnmap>(), 24);
        assert_eq!(size_of::<DeviceInfo>(), 16);
        assert_eq!(size_of::<RegionInfo>(), 32);
        assert_eq!(size_of::<SparseMmap>(), 16);
        assert_eq!(size_of::<SparseMmapArea>(), 16);
        assert_eq!(size_of::<IrqInfo>(), 16);
        assert_eq!(size_of::<IrqSet>(), 20);
        assert_eq!(size_of::<RegionAccess>(), 16);
    }

    #[test]
    fn header_is_little_endian() {
        let bytes = [0x34, 0x12, 9, 0, 32, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(header(NO_REPLY).as_bytes(), bytes);
        assert!(header(NO_REPLY).no_reply());
    }

    #[test]
    fn error_reply_has_the_type_bit_the_error_bit_and_the_errno() {
        let reply = header(0).error_reply(Errno::EEXIST);
        assert_eq!(reply.message_type(), MessageType::Reply);
        assert_eq!(reply.flags.get(), 0x21);
        assert_eq!(reply.error.get(), 17);
        assert_eq!((reply.message_id.get(), reply.command.get()), (0x1234, 9));
    }

    #[test]
    fn type_bits_other_than_command_and_reply_are_unknown() {
        assert_eq!(header(0x30).message_type(), MessageType::Command);
        assert_eq!(header(2).message_type(), MessageType::Unknown(2));
        assert_eq!(header(0xf).message_type(), MessageType::Unknown(0xf));
    }

    #[test]
    fn commands_are_1_to_18_without_14() {
        let known: Vec<u16> = (0..=u16::MAX).filter(|&number| Command::from_number(number).is_some()).collect();
        assert_eq!(known, (1..=13).chain(15..=18).collect::<Vec<_>>());
    }

    #[test]
    fn short_body_is_refused_and_the_rest_is_kept() {
        assert_eq!(parse::<Version>(&[0, 0, 1]).unwrap_err().errno, Errno::EINVAL);
        let (version, rest) = parse::<Version>(&[1, 0, 2, 0, 7]).unwrap();
        assert_eq!((version.major.get(), version.minor.get(), rest), (1, 2, &[7][..]));
    }
}
