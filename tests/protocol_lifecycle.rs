//! From start to end: clients one at a time, sockets and descriptors to serve on, signals, a device that fails.
//!
//! Covers, of the areas of libvfio-user's Python tests: the lost connection of `test_request_errors`. Other than there, it
//! does not reset the device.

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use common::raw_client::*;
use common::toy::{Control, RAM, SLOW, ToyDevice};
use common::{ToyServer, run_in_thread, signal_thread};
use nix::sys::signal::Signal;
use vfio_user_tpm::vfio_user::{Listener, Server, ServerError};

#[test]
fn second_client_is_refused_without_disturbing_the_first() {
    let server = ToyServer::start();
    let mut first = server.client();
    for _ in 0..50 {
        server.connect().assert_closed();
        first.assert_in_step();
    }
    assert_eq!(server.control.state().connected, 1);
    server.stop();
}

/// A server on `path` with a limit for clients that have not negotiated.
fn start_with_handshake_limit(path: &Path, limit: Duration) -> (JoinHandle<Result<(), ServerError>>, Control) {
    let mut server = Server::new(Listener::bind(path).unwrap()).unwrap();
    server.limit_handshake(limit);
    let (device, control) = ToyDevice::new(&server.registry().unwrap());
    (run_in_thread(server, device), control)
}

#[test]
fn client_that_says_nothing_gives_its_place_to_one_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (thread, control) = start_with_handshake_limit(&path, Duration::from_millis(200));
    let silent = RawClient::connect(&path);
    let mut slow = RawClient::connect(&path);
    slow.send_bytes(&message(1, VERSION, 0, &version(0, 0, QEMU_CAPABILITIES))[..30], &[]);
    let mut third = RawClient::connect(&path);
    third.negotiate();
    third.assert_in_step();
    silent.assert_closed();
    slow.assert_closed();
    assert_eq!(control.state().connected, 1);
    signal_thread(&thread, Signal::SIGTERM);
    thread.join().unwrap().unwrap();
}

#[test]
fn client_that_negotiates_in_time_keeps_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (thread, _control) = start_with_handshake_limit(&path, Duration::from_secs(3600));
    let mut first = RawClient::connect(&path);
    let second = RawClient::connect(&path);
    first.negotiate();
    second.assert_closed();
    first.assert_in_step();
    signal_thread(&thread, Signal::SIGTERM);
    thread.join().unwrap().unwrap();
}

#[test]
fn one_that_waited_for_a_client_which_leaves_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (thread, _control) = start_with_handshake_limit(&path, Duration::from_secs(3600));
    let first = RawClient::connect(&path);
    let mut second = RawClient::connect(&path);
    drop(first);
    second.negotiate();
    second.assert_in_step();
    signal_thread(&thread, Signal::SIGTERM);
    thread.join().unwrap().unwrap();
}

#[test]
fn next_client_finds_the_device_as_it_was_and_nothing_of_the_last() {
    let server = ToyServer::start();
    let mut client = server.client();
    client.region_write(RAM, 0, &[42]);
    client.request(DMA_MAP, &dma_map(3, 0, 0, 0x1000)).ok();
    client.send(REGION_READ, 0, &access(SLOW, 0, 4, &[]), &[]);
    client.assert_in_step();
    drop(client);

    let mut client = server.client();
    assert_eq!(client.region_read(RAM, 0, 1), [42]);
    client.request(DMA_MAP, &dma_map(3, 0, 0, 0x1000)).ok();
    server.control.release();
    client.assert_in_step();
    {
        let state = server.control.state();
        assert_eq!((state.connected, state.disconnected, state.concluded, state.resets), (2, 1, 1, 0));
    }
    server.stop();
}

#[test]
fn clients_in_a_row_are_all_served() {
    let server = ToyServer::start();
    for _ in 0..300 {
        server.client().assert_in_step();
    }
    server.stop();
}

#[test]
fn successor_waits_until_what_the_last_client_left_behind_is_done() {
    let server = ToyServer::start();
    let mut first = server.client();
    let work = message(1, REGION_READ, NO_REPLY, &access(RAM, 0, 1, &[])).repeat(1000);
    // While the test has the state, the device does not get beyond the first of them.
    let mut second = {
        let _state = server.control.state();
        first.send_bytes(&work, &[]);
        drop(first);
        server.connect()
    };
    second.negotiate();
    assert_eq!(server.control.state().reads, 1000);
    server.stop();
}

#[test]
fn abandoned_socket_is_replaced_and_the_own_one_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(&path).unwrap();
    let server = ToyServer::start_on(folder, listener);
    server.client().assert_in_step();
    assert!(Listener::bind(&path).is_err(), "it is in use");
    server.client().assert_in_step();
    server.signal(Signal::SIGTERM);
    let (_folder, result) = server.join();
    result.unwrap();
    assert!(!path.exists());
}

#[test]
fn either_signal_ends_with_or_without_a_client() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = ToyServer::start();
        let control = server.control.clone();
        server.signal(signal);
        server.join().1.unwrap();
        assert!(control.state().stop_asked);

        let server = ToyServer::start();
        let control = server.control.clone();
        let client = server.client();
        server.signal(signal);
        server.join().1.unwrap();
        client.assert_closed();
        assert_eq!(control.state().disconnected, 1);
    }
}

#[test]
fn end_waits_for_the_device_but_no_longer_serves() {
    let server = ToyServer::start();
    let path = server.path();
    let control = server.control.clone();
    control.state().stop_blocked = true;
    let client = server.client();
    server.signal(Signal::SIGTERM);
    client.assert_closed();
    while !control.state().stop_asked {
        std::thread::yield_now();
    }
    assert!(!path.exists());
    assert!(UnixStream::connect(&path).is_err());
    control.tell(|state| state.stop_blocked = false);
    server.join().1.unwrap();
}

#[test]
fn second_signal_does_not_wait_for_the_device() {
    let server = ToyServer::start();
    let control = server.control.clone();
    control.state().stop_blocked = true;
    server.signal(Signal::SIGTERM);
    while !control.state().stop_asked {
        std::thread::yield_now();
    }
    // Those that come with the first are one with it.
    while !server.has_ended() {
        server.signal(Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(matches!(server.join().1, Err(ServerError::Interrupted)));
}

#[test]
fn device_that_cannot_go_on_ends_the_server() {
    let server = ToyServer::start();
    let path = server.path();
    let control = server.control.clone();
    let client = server.client();
    control.tell(|state| state.failure = Some("out of magic smoke"));
    let error = server.join().1.unwrap_err();
    assert!(matches!(&error, ServerError::Device(failure) if failure.to_string() == "out of magic smoke"), "{error}");
    client.assert_closed();
    assert_eq!(control.state().disconnected, 1);
    assert!(!path.exists());
}

#[test]
fn connected_descriptor_is_served_until_it_is_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Server::new(Listener::from_fd(ours.into()).unwrap()).unwrap();
    let (device, control) = ToyDevice::new(&server.registry().unwrap());
    let thread = run_in_thread(server, device);
    let mut client = RawClient::from_stream(theirs);
    client.negotiate();
    client.assert_in_step();
    drop(client);
    thread.join().unwrap().unwrap();
    let state = control.state();
    assert!(state.stop_asked, "the device is stopped as after a signal");
    assert_eq!((state.connected, state.disconnected), (1, 1));
}

#[test]
fn listening_descriptor_serves_clients_one_after_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let socket = UnixListener::bind(&path).unwrap();
    let server = Server::new(Listener::from_fd(socket.into()).unwrap()).unwrap();
    let (device, _control) = ToyDevice::new(&server.registry().unwrap());
    let thread = run_in_thread(server, device);
    for _ in 0..3 {
        let mut client = RawClient::connect(&path);
        client.negotiate();
        client.assert_in_step();
    }
    signal_thread(&thread, Signal::SIGTERM);
    thread.join().unwrap().unwrap();
    assert!(path.exists(), "the file belongs to whoever made it");
}
