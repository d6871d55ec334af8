//! A process without free descriptors. By itself in its process, because it takes them all.

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use common::ToyServer;
use common::raw_client::RawClient;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

#[test]
fn client_is_accepted_when_descriptors_are_free_again() {
    let server = ToyServer::start();
    server.client().assert_in_step();
    let address = UnixAddr::new(&server.path()).unwrap();
    let early = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();

    let hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!hoard.is_empty());
    connect(early.as_raw_fd(), &address).unwrap();
    let mut client = RawClient::from_stream(UnixStream::from(early));
    let id = client.send(1, 0, &[0; 4], &[]);
    drop(hoard);
    assert_eq!(client.receive().id, id);
    client.assert_in_step();
    server.stop();
}
