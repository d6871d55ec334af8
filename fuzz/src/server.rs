//! A whole server, its event loop included, with clients that do anything and a device behind it.
//!
//! Everything happens in one thread and without a pause: the device says that it wants to be woken at once, and the
//! server's waking it is when the clients, who are played here, do their next step.

mod client;
mod descriptor;
mod driven;
mod memory;
mod messages;
mod tpm;

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use vfio_user_tpm::vfio_user::{Device, Listener, Server, ServerError};

use super::open_descriptors;
use super::tape::Tape;
use client::Peer;
use driven::Driven;

/// What ends a server that listens. Not one of those that a fuzzer takes for itself.
const END: Signal = Signal::SIGURG;

pub fn run(data: &[u8]) {
    super::log_lines::check();
    open_descriptors::unchanged_by(|| {
        let mut tape = Tape::new(data);
        let (listens, is_tpm) = (tape.flag(), tape.flag());
        if is_tpm {
            let (device, backend) = tpm::device(&mut tape);
            serve(tape, listens, true, device, backend);
        } else {
            let (device, control) = memory::device();
            serve(tape, listens, false, device, control);
        }
    });
}

/// The other side of a device: what a backend or a source of interrupts does.
trait Other {
    /// Does something.
    fn step(&mut self, tape: &mut Tape<'_>);
    /// From now on, does what lets the device end.
    fn finish(&mut self);
}

fn serve(tape: Tape<'_>, listens: bool, answers_in_order: bool, device: impl Device, other: impl Other) {
    let mask = SigSet::from(END);
    mask.thread_block().expect("a signal can be blocked");
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).expect("a signalfd");
    let (listener, address, peers) = if listens {
        let (socket, address) = listening();
        (socket, Some(address), vec![])
    } else {
        let (ours, theirs) = pair();
        (theirs, None, vec![Peer::new(ours, answers_in_order)])
    };
    let server = Server::new(Listener::from_fd(listener).expect("it is a socket")).expect("a server");
    let mut driven = Driven::new(device, other, tape, address, peers, answers_in_order);
    match server.run(&mut driven, &signals) {
        Ok(()) | Err(ServerError::Device(_) | ServerError::Interrupted) => {}
        Err(error) => panic!("{error}"),
    }
    driven.end();
    // One that came after the last look at the signals must not end the next server.
    while let Ok(Some(_)) = signals.read_signal() {}
}

fn pair() -> (OwnedFd, OwnedFd) {
    socket::socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).expect("a socket pair")
}

/// A socket on an address that the kernel chooses.
fn listening() -> (OwnedFd, UnixAddr) {
    let listener =
        socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    socket::bind(listener.as_raw_fd(), &UnixAddr::new_unnamed()).expect("an abstract address");
    socket::listen(&listener, Backlog::new(16).expect("few")).expect("it listens");
    let address = socket::getsockname(listener.as_raw_fd()).expect("it has one");
    (listener, address)
}
