//! A process without free descriptors. These tests have a process of their own, because they take them all.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use common::ToyServer;
use common::raw_client::{GET_INFO, RawClient, device_info};
use nix::libc::EINVAL;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Held by the test that takes the descriptors.
static DESCRIPTORS: Mutex<()> = Mutex::new(());

/// Opens files until no more can be opened.
fn hoard() -> Vec<File> {
    let hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!hoard.is_empty());
    hoard
}

#[test]
fn descriptors_that_the_kernel_cannot_deliver_refuse_their_message() {
    let _descriptors = DESCRIPTORS.lock().unwrap();
    let server = ToyServer::start();
    let mut client = server.client();
    let (mut kept, given) = UnixStream::pair().unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut hoard = hoard();
    hoard.truncate(hoard.len() - 2);
    client.send(GET_INFO, 0, &device_info(), &[given.as_raw_fd(); 5]);
    drop(given);
    assert_eq!(client.receive().errno(), EINVAL);
    assert_eq!(kept.read(&mut [0]).unwrap(), 0, "the two that arrived are closed");
    client.assert_in_step();
    drop(hoard);
    server.stop();
}

#[test]
fn client_is_accepted_when_descriptors_are_free_again() {
    let _descriptors = DESCRIPTORS.lock().unwrap();
    let server = ToyServer::start();
    server.client().assert_in_step();
    let address = UnixAddr::new(&server.path()).unwrap();
    let early = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();

    let hoard = hoard();
    connect(early.as_raw_fd(), &address).unwrap();
    let mut client = RawClient::from_stream(UnixStream::from(early));
    let id = client.send(1, 0, &[0; 4], &[]);
    drop(hoard);
    assert_eq!(client.receive().id, id);
    client.assert_in_step();
    server.stop();
}
