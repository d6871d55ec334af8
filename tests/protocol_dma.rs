//! DMA windows over a real socket. They are only kept in the books.
//!
//! Covers, of the areas of libvfio-user's Python tests: `test_dma_map` (too many; there is no largest size) and
//! `test_dma_unmap` (short request, argsz, flags, address, all). Other than there: too many windows are ENOSPC, and an
//! unknown flag of an unmapping is EINVAL.

mod common;

use common::ToyServer;
use common::raw_client::*;
use nix::libc::{EEXIST, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP};

const DIRTY_BITMAP: u32 = 1;
const ALL: u32 = 2;

#[test]
fn window_is_mapped_once_and_unmapped_exactly() {
    let server = ToyServer::start();
    let mut client = server.client();
    assert!(client.request(DMA_MAP, &dma_map(3, 0, 0, 0xa0000)).ok().is_empty());
    assert_eq!(client.request(DMA_MAP, &dma_map(1, 0, 0x9f000, 0x1000)).errno(), EEXIST);
    for (address, size) in [(0, 0x1000), (0x10000, 0x1000), (0, 0xa1000)] {
        assert_eq!(client.request(DMA_UNMAP, &dma_unmap(0, address, size)).errno(), ENOENT);
    }
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(0, 0, 0xa0000)).ok(), dma_unmap(0, 0, 0xa0000));
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(0, 0, 0xa0000)).errno(), ENOENT);
    client.request(DMA_MAP, &dma_map(3, 0, 0, 0xa0000)).ok();
    server.stop();
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let server = ToyServer::start();
    let mut client = server.client();
    client.request(DMA_MAP, &dma_map(3, 0, 0, 0x1000)).ok();
    for command in [DMA_MAP, DMA_UNMAP] {
        assert_eq!(client.request(command, &words(&[0, 0])).errno(), EINVAL);
        assert_eq!(client.request(command, &words(&[8, 0, 0, 0, 0, 0, 0, 0])).errno(), EINVAL);
    }
    assert_eq!(client.request(DMA_MAP, &dma_map(4, 0, 0x1000, 0x1000)).errno(), EINVAL);
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(4, 0, 0x1000)).errno(), EINVAL);
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(0x2323, 0, 0x1000)).errno(), EINVAL);
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(DIRTY_BITMAP, 0, 0x1000)).errno(), EOPNOTSUPP);
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(ALL, 0, 0x1000)).errno(), EINVAL);
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(ALL, 0x10000, 0x1000)).errno(), EINVAL);
    assert_eq!(client.request(DMA_UNMAP, &dma_unmap(ALL | DIRTY_BITMAP, 0, 0)).errno(), EINVAL);
    client.request(DMA_UNMAP, &dma_unmap(0, 0, 0x1000)).ok();
    server.stop();
}

#[test]
fn all_windows_are_unmapped_at_once() {
    let server = ToyServer::start();
    let mut client = server.client();
    for _ in 0..2 {
        for number in 0..16 {
            client.request(DMA_MAP, &dma_map(3, 0, number * 0x1000, 0x1000)).ok();
        }
        assert_eq!(client.request(DMA_UNMAP, &dma_unmap(ALL, 0, 0)).ok(), dma_unmap(ALL, 0, 0));
    }
    server.stop();
}

#[test]
fn windows_are_as_many_as_was_agreed() {
    let server = ToyServer::start();
    let mut client = server.connect();
    client.request(VERSION, &version(0, 0, r#"{"capabilities":{"max_dma_maps":16}}"#)).ok();
    for number in 0..16 {
        client.request(DMA_MAP, &dma_map(3, 0, number * 0x1000, 0x1000)).ok();
    }
    assert_eq!(client.request(DMA_MAP, &dma_map(3, 0, 0x100_0000, 0x1000)).errno(), ENOSPC);
    client.request(DMA_UNMAP, &dma_unmap(0, 0, 0x1000)).ok();
    client.request(DMA_MAP, &dma_map(3, 0, 0x100_0000, 0x1000)).ok();
    server.stop();
}
