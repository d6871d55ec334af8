//! The stream below the messages: pieces, batches, sizes that lie, clients that leave or do not read.
//!
//! Covers, of the areas of libvfio-user's Python tests: the too small, too large and missing payloads of
//! `test_request_errors` and `test_negotiate`. Other than there: a size below the header closes without an answer, and one
//! above the largest is EMSGSIZE.

mod common;

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::thread;

use common::ToyServer;
use common::raw_client::*;
use common::toy::{RAM, SLOW};
use nix::libc::EMSGSIZE;
use nix::sys::signal::Signal;

/// Bytes in the largest message that is taken.
const LARGEST: u32 = 16 + 16 + (1 << 20);

/// What a client could say in a short life.
fn session() -> Vec<u8> {
    [
        message(1, VERSION, 0, &version(0, 0, QEMU_CAPABILITIES)),
        message(2, DMA_MAP, 0, &dma_map(3, 0, 0, 0x1000)),
        message(3, GET_INFO, 0, &device_info()),
        message(4, GET_REGION_INFO, 0, &region_info(0)),
        message(5, GET_IRQ_INFO, 0, &irq_info(0)),
        message(6, SET_IRQS, 0, &irq_set(0x21, 0, 0, 0, &[])),
        message(7, REGION_WRITE, NO_REPLY, &access(RAM, 0, 4, &[1, 2, 3, 4])),
        message(8, REGION_READ, 0, &access(RAM, 0, 4, &[])),
        message(9, DMA_UNMAP, 0, &dma_unmap(0, 0, 0x1000)),
        message(10, DEVICE_RESET, 0, &[]),
    ]
    .concat()
}

fn assert_session_is_answered(client: &mut RawClient) {
    for id in [1, 2, 3, 4, 5, 6, 8, 9, 10] {
        let reply = client.receive();
        assert_eq!(reply.id, id);
        let body = reply.ok();
        if id == 8 {
            assert_eq!(body, access(RAM, 0, 4, &[1, 2, 3, 4]));
        }
    }
}

#[test]
fn messages_in_one_write_are_answered_in_order() {
    let server = ToyServer::start();
    let mut client = server.connect();
    client.send_bytes(&session(), &[]);
    assert_session_is_answered(&mut client);
    server.stop();
}

#[test]
fn messages_byte_by_byte_are_answered_in_order() {
    let server = ToyServer::start();
    let mut client = server.connect();
    for byte in session() {
        client.send_bytes(&[byte], &[]);
    }
    assert_session_is_answered(&mut client);
    server.stop();
}

#[test]
fn client_that_leaves_anywhere_is_followed_by_the_next() {
    let server = ToyServer::start();
    let session = session();
    for end in 0..=session.len() {
        let mut client = server.connect();
        client.send_bytes(&session[..end], &[]);
    }
    let mut client = server.client();
    client.assert_in_step();
    drop(client);
    let control = server.control.clone();
    server.stop();
    let state = control.state();
    assert_eq!(state.connected, state.disconnected);
    assert!(state.connected >= 1);
}

#[test]
fn half_closed_client_still_gets_its_answers() {
    let server = ToyServer::start();
    let mut client = server.connect();
    client.send_bytes(&session(), &[]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_session_is_answered(&mut client);
    client.assert_closed();
    server.stop();
}

#[test]
fn size_below_the_header_closes() {
    let server = ToyServer::start();
    for size in [0, 1, 15] {
        let mut client = server.client();
        client.send_bytes(&message_claiming(1, GET_INFO, 0, size, &device_info()), &[]);
        client.assert_closed();
    }
    server.stop();
}

#[test]
fn oversized_message_is_refused_by_its_header_and_passed_over() {
    let server = ToyServer::start();
    let mut client = server.client();
    for size in [LARGEST + 1, LARGEST + 100_000, 3 * LARGEST] {
        client.send_bytes(&message_claiming(5, REGION_WRITE, 0, size, &[]), &[]);
        let reply = client.receive();
        assert_eq!((reply.id, reply.errno()), (5, EMSGSIZE), "answered before the body is there");
        client.send_bytes(&vec![0xee; size as usize - 16], &[]);
        client.assert_in_step();

        client.send_bytes(&message_claiming(6, REGION_WRITE, NO_REPLY, size, &[]), &[]);
        client.send_bytes(&vec![0xee; size as usize - 16], &[]);
        client.assert_in_step();
    }
    server.stop();
}

#[test]
fn message_that_claims_four_gibibytes_costs_nothing() {
    let server = ToyServer::start();
    let mut client = server.client();
    client.send_bytes(&message_claiming(5, REGION_WRITE, 0, u32::MAX, &[0; 1000]), &[]);
    assert_eq!(client.receive().errno(), EMSGSIZE);
    drop(client);
    server.client().assert_in_step();
    server.stop();
}

#[test]
fn oversized_first_message_closes() {
    let server = ToyServer::start();
    let mut client = server.connect();
    client.send_bytes(&message_claiming(5, VERSION, 0, u32::MAX, &[]), &[]);
    assert_eq!(client.receive().errno(), EMSGSIZE);
    client.assert_closed();
    server.stop();
}

#[test]
fn oversized_reply_is_passed_over_without_an_answer() {
    let server = ToyServer::start();
    let mut client = server.client();
    client.send_bytes(&message_claiming(5, DMA_READ, REPLY, 2 * LARGEST, &[]), &[]);
    client.send_bytes(&vec![0; 2 * LARGEST as usize - 16], &[]);
    client.assert_in_step();
    server.stop();
}

#[test]
fn client_that_does_not_read_is_not_read_from() {
    let server = ToyServer::start();
    let mut client = server.client();
    let count = 1 << 20;
    let requests = 64;
    for _ in 0..requests {
        client.send(REGION_READ, 0, &access(RAM, 0, count, &[]), &[]);
    }
    // The server is alive all the while: it refuses another client.
    server.connect().assert_closed();
    assert!(server.control.state().reads <= 1, "one reply at a time is made");
    for _ in 0..requests {
        assert_eq!(client.receive().ok().len(), 16 + count as usize);
    }
    client.assert_in_step();
    server.stop();
}

#[test]
fn client_that_never_reads_is_no_obstacle_to_the_end() {
    let server = ToyServer::start();
    let client = server.client();
    client.stream.set_nonblocking(true).unwrap();
    let request = message(1, REGION_READ, 0, &access(RAM, 0, 1 << 16, &[]));
    let error = loop {
        if let Err(error) = (&client.stream).write_all(&request) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "the server has stopped reading");
    server.stop();
    drop(client);
}

#[test]
fn flood_does_not_keep_the_device_or_signals_waiting() {
    let server = ToyServer::start();
    let mut client = server.client();
    let slow = client.send(REGION_READ, 0, &access(SLOW, 0, 1, &[]), &[]);
    thread::scope(|scope| {
        let mut stream = client.stream.try_clone().unwrap();
        scope.spawn(move || {
            let batch = message(1, REGION_WRITE, NO_REPLY, &access(RAM, 0, 1, &[1])).repeat(1000);
            // It ends when the server does.
            while stream.write_all(&batch).is_ok() {}
        });
        server.connect().assert_closed();
        server.control.release();
        assert_eq!(client.receive().id, slow, "the device was woken in the flood");
        server.signal(Signal::SIGTERM);
        server.join().1.unwrap();
    });
}
