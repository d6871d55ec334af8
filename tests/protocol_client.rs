//! The independent client of the `vfio_user` crate against the server: version, regions with what can be mapped, accesses,
//! interrupts, DMA and reset, as a user of another implementation has them.

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use common::ToyServer;
use common::toy::{AREAS, FILE_OFFSET, MAPPABLE, MAPPABLE_SIZE, RAM, RAM_SIZE, READ_ONLY, SLOW, SMALL_SIZE};
use nix::sys::eventfd::EventFd;
use vfio_user::{Client, Error};

#[test]
fn independent_client_sees_the_regions() -> Result<(), Error> {
    let server = ToyServer::start();
    let client = Client::new(&server.path())?;
    let region = client.region(RAM).unwrap();
    assert_eq!((region.size, region.flags), (RAM_SIZE as u64, 3));
    assert!(region.file_offset.is_none() && region.sparse_areas.is_empty());
    assert_eq!(client.region(READ_ONLY).unwrap().flags, 1);
    assert_eq!(client.region(SLOW).unwrap().size, SMALL_SIZE);
    assert_eq!(client.region(8).unwrap().size, 0);
    assert!(client.region(9).is_none());
    server.stop();
    Ok(())
}

#[test]
fn independent_client_finds_what_it_may_map() -> Result<(), Error> {
    let server = ToyServer::start();
    let mut client = Client::new(&server.path())?;
    client.region_write(MAPPABLE, AREAS[0].offset, &[9; 8])?;
    let region = client.region(MAPPABLE).unwrap();
    assert_eq!((region.size, region.flags), (MAPPABLE_SIZE, 15));
    let areas: Vec<_> = region.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!(areas, AREAS.map(|area| (area.offset, area.size)));
    let file = region.file_offset.as_ref().unwrap();
    assert_eq!(file.start(), FILE_OFFSET);
    let mut data = [0; 8];
    file.file().read_exact_at(&mut data, FILE_OFFSET + AREAS[0].offset).unwrap();
    assert_eq!(data, [9; 8]);
    server.stop();
    Ok(())
}

#[test]
fn independent_client_reads_writes_and_resets() -> Result<(), Error> {
    let server = ToyServer::start();
    let mut client = Client::new(&server.path())?;
    client.region_write(RAM, 0x1000, &[1, 2, 3, 4])?;
    let mut data = [0; 4];
    client.region_read(RAM, 0x1000, &mut data)?;
    assert_eq!(data, [1, 2, 3, 4]);
    client.reset()?;
    client.region_read(RAM, 0x1000, &mut data)?;
    assert_eq!(data, [0; 4]);
    assert_eq!(server.control.state().resets, 1);
    server.stop();
    Ok(())
}

#[test]
fn independent_client_sets_up_interrupts_and_dma() -> Result<(), Error> {
    let server = ToyServer::start();
    let mut client = Client::new(&server.path())?;
    let info = client.get_irq_info(0)?;
    assert_eq!((info.count, info.flags), (1, 7));
    let info = client.get_irq_info(1)?;
    assert_eq!((info.count, info.flags), (4, 1));

    let eventfd = EventFd::from_value(0).unwrap();
    client.set_irqs(0, 0x24, 0, 1, &[eventfd.as_raw_fd()])?;
    client.set_irqs(0, 0x21, 0, 1, &[])?;
    assert_eq!(eventfd.read().unwrap(), 1, "the client has triggered its own interrupt");
    client.set_irqs(0, 0x21, 0, 0, &[])?;

    let memory = tempfile::tempfile().unwrap();
    client.dma_map(0, 0x10000, 0x1000, memory.as_raw_fd())?;
    client.dma_unmap(0x10000, 0x1000)?;
    let mut data = [7; 1];
    client.region_read(RAM, 0, &mut data)?;
    assert_eq!(data, [0], "still in step");
    server.stop();
    Ok(())
}

#[test]
fn independent_clients_are_served_one_after_another() -> Result<(), Error> {
    let server = ToyServer::start();
    for number in 0..10 {
        let mut client = Client::new(&server.path())?;
        let mut data = [0; 1];
        client.region_read(RAM, 5, &mut data)?;
        assert_eq!(data, [number], "the device has kept its state");
        client.region_write(RAM, 5, &[number + 1])?;
    }
    server.stop();
    Ok(())
}
