//! Descriptors over the socket: each belongs to its message, and those that nobody needs are closed.
//!
//! Covers, of the areas of libvfio-user's Python tests: the descriptors of bad requests in `test_request_errors`.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::raw_client::*;
use common::toy::{RAM, SLOW, ToyDevice};
use common::{ToyServer, run_in_thread, signal_thread};
use nix::libc::{self, EINVAL};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use vfio_user_tpm::vfio_user::{Listener, Server};

const ASSIGN: u32 = 0x24;
const TRIGGER: u32 = 0x21;
const MSI: u32 = 1;

/// One end is given away; the other sees when the last copy is closed.
struct Witness {
    kept: UnixStream,
    given: UnixStream,
}

impl Witness {
    fn new() -> Self {
        let (kept, given) = UnixStream::pair().unwrap();
        kept.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { kept, given }
    }

    fn fd(&self) -> RawFd {
        self.given.as_raw_fd()
    }

    /// Waits until the server has closed its copies.
    fn assert_closed(mut self) {
        drop(self.given);
        assert_eq!(self.kept.read(&mut [0]).unwrap(), 0);
    }
}

fn eventfd() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap()
}

#[test]
fn descriptors_with_messages_that_take_none_are_closed() {
    let server = ToyServer::start();
    let mut client = server.client();
    for (command, flags, body) in [
        (GET_INFO, 0, device_info()),
        (REGION_WRITE, NO_REPLY, access(RAM, 0, 1, &[1])),
        (DEVICE_RESET, 0, vec![]),
        (99, 0, vec![0; 10]),
        (99, NO_REPLY, vec![]),
        (GET_INFO, 9, vec![]),
        (REGION_READ, REPLY, vec![0; 30]),
        (SET_IRQS, 0, irq_set(TRIGGER, 0, 0, 1, &[])),
        (VERSION, 0, vec![0; 4]),
    ] {
        let witness = Witness::new();
        client.send(command, flags, &body, &[witness.fd(), witness.fd()]);
        witness.assert_closed();
        if flags == 0 || flags == 9 {
            client.receive();
        }
    }
    client.assert_in_step();
    server.stop();
}

#[test]
fn descriptor_of_a_dma_window_is_closed_at_once() {
    let server = ToyServer::start();
    let mut client = server.client();
    let witness = Witness::new();
    client.request_with(DMA_MAP, &dma_map(3, 0, 0, 0x1000), &[witness.fd()]).ok();
    witness.assert_closed();
    let witness = Witness::new();
    assert_eq!(client.request_with(DMA_MAP, &dma_map(3, 0, 0, 1), &[witness.fd()]).errno(), EINVAL);
    witness.assert_closed();
    server.stop();
}

#[test]
fn descriptors_of_an_oversized_message_are_closed() {
    let server = ToyServer::start();
    let mut client = server.client();
    let (with_header, with_body) = (Witness::new(), Witness::new());
    client.send_bytes(&message_claiming(1, REGION_WRITE, 0, 2 << 20, &[]), &[with_header.fd()]);
    client.receive();
    client.send_bytes(&[0; 1000], &[with_body.fd()]);
    with_header.assert_closed();
    with_body.assert_closed();
    client.send_bytes(&vec![0; (2 << 20) - 16 - 1000], &[]);
    client.assert_in_step();
    server.stop();
}

#[test]
fn more_descriptors_than_a_message_may_carry_are_refused_and_closed() {
    let server = ToyServer::start();
    let mut client = server.client();
    for count in [17, 253] {
        let witness = Witness::new();
        let many = vec![witness.fd(); count];
        assert_eq!(client.request_with(SET_IRQS, &irq_set(ASSIGN, MSI, 0, 1, &[]), &many).errno(), EINVAL);
        witness.assert_closed();
    }
    // In the same message, but with different bytes of it.
    let witness = Witness::new();
    for byte in message(9, GET_INFO, 0, &device_info()) {
        client.send_bytes(&[byte], &[witness.fd()]);
    }
    assert_eq!(client.receive().errno(), EINVAL);
    witness.assert_closed();
    client.assert_in_step();
    server.stop();
}

#[test]
fn descriptors_of_batched_messages_go_to_their_own() {
    let server = ToyServer::start();
    let mut client = server.client();
    let (first, second) = (eventfd(), eventfd());
    let witness = Witness::new();
    client.send(GET_INFO, 0, &device_info(), &[witness.fd()]);
    client.send(SET_IRQS, 0, &irq_set(ASSIGN, MSI, 0, 1, &[]), &[first.as_raw_fd()]);
    client.send(GET_INFO, 0, &device_info(), &[]);
    client.send(SET_IRQS, 0, &irq_set(ASSIGN, MSI, 1, 1, &[]), &[second.as_raw_fd()]);
    client.send(SET_IRQS, 0, &irq_set(TRIGGER, MSI, 1, 1, &[]), &[]);
    for _ in 0..5 {
        client.receive().ok();
    }
    assert_eq!((first.read().unwrap_or(0), second.read().unwrap_or(0)), (0, 1));
    witness.assert_closed();
    server.stop();
}

#[test]
fn descriptors_may_come_with_the_body() {
    let server = ToyServer::start();
    let mut client = server.client();
    let eventfd = eventfd();
    let bytes = message(3, SET_IRQS, 0, &irq_set(ASSIGN, 0, 0, 1, &[]));
    client.send_bytes(&bytes[..16], &[]);
    client.send_bytes(&bytes[16..], &[eventfd.as_raw_fd()]);
    client.receive().ok();
    client.request(SET_IRQS, &irq_set(TRIGGER, 0, 0, 1, &[])).ok();
    assert_eq!(eventfd.read().unwrap(), 1);
    server.stop();
}

#[test]
fn interrupt_that_is_no_eventfd_is_refused_and_closed() {
    let server = ToyServer::start();
    let mut client = server.client();
    let witness = Witness::new();
    let reply = client.request_with(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[]), &[witness.fd()]);
    assert_eq!(reply.errno(), EINVAL);
    witness.assert_closed();
    server.stop();
}

#[test]
fn requests_of_qemu_for_intx_are_taken() {
    let server = ToyServer::start();
    let mut client = server.client();
    let (trigger, unmask) = (eventfd(), eventfd());
    client.request_with(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[]), &[trigger.as_raw_fd()]).ok();
    client.request(SET_IRQS, &irq_set(0x11, 0, 0, 1, &[])).ok();
    client.request(SET_IRQS, &irq_set(0x9, 0, 0, 1, &[])).ok();
    client.request_with(SET_IRQS, &irq_set(0x14, 0, 0, 1, &[]), &[unmask.as_raw_fd()]).ok();
    client.request(SET_IRQS, &irq_set(0x14, 0, 0, 1, &[])).ok();
    client.request(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[])).ok();
    client.request(SET_IRQS, &irq_set(TRIGGER, 0, 0, 0, &[])).ok();
    assert_eq!(trigger.read().unwrap_or(0), 0);
    server.stop();
}

/// An eventfd has no other end to see by that it is closed, so its copies in this process are counted by its id.
#[test]
fn interrupts_are_closed_when_disabled_and_when_the_client_leaves() {
    let open = |eventfd: &EventFd| {
        let id = |fd: &std::path::Path| {
            let info = std::fs::read_to_string(fd).unwrap_or_default();
            info.lines().find_map(|line| line.strip_prefix("eventfd-id:").map(str::to_owned))
        };
        let ours = id(format!("/proc/self/fdinfo/{}", eventfd.as_raw_fd()).as_ref());
        assert!(ours.is_some());
        std::fs::read_dir("/proc/self/fdinfo")
            .unwrap()
            .filter(|entry| id(&entry.as_ref().unwrap().path()) == ours)
            .count()
    };
    let server = ToyServer::start();
    let mut client = server.client();
    let eventfd = eventfd();
    client.request_with(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[]), &[eventfd.as_raw_fd()]).ok();
    assert_eq!(open(&eventfd), 2);
    client.request_with(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[]), &[eventfd.as_raw_fd()]).ok();
    assert_eq!(open(&eventfd), 2, "the one before is replaced");
    client.request(SET_IRQS, &irq_set(TRIGGER, 0, 0, 0, &[])).ok();
    assert_eq!(open(&eventfd), 1);
    client.request_with(SET_IRQS, &irq_set(ASSIGN, 0, 0, 1, &[]), &[eventfd.as_raw_fd()]).ok();
    drop(client);
    let mut next = server.client();
    assert_eq!(open(&eventfd), 1);
    next.request(SET_IRQS, &irq_set(TRIGGER, 0, 0, 1, &[])).ok();
    assert_eq!(eventfd.read().unwrap_or(0), 0, "the next client starts without interrupts");
    server.stop();
}

/// A socket whose last close waits for its peer to read, for an hour.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 3600 }).unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 4096]).is_ok() {}
    (socket, peer)
}

#[test]
fn descriptor_that_takes_long_to_close_keeps_nobody_waiting() {
    let server = ToyServer::start();
    let (socket, peer) = lingering();
    let mut client = server.client();
    {
        // Until this is given back, the server is in the first message, so that its copy of the socket will be the last.
        let _state = server.control.state();
        client.send(REGION_READ, 0, &access(RAM, 0, 1, &[]), &[]);
        client.send(GET_INFO, 0, &device_info(), &[socket.as_raw_fd()]);
        drop(socket);
    }
    client.receive().ok();
    client.receive().ok();
    client.assert_in_step();
    drop(client);
    server.client().assert_in_step();
    server.stop();
    drop(peer);
}

#[test]
fn descriptors_of_messages_that_nobody_receives_keep_nobody_waiting() {
    let server = ToyServer::start();
    let (socket, peer) = lingering();
    {
        let state = server.control.state();
        let mut client = server.connect();
        // The server waits for the state in the first message, and closes after the second: the others stay in the socket.
        client.send(VERSION, 0, &version(0, 0, QEMU_CAPABILITIES), &[]);
        client.send_bytes(&message_claiming(5, VERSION, 0, 0, &[]), &[]);
        client.send(GET_INFO, 0, &device_info(), &[socket.as_raw_fd()]);
        drop(socket);
        drop(client);
        drop(state);
    }
    server.client().assert_in_step();
    server.stop();
    drop(peer);
}

/// As many descriptors as the server closes at a time, of which none lets itself be closed.
fn clog() -> (Vec<TcpStream>, Vec<TcpStream>) {
    (0..4).map(|_| lingering()).unzip()
}

/// Sends descriptors that cannot be closed, and with a last message more than may be left to be closed; returns its id.
/// `held` is what keeps the server from the first message, so that its copies of the descriptors will be the last.
fn send_clog<T>(client: &mut RawClient, sockets: Vec<TcpStream>, held: T) -> u16 {
    let lingering: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let file = std::fs::File::open("/dev/null").unwrap();
    client.send(REGION_READ, 0, &access(RAM, 0, 1, &[]), &[]);
    client.send(GET_INFO, 0, &device_info(), &lingering);
    let last = client.send(GET_INFO, 0, &device_info(), &[file.as_raw_fd(); 253]);
    drop((sockets, held));
    client.receive().ok();
    client.receive().ok();
    last
}

#[test]
fn the_device_goes_on_while_a_client_waits_for_its_descriptors_to_be_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut server = Server::new(Listener::bind(&path).unwrap()).unwrap();
    server.limit_clogging(Duration::from_secs(3600));
    let (device, control) = ToyDevice::new(&server.registry().unwrap());
    let thread = run_in_thread(server, device);
    let mut client = RawClient::connect(&path);
    client.negotiate();
    let held = client.send(REGION_READ, 0, &access(SLOW, 0, 2, &[]), &[]);
    let (sockets, peers) = clog();
    let last = send_clog(&mut client, sockets, control.state());
    control.release();
    let reply = client.receive();
    assert_eq!((reply.id, &reply.ok()[16..]), (held, &[0xa5, 0xa5][..]));
    // With data that nobody has read, this resets the connections.
    drop(peers);
    let reply = client.receive();
    assert_eq!((reply.id, reply.errno()), (last, EINVAL));
    client.assert_in_step();
    signal_thread(&thread, Signal::SIGTERM);
    thread.join().unwrap().unwrap();
}

#[test]
fn client_whose_descriptors_cannot_be_closed_is_disconnected() {
    let server = ToyServer::start();
    let (sockets, peers) = clog();
    let mut client = server.client();
    send_clog(&mut client, sockets, server.control.state());
    client.assert_closed();
    drop(peers);
    server.client().assert_in_step();
    server.stop();
}
