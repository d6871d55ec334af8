//! The device as the server sees it: it passes everything on to the real one, and checks what the server promises its
//! devices; in between, it plays the clients.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::raise;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use vfio_user_tpm::vfio_user::{
    Answer, Device, DeviceFailure, DeviceInfo, Interrupts, Irq, Mapping, Region, RegionFlags, Ticket,
};

use super::super::tape::Tape;
use super::client::Peer;
use super::{END, Other, descriptor, messages};

/// Clients at one time.
const PEERS: usize = 4;
/// Within this, after the last step of the clients, a server has ended on any machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// The largest access.
const MAX_ACCESS: usize = 1 << 20;

pub struct Driven<'a, D, O> {
    device: D,
    other: O,
    tape: Tape<'a>,
    /// Where clients connect, if they can.
    address: Option<UnixAddr>,
    peers: Vec<Peer>,
    in_order: bool,
    next_id: u16,
    /// Copies of eventfds that were sent, to be signalled.
    events: Vec<OwnedFd>,
    /// When the server has to have ended, once its clients have said everything.
    end: Option<Instant>,
    life: Life,
    /// The server was told to end, or had to, before its clients had said everything.
    cut_short: bool,
}

/// What the server has told the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Alone,
    Connected,
    Stopped,
}

impl<'a, D: Device, O: Other> Driven<'a, D, O> {
    pub fn new(
        device: D,
        other: O,
        tape: Tape<'a>,
        address: Option<UnixAddr>,
        peers: Vec<Peer>,
        in_order: bool,
    ) -> Self {
        Self {
            device,
            other,
            tape,
            address,
            peers,
            in_order,
            next_id: 0,
            events: vec![],
            end: None,
            life: Life::Alone,
            cut_short: false,
        }
    }

    /// The server has ended.
    pub fn end(self) {
        assert!(self.life != Life::Connected, "the device was not told that its client is gone");
        for peer in self.peers {
            peer.end(!self.cut_short && self.life == Life::Stopped);
        }
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    fn step(&mut self) {
        if self.tape.is_over() {
            self.finish();
        } else {
            self.play();
        }
        self.peers.iter_mut().for_each(Peer::turn);
    }

    fn play(&mut self) {
        let which = self.tape.byte();
        let id = self.id();
        let count = self.peers.len().max(1);
        let peer = usize::from(which >> 5) % count;
        match which & 0x1f {
            0 => self.connect(),
            1 => {
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.shut();
                }
            }
            2 if peer < self.peers.len() && self.address.is_some() => {
                self.peers.remove(peer);
            }
            3 => {
                let reads = self.tape.flag();
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.reads = reads;
                }
            }
            4 if self.address.is_some() && self.tape.below(16) == 0 => self.signal(),
            5 => {
                let bytes = self.tape.short();
                let descriptors = self.descriptors();
                self.push(peer, bytes, descriptors);
            }
            6..=8 => {
                let message = messages::version(id);
                self.push(peer, &message, vec![]);
            }
            9..=12 => {
                let message = messages::access(&mut self.tape, id);
                self.push(peer, &message, vec![]);
            }
            13 => {
                let burst = messages::command(&mut self.tape, id);
                self.next_id = self.next_id.wrapping_add(4);
                for message in burst {
                    self.push(peer, &message, vec![]);
                }
            }
            14 => self.signal_event(),
            15..=18 => self.other.step(&mut self.tape),
            19 => {} // The server has time.
            _ => {
                let message = messages::any(&mut self.tape, id);
                let descriptors = self.descriptors();
                self.push(peer, &message, descriptors);
            }
        }
    }

    fn push(&mut self, peer: usize, bytes: &[u8], descriptors: Vec<OwnedFd>) {
        if let Some(peer) = self.peers.get_mut(peer) {
            // The body behind the header, so that it can be partly there; the descriptors may be with either.
            let cut = match self.tape.below(8) {
                0 => usize::from(self.tape.byte()).min(bytes.len()),
                _ => 0,
            };
            let (first, second) = bytes.split_at(cut);
            if first.is_empty() {
                peer.push(second, descriptors);
            } else {
                peer.push(first, vec![]);
                peer.push(second, descriptors);
            }
        }
    }

    fn descriptors(&mut self) -> Vec<OwnedFd> {
        let count = match self.tape.byte() {
            few @ 0..=7 => few,
            8 => 16,
            9 => 17,
            10 => 253,
            11..=60 => 1,
            _ => 0,
        };
        if count > 17 {
            let one = descriptor::any(&mut self.tape);
            return (0..count).map(|_| one.try_clone().expect("a copy")).collect();
        }
        let descriptors: Vec<_> = (0..count).map(|_| descriptor::any(&mut self.tape)).collect();
        if self.events.len() < 16 {
            self.events.extend(descriptors.first().map(|first| first.try_clone().expect("a copy")));
        }
        descriptors
    }

    /// Signals, or reads, one of the descriptors that the server has.
    fn signal_event(&mut self) {
        let (wanted, which) = (self.tape.choose(&[PollFlags::POLLIN, PollFlags::POLLOUT]), self.tape.byte());
        let Some(event) = self.events.get(usize::from(which) % self.events.len().max(1)) else { return };
        let mut state = [PollFd::new(event.as_fd(), wanted)];
        // A full eventfd would not be written, nor an empty one read, without waiting.
        let possible = poll(&mut state, PollTimeout::ZERO).is_ok() && state[0].revents() == Some(wanted);
        if possible && wanted == PollFlags::POLLIN {
            let _not_an_eventfd = nix::unistd::read(event, &mut [0; 8]);
        } else if possible {
            let _not_an_eventfd = nix::unistd::write(event, &1u64.to_ne_bytes());
        }
    }

    fn connect(&mut self) {
        let Some(address) = &self.address else { return };
        if self.peers.len() == PEERS || self.life == Life::Stopped {
            return;
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
        // The queue may be full.
        if socket::connect(socket.as_raw_fd(), address).is_ok() {
            self.peers.push(Peer::new(socket, self.in_order));
        }
    }

    fn signal(&mut self) {
        self.cut_short = true;
        raise(END).expect("it is blocked");
    }

    /// Everybody sends what is left and leaves; then the server has to end.
    fn finish(&mut self) {
        self.other.finish();
        let now = Instant::now();
        assert!(now < *self.end.get_or_insert(now + PATIENCE), "the server does not end");
        for peer in &mut self.peers {
            peer.reads = true;
            if peer.has_sent() {
                peer.shut();
            }
        }
        if self.address.is_some() && self.peers.iter().all(|peer| peer.is_closed) && self.life != Life::Stopped {
            // All is heard: this signal cuts nobody short.
            raise(END).expect("it is blocked");
        }
    }

    fn check_access(&self, index: u32, offset: u64, count: usize, needed: RegionFlags) {
        assert_eq!(self.life, Life::Connected);
        assert!(index < self.device.info().regions && (1..=MAX_ACCESS).contains(&count));
        let region = self.device.region(index);
        assert!(
            offset.checked_add(count as u64).is_some_and(|end| end <= region.size) && region.flags.contains(needed)
        );
    }
}

impl<D: Device, O: Other> Device for Driven<'_, D, O> {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn region(&self, index: u32) -> Region {
        assert!(index < self.device.info().regions);
        self.device.region(index)
    }

    fn irq(&self, index: u32) -> Irq {
        assert!(index < self.device.info().irqs);
        self.device.irq(index)
    }

    fn mapping(&self, index: u32) -> Option<Mapping<'_>> {
        self.device.mapping(index)
    }

    fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Answer {
        self.check_access(index, offset, data.len(), RegionFlags::READ);
        self.device.read(index, offset, data)
    }

    fn write(&mut self, index: u32, offset: u64, data: &[u8]) -> Answer {
        self.check_access(index, offset, data.len(), RegionFlags::WRITE);
        self.device.write(index, offset, data)
    }

    fn resume(&mut self, ticket: Ticket, data: &mut [u8], must_answer: bool) -> Answer {
        assert_eq!(self.life, Life::Connected);
        self.device.resume(ticket, data, must_answer)
    }

    fn reset(&mut self) {
        assert_eq!(self.life, Life::Connected);
        self.device.reset();
    }

    fn interrupts(&mut self, interrupts: &mut dyn Interrupts) {
        assert_eq!(self.life, Life::Connected, "there is nobody to hear them");
        self.device.interrupts(interrupts);
    }

    fn connected(&mut self) {
        assert_eq!(self.life, Life::Alone);
        self.life = Life::Connected;
        self.device.connected();
    }

    fn disconnected(&mut self) {
        assert_eq!(self.life, Life::Connected);
        self.life = Life::Alone;
        self.device.disconnected();
    }

    fn wake(&mut self) {
        self.step();
        self.device.wake();
    }

    fn deadline(&self) -> Option<Instant> {
        Some(Instant::now())
    }

    fn stop(&mut self) {
        assert_eq!(self.life, Life::Alone);
        self.life = Life::Stopped;
        self.device.stop();
    }

    fn stopped(&self) -> bool {
        assert_eq!(self.life, Life::Stopped);
        self.device.stopped()
    }

    fn take_failure(&mut self) -> Option<DeviceFailure> {
        let failure = self.device.take_failure();
        // The server ends then, whatever is still to be heard.
        self.cut_short |= failure.is_some();
        failure
    }
}
