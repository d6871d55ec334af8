//! Regions as the client is told of them, and what it may map of them ("VFIO_USER_DEVICE_GET_REGION_INFO").

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
};
use zerocopy::IntoBytes;

use super::device::{Device, Mapping, Region, RegionFlags};
use super::dma::MIN_PAGE_SIZE;
use super::refusal::Refusal;
use super::version::Agreed;
use super::wire::{self, CapabilityHeader, RegionInfo, SparseMmap, SparseMmapArea};

/// Answers the body of a request with the body of the reply, and the descriptor that goes with it.
///
/// What can be mapped is told only to a client that has room for all of it; another is told how much that takes, and of
/// a region that cannot be mapped, so that it either asks again or does not map what it has not seen the bounds of.
pub(super) fn region_info(
    body: &[u8],
    agreed: &Agreed,
    device: &dyn Device,
) -> Result<(Vec<u8>, Option<OwnedFd>), Refusal> {
    let (asked, _) = wire::parse::<RegionInfo>(body)?;
    wire::check_argsz::<RegionInfo>(asked.argsz)?;
    let index = asked.index.get();
    if index >= device.info().regions {
        return Err(Refusal::invalid(format!("there is no region {index}")));
    }
    let region = device.region(index);
    let mapping = if agreed.max_msg_fds > 0 { device.mapping(index) } else { None };
    let mapping = mapping.filter(|mapping| {
        let fits = is_mappable(region, mapping);
        if !fits {
            log::error!("region {index} of the device is not offered for mapping: {mapping:?} does not fit {region:?}");
        }
        fits
    });

    let capability = mapping.as_ref().map(sparse_mmap).unwrap_or_default();
    let full_size = u32::try_from(size_of::<RegionInfo>().saturating_add(capability.len())).unwrap_or(u32::MAX);
    let mut reply = RegionInfo {
        argsz: full_size.into(),
        flags: region.flags.bits().into(),
        index: asked.index,
        cap_offset: 0.into(),
        size: region.size.into(),
        offset: 0.into(),
    };
    let Some(mapping) = mapping.filter(|_| full_size <= asked.argsz.get()) else {
        return Ok((reply.as_bytes().to_vec(), None));
    };
    let file = mapping.file.try_clone_to_owned().map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw);
        Refusal::new(errno, format!("the descriptor of region {index} cannot be copied: {error}"))
    })?;
    reply.flags |= VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS;
    // The only capability follows at once.
    reply.cap_offset = wire::structure_size::<RegionInfo>();
    reply.offset = mapping.offset.into();
    Ok(([reply.as_bytes(), &capability].concat(), Some(file)))
}

/// Whether a client can map what the device offers and come to no harm by it.
fn is_mappable(region: Region, mapping: &Mapping<'_>) -> bool {
    let whole_pages = |value: u64| value % MIN_PAGE_SIZE == 0;
    region.flags.contains(RegionFlags::READ | RegionFlags::WRITE)
        && whole_pages(mapping.offset)
        && !mapping.areas.is_empty()
        && mapping.areas.iter().all(|area| {
            area.size > 0
                && whole_pages(area.offset | area.size)
                && area.offset.checked_add(area.size).is_some_and(|end| end <= region.size)
        })
}

/// The capability that names the areas. It is given also if the whole region can be mapped: one form for all.
fn sparse_mmap(mapping: &Mapping<'_>) -> Vec<u8> {
    let fixed = SparseMmap {
        header: CapabilityHeader {
            id: u16::try_from(VFIO_REGION_INFO_CAP_SPARSE_MMAP).unwrap_or(u16::MAX).into(),
            version: 1.into(),
            next: 0.into(),
        },
        nr_areas: u32::try_from(mapping.areas.len()).unwrap_or(u32::MAX).into(),
        reserved: 0.into(),
    };
    let mut capability = fixed.as_bytes().to_vec();
    for area in mapping.areas {
        let area = SparseMmapArea { offset: area.offset.into(), size: area.size.into() };
        capability.extend_from_slice(area.as_bytes());
    }
    capability
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::super::device::MappableArea;
    use super::*;

    const REGION: Region = Region { size: 0x4000, flags: RegionFlags::all() };

    fn fits(region: Region, offset: u64, areas: &[(u64, u64)]) -> bool {
        let file = File::open("/dev/null").unwrap();
        let areas: Vec<_> = areas.iter().map(|&(offset, size)| MappableArea { offset, size }).collect();
        is_mappable(region, &Mapping { file: file.as_fd(), offset, areas: &areas })
    }

    #[test]
    fn whole_pages_inside_a_region_for_reading_and_writing_can_be_mapped() {
        assert!(fits(REGION, 0x1000, &[(0, 0x4000)]));
        assert!(fits(REGION, 0, &[(0x1000, 0x1000), (0x3000, 0x1000)]));
    }

    #[test]
    fn what_would_harm_the_client_is_not_offered() {
        assert!(!fits(REGION, 0, &[]));
        assert!(!fits(REGION, 0x800, &[(0, 0x1000)]));
        assert!(!fits(REGION, 0, &[(0, 0)]));
        assert!(!fits(REGION, 0, &[(0x800, 0x1000)]));
        assert!(!fits(REGION, 0, &[(0, 0x800)]));
        assert!(!fits(REGION, 0, &[(0, 0x1000), (0x4000, 0x1000)]));
        assert!(!fits(REGION, 0, &[(u64::MAX - 0xfff, 0x1000)]));
        assert!(!fits(Region { flags: RegionFlags::READ, ..REGION }, 0, &[(0, 0x1000)]));
        assert!(!fits(Region::NONE, 0, &[(0, 0x1000)]));
    }

    #[test]
    fn capability_is_as_linux_has_it() {
        let file = File::open("/dev/null").unwrap();
        let areas = [MappableArea { offset: 0x1000, size: 0x2000 }];
        let bytes = sparse_mmap(&Mapping { file: file.as_fd(), offset: 0, areas: &areas });
        let expected = [[1_u16, 1, 0, 0, 1, 0, 0, 0].map(u16::to_le_bytes).concat(), {
            [0x1000_u64, 0x2000].map(u64::to_le_bytes).concat()
        }];
        assert_eq!(bytes, expected.concat());
    }
}
