//! Whole messages over a real socket: what is answered, what is refused, and that the stream stays in step.
//!
//! Covers, of the areas of libvfio-user's Python tests: `test_negotiate`, `test_request_errors` (with `protocol_stream` for
//! sizes and `protocol_descriptors` for what comes along), `test_device_get_region_io_fds` and `test_device_features` (not
//! offered). Other than there: an unknown command is EOPNOTSUPP, an unsolicited reply is not answered, a larger
//! `max_msg_fds` is lowered, and the migration capability is not looked at.

mod common;

use std::net::Shutdown;

use common::ToyServer;
use common::raw_client::*;
use common::toy::{RAM, READ_ONLY, SLOW, WRITE_ONLY};
use nix::libc::{EINVAL, EOPNOTSUPP, EPROTONOSUPPORT};
use nix::sys::signal::Signal;

#[test]
fn qemus_proposal_gets_a_subset_with_smaller_values() {
    let server = ToyServer::start();
    let request = version(0, 0, QEMU_CAPABILITIES);
    let reply = server.connect().request(VERSION, &request).ok();
    assert!(reply.len() <= request.len());
    assert_eq!(
        reply,
        version(
            0,
            0,
            r#"{"capabilities":{"max_data_xfer_size":1048576,"max_dma_maps":65535,"max_msg_fds":8,"pgsizes":4096}}"#
        )
    );
    server.stop();
}

#[test]
fn minor_version_of_a_newer_client_is_lowered() {
    let server = ToyServer::start();
    let mut client = server.connect();
    assert_eq!(client.request(VERSION, &version(0, 1, "{}")).ok(), [0; 4]);
    client.assert_in_step();
    server.stop();
}

#[test]
fn version_without_capabilities_is_enough() {
    let server = ToyServer::start();
    let mut client = server.connect();
    assert_eq!(client.request(VERSION, &[0; 4]).ok(), [0; 4]);
    client.assert_in_step();
    server.stop();
}

#[test]
fn version_without_reply_is_negotiated_silently() {
    let server = ToyServer::start();
    let mut client = server.connect();
    client.send(VERSION, NO_REPLY, &[0; 4], &[]);
    client.assert_in_step();
    server.stop();
}

#[test]
fn failed_negotiation_is_answered_and_closed() {
    let server = ToyServer::start();
    for (body, errno) in [
        (version(1, 0, "{}"), EPROTONOSUPPORT),
        (version(999, 0, ""), EPROTONOSUPPORT),
        (version(0, 0, "{"), EINVAL),
        (version(0, 0, "\""), EINVAL),
        (version(0, 0, r#"{"capabilities":"23"}"#), EINVAL),
        (version(0, 0, r#"{"capabilities":{"max_msg_fds":"foo"}}"#), EINVAL),
        (version(0, 0, r#"{"capabilities":{"max_msg_fds":-1}}"#), EINVAL),
        (b"\0\0\0\0{}".to_vec(), EINVAL),
        (vec![0; 3], EINVAL),
        (vec![], EINVAL),
    ] {
        let mut client = server.connect();
        assert_eq!(client.request(VERSION, &body).errno(), errno);
        client.assert_closed();
        let mut client = server.connect();
        client.send(VERSION, NO_REPLY, &body, &[]);
        client.assert_closed();
    }
    assert_eq!(server.control.state().connected, 0);
    server.stop();
}

#[test]
fn command_before_the_version_is_answered_and_closed() {
    let server = ToyServer::start();
    for command in [0, GET_INFO, REGION_WRITE, DEVICE_RESET, 99] {
        let mut client = server.connect();
        let errno = client.request(command, &device_info()).errno();
        assert!(errno == EINVAL || errno == EOPNOTSUPP);
        client.assert_closed();
    }
    server.stop();
}

#[test]
fn second_version_is_refused_and_the_connection_stays() {
    let server = ToyServer::start();
    let mut client = server.client();
    assert_eq!(client.request(VERSION, &version(0, 0, "{}")).errno(), EINVAL);
    client.assert_in_step();
    server.stop();
}

#[test]
fn commands_that_are_not_offered_are_refused_with_their_bodies_drained() {
    let server = ToyServer::start();
    let mut client = server.client();
    let commands = [
        0,
        GET_REGION_IO_FDS,
        DMA_READ,
        DMA_WRITE,
        14,
        REGION_WRITE_MULTI,
        DEVICE_FEATURE,
        MIG_DATA_READ,
        MIG_DATA_WRITE,
        19,
        u16::MAX,
    ];
    for command in commands {
        for size in [0, 1, 40, 100_000] {
            assert_eq!(client.request(command, &vec![0xaa; size]).errno(), EOPNOTSUPP);
        }
    }
    client.assert_in_step();
    server.stop();
}

#[test]
fn message_of_unknown_type_is_refused() {
    let server = ToyServer::start();
    let mut client = server.client();
    for kind in 2..16 {
        client.send(GET_INFO, kind, &device_info(), &[]);
        assert_eq!(client.receive().errno(), EINVAL);
    }
    client.assert_in_step();
    server.stop();
}

#[test]
fn unsolicited_reply_is_passed_over() {
    let server = ToyServer::start();
    let mut client = server.client();
    client.send(DMA_READ, REPLY, &[1; 5000], &[]);
    client.send(REGION_READ, REPLY | ERROR, &[], &[]);
    client.assert_in_step();
    server.stop();
}

#[test]
fn nothing_is_answered_where_no_reply_is_wanted() {
    let server = ToyServer::start();
    let mut client = server.client();
    client.send(REGION_WRITE, NO_REPLY, &access(RAM, 0x10, 2, &[1, 2]), &[]);
    client.send(REGION_WRITE, NO_REPLY, &access(RAM, u64::MAX, 2, &[1, 2]), &[]);
    client.send(REGION_READ, NO_REPLY, &access(RAM, 0, 64, &[]), &[]);
    client.send(GET_REGION_INFO, NO_REPLY, &region_info(77), &[]);
    client.send(99, NO_REPLY, &[0; 100], &[]);
    client.send(GET_INFO, NO_REPLY | 5, &[], &[]);
    client.send(DMA_MAP, NO_REPLY, &dma_map(3, 0, 0, 1), &[]);
    assert_eq!(client.region_read(RAM, 0x10, 2), [1, 2]);
    server.stop();
}

#[test]
fn message_ids_are_the_clients_own() {
    let server = ToyServer::start();
    let mut client = server.client();
    let twice = message(7, REGION_READ, 0, &access(RAM, 0, 1, &[])).repeat(2);
    client.send_bytes(&twice, &[]);
    assert_eq!((client.receive().id, client.receive().id), (7, 7));
    server.stop();
}

#[test]
fn short_structures_and_small_argsz_are_refused() {
    let server = ToyServer::start();
    let mut client = server.client();
    for (command, body) in [
        (GET_INFO, device_info()),
        (GET_REGION_INFO, region_info(0)),
        (GET_IRQ_INFO, irq_info(0)),
        (SET_IRQS, irq_set(0x21, 0, 0, 0, &[])),
        (DMA_MAP, dma_map(3, 0, 0, 0x1000)),
        (DMA_UNMAP, dma_unmap(0, 0, 0x1000)),
        (REGION_READ, access(RAM, 0, 4, &[])),
        (REGION_WRITE, access(RAM, 0, 4, &[0; 4])),
    ] {
        for size in 0..body.len() {
            assert_eq!(client.request(command, &body[..size]).errno(), EINVAL, "{command} {size}");
        }
        if !matches!(command, REGION_READ | REGION_WRITE) {
            let small = [&[3, 0, 0, 0], &body[4..]].concat();
            assert_eq!(client.request(command, &small).errno(), EINVAL, "{command}");
        }
        client.request(command, &body).ok();
    }
    server.stop();
}

#[test]
fn infos_are_told_for_what_exists() {
    let server = ToyServer::start();
    let mut client = server.client();
    assert_eq!(client.request(GET_INFO, &device_info()).ok(), words(&[16, 3, 9, 5]));
    let reply = client.request(GET_REGION_INFO, &region_info(READ_ONLY)).ok();
    assert_eq!(reply, words(&[32, 1, READ_ONLY, 0, 8192, 0, 0, 0]));
    assert_eq!(client.request(GET_REGION_INFO, &region_info(9)).errno(), EINVAL);
    assert_eq!(client.request(GET_REGION_INFO, &region_info(u32::MAX)).errno(), EINVAL);
    assert_eq!(client.request(GET_IRQ_INFO, &irq_info(3)).ok(), words(&[16, 1, 3, 1]));
    assert_eq!(client.request(GET_IRQ_INFO, &irq_info(5)).errno(), EINVAL);
    server.stop();
}

#[test]
fn largest_access_passes_and_a_larger_one_is_refused() {
    let server = ToyServer::start();
    let mut client = server.client();
    let data: Vec<u8> = (0..1_u32 << 20).map(|index| u8::try_from(index % 251).unwrap()).collect();
    client.region_write(RAM, 0x1000, &data);
    assert_eq!(client.region_read(RAM, 0x1000, 1 << 20), data);
    assert_eq!(client.request(REGION_READ, &access(RAM, 0, (1 << 20) + 1, &[])).errno(), EINVAL);
    client.assert_in_step();
    server.stop();
}

#[test]
fn permissions_and_bounds_of_regions_hold() {
    let server = ToyServer::start();
    let mut client = server.client();
    for (region, offset, count) in [
        (WRITE_ONLY, 0, 4),
        (RAM, 2 << 20, 1),
        (RAM, (2 << 20) - 1, 2),
        (RAM, u64::MAX, 1),
        (6, 0, 1),
        (9, 0, 1),
        (RAM, 0, 0),
    ] {
        assert_eq!(client.request(REGION_READ, &access(region, offset, count, &[])).errno(), EINVAL);
    }
    assert_eq!(client.request(REGION_WRITE, &access(READ_ONLY, 0, 1, &[0])).errno(), EINVAL);
    assert_eq!(client.request(REGION_WRITE, &access(RAM, 0, 2, &[0])).errno(), EINVAL);
    assert_eq!(client.request(REGION_WRITE, &access(RAM, 0, 1, &[0, 0])).errno(), EINVAL);
    assert_eq!(client.region_read(RAM, (2 << 20) - 1, 1), [0]);
    client.region_write(WRITE_ONLY, 8191, &[1]);
    server.stop();
}

#[test]
fn late_answer_does_not_keep_others_waiting() {
    let server = ToyServer::start();
    let mut client = server.client();
    let late = client.send(REGION_READ, 0, &access(SLOW, 0, 4, &[]), &[]);
    client.assert_in_step();
    server.control.release();
    let reply = client.receive();
    assert_eq!(reply.id, late);
    assert_eq!(reply.ok(), access(SLOW, 0, 4, &[0xa5; 4]));
    client.assert_in_step();
    server.stop();
}

#[test]
fn late_answers_are_given_before_a_reset() {
    let server = ToyServer::start();
    let mut client = server.client();
    let late = client.send(REGION_WRITE, 0, &access(SLOW, 0, 1, &[0]), &[]);
    let reset = client.send(DEVICE_RESET, 0, &[], &[]);
    assert_eq!((client.receive().id, client.receive().id), (late, reset));
    assert_eq!(server.control.state().resets, 1);
    server.stop();
}

#[test]
fn late_answers_are_given_before_the_end() {
    // The client says no more.
    let server = ToyServer::start();
    let mut client = server.client();
    let late = client.send(REGION_READ, 0, &access(SLOW, 0, 1, &[]), &[]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.receive().id, late);
    client.assert_closed();
    // The server is to end.
    let mut client = server.client();
    let late = client.send(REGION_READ, 0, &access(SLOW, 0, 1, &[]), &[]);
    client.assert_in_step();
    server.signal(Signal::SIGTERM);
    assert_eq!(client.receive().id, late);
    client.assert_closed();
    server.join().1.unwrap();
}

#[test]
fn late_answers_beyond_the_bound_come_at_once() {
    let server = ToyServer::start();
    let mut client = server.client();
    let ids: Vec<u16> = (0..20).map(|_| client.send(REGION_READ, 0, &access(SLOW, 0, 1, &[]), &[])).collect();
    for id in &ids[16..] {
        assert_eq!(client.receive().id, *id);
    }
    server.control.release();
    for id in &ids[..16] {
        assert_eq!(client.receive().id, *id);
    }
    client.assert_in_step();
    server.stop();
}
