//! Regions over a real socket: what the client is told of them, and what it may map.
//!
//! Covers, of the areas of libvfio-user's Python tests: `test_device_get_region_info` (short request, argsz, index,
//! larger argsz, capabilities with too small and with enough argsz), `test_device_get_region_info_zero_size`,
//! `test_device_get_info`. Other than there: a client that has no room for the capabilities is told how much it needs,
//! and is given neither the MMAP flag nor a descriptor before it asks with that; a client that takes no descriptors finds
//! a region that cannot be mapped instead of ENOSPC.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::ToyServer;
use common::raw_client::*;
use common::toy::{AREAS, BADLY_MAPPABLE, FILE_OFFSET, MAPPABLE, MAPPABLE_SIZE, RAM, RAM_SIZE};
use nix::libc::EINVAL;

const READ_WRITE: u32 = 3;
const MMAP: u32 = 4;
const CAPS: u32 = 8;

/// Bytes of the answer about [`MAPPABLE`] with its capability.
const FULL: u32 = 80;

/// The body of a request that has room for `argsz` bytes.
fn ask(index: u32, argsz: u32) -> Vec<u8> {
    words(&[argsz, 0, index, 0, 0, 0, 0, 0])
}

fn answer(argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64, offset: u64) -> Vec<u8> {
    [words(&[argsz, flags, index, cap_offset]), size.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
}

#[test]
fn device_info_is_for_any_argsz_that_holds_it() {
    let server = ToyServer::start();
    let mut client = server.client();
    assert_eq!(client.request(GET_INFO, &words(&[0, 0])).errno(), EINVAL);
    assert_eq!(client.request(GET_INFO, &words(&[8, 0, 0, 0])).errno(), EINVAL);
    assert_eq!(client.request(GET_INFO, &words(&[32, 0, 0, 0])).ok(), words(&[16, 3, 9, 5]));
    server.stop();
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let server = ToyServer::start();
    let mut client = server.client();
    assert_eq!(client.request(GET_REGION_INFO, &words(&[0, 0])).errno(), EINVAL);
    assert_eq!(client.request(GET_REGION_INFO, &ask(RAM, 8)).errno(), EINVAL);
    assert_eq!(client.request(GET_REGION_INFO, &ask(RAM, 31)).errno(), EINVAL);
    assert_eq!(client.request(GET_REGION_INFO, &ask(9, 32)).errno(), EINVAL);
    client.assert_in_step();
    server.stop();
}

#[test]
fn plain_region_is_told_whatever_room_there_is() {
    let server = ToyServer::start();
    let mut client = server.client();
    for argsz in [32, 40, 4096, u32::MAX] {
        let reply = client.request(GET_REGION_INFO, &ask(RAM, argsz));
        assert!(reply.descriptors.is_empty());
        assert_eq!(reply.ok(), answer(32, READ_WRITE, RAM, 0, RAM_SIZE as u64, 0));
    }
    assert_eq!(client.request(GET_REGION_INFO, &ask(8, 4096)).ok(), answer(32, 0, 8, 0, 0, 0));
    server.stop();
}

#[test]
fn too_little_room_for_the_capabilities_is_told_how_much_they_need() {
    let server = ToyServer::start();
    let mut client = server.client();
    for argsz in [32, 33, FULL - 1] {
        let reply = client.request(GET_REGION_INFO, &ask(MAPPABLE, argsz));
        assert!(reply.descriptors.is_empty());
        assert_eq!(reply.ok(), answer(FULL, READ_WRITE, MAPPABLE, 0, MAPPABLE_SIZE, 0));
    }
    server.stop();
}

#[test]
fn areas_and_descriptor_come_where_there_is_room() {
    let server = ToyServer::start();
    let mut client = server.client();
    // QEMU and the vfio_user crate send no room along, libvfio-user's tests do.
    for room in [0, FULL as usize - 32] {
        let mut body = ask(MAPPABLE, FULL);
        body.resize(32 + room, 0);
        let mut reply = client.request(GET_REGION_INFO, &body);
        assert_eq!(reply.descriptors.len(), 1);
        let file = File::from(reply.descriptors.remove(0));
        let expected = [
            answer(FULL, READ_WRITE | MMAP | CAPS, MAPPABLE, 32, MAPPABLE_SIZE, FILE_OFFSET),
            // Sparse mmap (1), version 1, the last; two areas.
            words(&[1 | 1 << 16, 0, 2, 0]),
            AREAS.iter().flat_map(|area| [area.offset, area.size]).flat_map(u64::to_le_bytes).collect(),
        ];
        assert_eq!(reply.ok(), expected.concat());

        let last = AREAS[1].offset + AREAS[1].size - 4;
        client.region_write(MAPPABLE, last, &[1, 2, 3, 4]);
        let mut data = [0; 4];
        file.read_exact_at(&mut data, FILE_OFFSET + last).unwrap();
        assert_eq!(data, [1, 2, 3, 4], "both ways lead to the same memory");
        file.write_all_at(&[5; 4], FILE_OFFSET + last).unwrap();
        assert_eq!(client.region_read(MAPPABLE, last, 4), [5; 4]);
    }
    server.stop();
}

#[test]
fn client_that_takes_no_descriptors_finds_a_plain_region() {
    let server = ToyServer::start();
    let mut client = server.connect();
    client.request(VERSION, &version(0, 0, r#"{"capabilities":{"max_msg_fds":0}}"#)).ok();
    let reply = client.request(GET_REGION_INFO, &ask(MAPPABLE, FULL));
    assert!(reply.descriptors.is_empty());
    assert_eq!(reply.ok(), answer(32, READ_WRITE, MAPPABLE, 0, MAPPABLE_SIZE, 0));
    server.stop();
}

#[test]
fn mapping_that_would_harm_the_client_is_not_offered() {
    let server = ToyServer::start();
    let mut client = server.client();
    let reply = client.request(GET_REGION_INFO, &ask(BADLY_MAPPABLE, 4096));
    assert!(reply.descriptors.is_empty());
    assert_eq!(reply.ok(), answer(32, READ_WRITE, BADLY_MAPPABLE, 0, MAPPABLE_SIZE, 0));
    server.stop();
}

#[test]
fn descriptors_go_with_their_own_replies() {
    let server = ToyServer::start();
    let mut client = server.client();
    for (command, flags, body) in [
        (GET_INFO, 0, device_info()),
        (GET_REGION_INFO, 0, ask(MAPPABLE, FULL)),
        (GET_REGION_INFO, NO_REPLY, ask(MAPPABLE, FULL)),
        (GET_INFO, 0, device_info()),
        (GET_REGION_INFO, 0, ask(MAPPABLE, 4096)),
    ] {
        client.send(command, flags, &body, &[]);
    }
    let descriptors: Vec<usize> = (0..4).map(|_| client.receive().descriptors.len()).collect();
    assert_eq!(descriptors, [0, 1, 0, 1]);
    client.assert_in_step();
    server.stop();
}

#[test]
fn descriptor_survives_a_client_that_reads_late() {
    let server = ToyServer::start();
    let mut client = server.client();
    // More than the socket takes, so that the reply with the descriptor has to wait.
    client.send(REGION_READ, 0, &access(RAM, 0, 1 << 20, &[]), &[]);
    client.send(GET_REGION_INFO, 0, &ask(MAPPABLE, FULL), &[]);
    server.connect().assert_closed();
    client.receive().ok();
    assert_eq!(client.receive().descriptors.len(), 1);
    server.stop();
}
