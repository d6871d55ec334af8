//! Something else that the event loop serves, beside its client and its device: it has sources of its own, and may look at
//! the device.

use std::os::fd::AsFd;
use std::time::Instant;

use mio::Token;
use nix::sys::socket::{getsockopt, sockopt};

use super::device::Device;

/// The first token that an attendant may register its sources with, in [`super::Server::registry`].
pub const ATTENDANT_TOKEN: Token = Token(1024);

/// What the event loop serves besides. Nothing here may block; it has its turn after the client.
pub trait Attendant<D: ?Sized> {
    /// A source that was registered with this token became ready. As `mio` has it, that is said once.
    fn ready(&mut self, token: Token, device: &D, connections: &Connections);

    /// When the attendant wants [`expire`](Self::expire) to be called at the latest.
    fn deadline(&self) -> Option<Instant>;

    /// The [`deadline`](Self::deadline) has passed: afterwards it has to be another.
    fn expire(&mut self, now: Instant, device: &D, connections: &Connections);
}

/// Nobody.
impl<D: ?Sized> Attendant<D> for () {
    fn ready(&mut self, _token: Token, _device: &D, _connections: &Connections) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn expire(&mut self, _now: Instant, _device: &D, _connections: &Connections) {}
}

/// A device and its attendant, whichever they are: so the loop is not made for each kind of device.
pub(super) trait Attended {
    /// The device.
    fn device(&mut self) -> &mut dyn Device;

    /// [`Attendant::ready`].
    fn ready(&mut self, token: Token, connections: &Connections);

    /// [`Attendant::deadline`].
    fn deadline(&self) -> Option<Instant>;

    /// [`Attendant::expire`].
    fn expire(&mut self, now: Instant, connections: &Connections);
}

impl<D: Device> Attended for (&mut D, &mut dyn Attendant<D>) {
    fn device(&mut self) -> &mut dyn Device {
        self.0
    }

    fn ready(&mut self, token: Token, connections: &Connections) {
        self.1.ready(token, self.0, connections);
    }

    fn deadline(&self) -> Option<Instant> {
        self.1.deadline()
    }

    fn expire(&mut self, now: Instant, connections: &Connections) {
        self.1.expire(now, self.0, connections);
    }
}

/// The server's clients so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connections {
    /// Clients that were served.
    pub made: u64,
    /// Those that were not: strangers, and those that came while another was served.
    pub refused: u64,
    /// The client that is being served.
    pub current: Option<Connected>,
}

/// A client that is being served.
#[derive(Clone, Copy, Debug)]
pub struct Connected {
    /// Since when.
    pub since: Instant,
    /// Its process when it connected, if that is known.
    pub peer: Option<Peer>,
}

/// A process, as the kernel has noted it when the other side connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number; 0 for one outside of this process's namespace.
    pub process: i32,
    /// Its user's number.
    pub user: u32,
}

impl Peer {
    /// The process at the other side of a socket.
    pub(super) fn of(socket: &impl AsFd) -> Option<Self> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials).ok()?;
        Some(Self { process: credentials.pid(), user: credentials.uid() })
    }
}
