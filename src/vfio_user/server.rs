//! The event loop: one client at a time, the device's own sources, signals.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::signalfd::SignalFd;
use thiserror::Error;

use super::attendant::{ATTENDANT_TOKEN, Attendant, Attended, Connected, Connections, Peer};
use super::busy_poll::BusyPoll;
use super::client::{Client, Farewell, Waiting};
use super::closer::Closer;
use super::device::{Device, DeviceFailure};
use super::listener::{Listener, ListeningSocket, Source};
use super::rights::AllowedUsers;
use super::visitors::Visitors;

/// The first token that a device may register its sources with, in [`Server::registry`]; they end before
/// [`ATTENDANT_TOKEN`].
pub const DEVICE_TOKEN: Token = Token(16);

const LISTENER: Token = Token(0);
const CLIENT: Token = Token(1);
const SIGNALS: Token = Token(2);
const UNMASKS: Token = Token(3);

/// Clients that are accepted, or refused, before the others have their turn.
const ACCEPT_BUDGET: u32 = 16;

/// How long a client that has not agreed on a version yet may keep another one waiting. QEMU negotiates as soon as it is
/// connected, so this is much; and a client that says nothing does not keep the only place for ever. While nobody else
/// waits, it may take its time: it might be stopped in a debugger.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// How long a client may have sent more descriptors than can be closed. To close them takes only a moment, unless they do
/// not let themselves be closed.
const CLOGGING_LIMIT: Duration = Duration::from_secs(1);

/// How long such a client rests before it is asked again.
const CLOGGED_PAUSE: Duration = Duration::from_millis(5);

/// Signals to end that come within this time are one: timeout(1), for example, sends to a process and to its group, and a
/// terminal and a service manager may both mean it.
const ONE_WISH: Duration = Duration::from_secs(1);

/// How long accepting rests when the system has no descriptor or memory for it, or too many descriptors are to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server ended, other than as it should.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The event loop cannot wait.
    #[error("cannot wait for events")]
    Poll(#[source] io::Error),
    /// The signals cannot be read.
    #[error("cannot read signals")]
    Signals(#[source] Errno),
    /// The device cannot go on.
    #[error("the device cannot go on")]
    Device(#[source] DeviceFailure),
    /// A second signal came while the device was finishing.
    #[error("ended by a second signal before the device had finished; what it was doing may be lost")]
    Interrupted,
}

/// Serves one device to one client after another.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    /// The epoll instance of `poll`, for what is watched by level: `mio` only watches by edge, and an edge wants the
    /// socket read until it is empty, which is one system call more for each access.
    levels: Epoll,
    /// `None` if the only client came with a descriptor, and once the server is about to end.
    listener: Option<ListeningSocket>,
    allowed: AllowedUsers,
    /// For what clients send, and for those that were served.
    closer: Closer,
    /// For those that were not: they must not be in the way of the one that is.
    strangers: Closer,
    client: Option<Watched>,
    connections: Connections,
    /// Has come while its predecessor was leaving, or had not negotiated.
    successor: Option<UnixStream>,
    handshake_limit: Duration,
    clogging_limit: Duration,
    busy_poll: BusyPoll,
    /// There may be clients to accept.
    arrivals: bool,
    /// Accepting has failed, and rests until then.
    paused_until: Option<Instant>,
    stopping: bool,
    /// Why the device can serve no more.
    failure: Option<DeviceFailure>,
    /// When the signal to end has come; a second one does not wait.
    signalled: Option<Instant>,
    /// The process whose signals alone count, as long as it is our parent.
    parent: Option<u32>,
}

impl Server {
    /// Prepares to serve what comes from `listener`.
    pub fn new(listener: Listener) -> io::Result<Self> {
        let poll = Poll::new()?;
        let levels = Epoll(poll.registry().as_fd().try_clone_to_owned()?);
        let mut server = Self {
            poll,
            levels,
            listener: None,
            allowed: listener.allowed,
            closer: Closer::start()?,
            strangers: Closer::start()?,
            client: None,
            connections: Connections::default(),
            successor: None,
            handshake_limit: HANDSHAKE_LIMIT,
            clogging_limit: CLOGGING_LIMIT,
            busy_poll: BusyPoll::default(),
            arrivals: true,
            paused_until: None,
            stopping: false,
            failure: None,
            signalled: None,
            parent: None,
        };
        match listener.source {
            Source::Listening(socket) => {
                server.watch(socket.as_raw_fd(), LISTENER, Interest::READABLE)?;
                server.listener = Some(socket);
            }
            Source::Connected(client) => server.adopt(client)?,
        }
        Ok(server)
    }

    /// From now on only the signals of the process that started this one count, as long as it is there: those that are
    /// sent to all processes of a service or a container are its to act upon.
    pub fn obey_parent_only(&mut self) {
        self.parent = Some(parent_id());
    }

    /// How long a client may keep another waiting before it has negotiated, if not 5 seconds.
    pub fn limit_handshake(&mut self, limit: Duration) {
        self.handshake_limit = limit;
    }

    /// How long a client may have sent more descriptors than can be closed, if not 1 second. Nothing is received from it
    /// meanwhile.
    pub fn limit_clogging(&mut self, limit: Duration) {
        self.clogging_limit = limit;
    }

    /// Stays awake for `limit` after each access, as long as that pays; zero, as it is without this, for never.
    pub fn busy_poll(&mut self, limit: Duration) {
        self.busy_poll = BusyPoll::new(limit);
    }

    /// Where a device registers what it wants to be woken by, with tokens from [`DEVICE_TOKEN`] on.
    pub fn registry(&self) -> io::Result<Registry> {
        self.poll.registry().try_clone()
    }

    /// Those who come from `listener`, for an attendant. What they send is closed like what strangers of the server send.
    ///
    /// # Errors
    /// `InvalidInput` if it is a connection, and does not listen.
    pub fn visitors(&self, listener: Listener) -> io::Result<Visitors> {
        match listener.source {
            Source::Listening(socket) => {
                Ok(Visitors { socket, allowed: listener.allowed, closer: self.strangers.clone() })
            }
            Source::Connected(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Serves until a signal arrives at `signals`, or until the client is gone if there can be no other.
    ///
    /// Then the client is disconnected, the socket is removed, the device is stopped, and the loop goes on until the device
    /// has finished. The signals have to be blocked in every thread of the process; a second one ends the server at once.
    pub fn run<D: Device>(self, device: &mut D, signals: &SignalFd) -> Result<(), ServerError> {
        self.run_attended(device, &mut (), signals)
    }

    /// As [`run`](Self::run), and serves an attendant, until the device has finished.
    pub fn run_attended<D: Device>(
        mut self,
        device: &mut D,
        attendant: &mut dyn Attendant<D>,
        signals: &SignalFd,
    ) -> Result<(), ServerError> {
        let flags = fcntl(signals, FcntlArg::F_GETFL).map_err(ServerError::Signals)?;
        fcntl(signals, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK))
            .map_err(ServerError::Signals)?;
        self.watch(signals.as_fd().as_raw_fd(), SIGNALS, Interest::READABLE).map_err(ServerError::Poll)?;

        let mut attended = (device, attendant);
        let result = self.serve(&mut attended, signals);
        self.disconnect(attended.0);
        result
    }

    fn serve(&mut self, attended: &mut dyn Attended, signals: &SignalFd) -> Result<(), ServerError> {
        let mut events = Events::with_capacity(64);
        loop {
            let deadline = attended.deadline();
            let device = attended.device();
            if let Some(failure) = device.take_failure().filter(|_| self.failure.is_none()) {
                self.failure = Some(failure);
                self.stop(device);
            }
            if !self.stopping && self.listener.is_none() && self.client.is_none() {
                log::info!("the only client is gone");
                self.stop(device);
            }
            if self.stopping && device.stopped() {
                return self.failure.take().map_or(Ok(()), |failure| Err(ServerError::Device(failure)));
            }
            self.wait(&mut events, device, deadline).map_err(ServerError::Poll)?;

            let mut due =
                Due { woken: device.deadline().is_some_and(|deadline| deadline <= Instant::now()), ..Due::default() };
            let mut is_attended = false;
            for event in &events {
                match event.token() {
                    LISTENER => self.arrivals = true,
                    CLIENT => due.message = true,
                    UNMASKS => due.unmasks = true,
                    SIGNALS => self.take_signals(device, signals)?,
                    token if token >= ATTENDANT_TOKEN => is_attended = true,
                    _ => due.woken = true,
                }
            }
            if due.woken {
                device.wake();
            }
            if self.serve_client(device, due) {
                self.busy_poll.note_access();
            }
            self.settle_succession(device);
            self.accept();
            if is_attended {
                let tokens = events.iter().map(Event::token).filter(|&token| token >= ATTENDANT_TOKEN);
                tokens.for_each(|token| attended.ready(token, &self.connections));
            }
            if let Some(deadline) = deadline {
                let now = Instant::now();
                if deadline <= now {
                    attended.expire(now, &self.connections);
                }
            }
        }
    }

    /// Waits for events, at first without sleeping where that pays.
    fn wait(&mut self, events: &mut Events, device: &dyn Device, attendant: Option<Instant>) -> io::Result<()> {
        while self.busy_poll.is_awake(Instant::now) {
            self.look(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                self.busy_poll.note_event();
                return Ok(());
            }
            if device.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(());
            }
            // Who is to send the next message may need this CPU for it.
            std::thread::yield_now();
        }
        self.look(events, self.timeout(device, attendant))
    }

    fn look(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            result => result,
        }
    }

    /// How long to wait for events; `None` without limit.
    fn timeout(&self, device: &dyn Device, attendant: Option<Instant>) -> Option<Duration> {
        if self.may_accept() {
            return Some(Duration::ZERO);
        }
        let handshake = self.successor.as_ref().and(self.handshake_deadline());
        let clogged = self.client.as_ref().and_then(Watched::ask_again);
        let next = [device.deadline(), attendant, self.paused_until, handshake, clogged].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Begins to end after a signal; a second one does not wait for the device.
    fn take_signals(&mut self, device: &mut dyn Device, signals: &SignalFd) -> Result<(), ServerError> {
        let mut name = None;
        while let Some(signal) = signals.read_signal().map_err(ServerError::Signals)? {
            if self.heeds(signal.ssi_pid) {
                name = Some(signal.ssi_signo);
            }
        }
        match name {
            None => Ok(()),
            Some(_) if self.signalled.is_some_and(|first| first.elapsed() >= ONE_WISH) => Err(ServerError::Interrupted),
            Some(_) if self.signalled.is_some() => Ok(()),
            Some(number) => {
                log::info!("ending, for signal {number}");
                self.signalled = Some(Instant::now());
                if !self.stopping {
                    self.stop(device);
                }
                Ok(())
            }
        }
    }

    /// Whether a signal of this process counts.
    fn heeds(&self, sender: u32) -> bool {
        // Without its parent, a server has to listen to anybody.
        self.parent.is_none_or(|parent| sender == parent || parent_id() != parent)
    }

    /// Lets go of client and listener, and has the device finish.
    fn stop(&mut self, device: &mut dyn Device) {
        self.stopping = true;
        if let Some(successor) = self.successor.take() {
            self.strangers.hang_up(successor);
        }
        self.paused_until = None;
        self.disconnect(device);
        if let Some(listener) = self.listener.take() {
            self.unwatch(listener.as_raw_fd());
            // Whatever those have sent who were not accepted goes with it.
            self.strangers.close([listener.close()]);
        }
        device.stop();
    }

    /// Gives the client its turn; returns whether it may soon have more to say.
    fn serve_client(&mut self, device: &mut dyn Device, due: Due) -> bool {
        let Some(watched) = &mut self.client else { return false };
        let served = watched.serve(device, due, self.clogging_limit);
        match served.and_then(|is_active| watched.watch(&self.levels).map(|()| is_active).map_err(Farewell::from)) {
            Ok(is_active) => is_active,
            Err(reason) => {
                log::info!("{reason}");
                self.disconnect(device);
                false
            }
        }
    }

    /// When the client must have negotiated, if it has not and another waits.
    fn handshake_deadline(&self) -> Option<Instant> {
        let Watched { client, since, .. } = self.client.as_ref()?;
        if client.has_negotiated() { None } else { since.checked_add(self.handshake_limit) }
    }

    /// Decides between the client and one that waits for its place.
    fn settle_succession(&mut self, device: &mut dyn Device) {
        let Some(Watched { client, .. }) = self.client.as_ref().filter(|_| self.successor.is_some()) else { return };
        if client.has_negotiated() {
            if !client.is_leaving() {
                if let Some(refused) = self.successor.take() {
                    self.refuse(refused);
                }
            }
        } else if self.handshake_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            log::warn!("the client is disconnected: it has not negotiated, and another waits");
            self.disconnect(device);
        }
    }

    /// Takes a client, and refuses all others while it is there.
    fn accept(&mut self) {
        for _ in 0..ACCEPT_BUDGET {
            if self.client.is_none() {
                if let Some(successor) = self.successor.take() {
                    self.welcome(successor);
                }
            }
            if !self.may_accept() {
                return;
            }
            let Some(listener) = &self.listener else { return };
            if !self.strangers.has_room() {
                return self.pause_accepting(&"descriptors of earlier ones are still being closed");
            }
            let arrival = listener.accept();
            if arrival.is_ok() {
                self.paused_until = None;
            }
            match arrival {
                Ok(socket) => self.receive_arrival(socket),
                Err(error) => self.note_accept_error(&error),
            }
        }
    }

    fn receive_arrival(&mut self, socket: UnixStream) {
        if let Err(stranger) = self.allowed.admit(&socket) {
            self.hang_up(socket);
            return log::warn!("a client is refused: {stranger}");
        }
        match &self.client {
            None => self.welcome(socket),
            // What its predecessor has sent is left to read, and perhaps to notice that it is gone; or it may yet prove to
            // be none.
            Some(Watched { client, .. }) if client.is_leaving() || !client.has_negotiated() => {
                self.successor = Some(socket);
            }
            Some(_) => self.refuse(socket),
        }
    }

    fn refuse(&mut self, socket: UnixStream) {
        self.hang_up(socket);
        log::warn!("a second client is refused: this server has one at a time");
    }

    fn hang_up(&mut self, stranger: UnixStream) {
        self.connections.refused = self.connections.refused.saturating_add(1);
        self.strangers.hang_up(stranger);
    }

    /// Whether there may be somebody who can be served or refused.
    fn may_accept(&self) -> bool {
        self.arrivals
            && self.listener.is_some()
            && self.successor.is_none()
            && self.paused_until.is_none_or(|until| until <= Instant::now())
    }

    fn welcome(&mut self, socket: UnixStream) {
        if let Err(error) = self.adopt(socket) {
            log::warn!("a client cannot be served: {error}");
        }
    }

    fn note_accept_error(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => {
                self.arrivals = false;
                self.paused_until = None;
            }
            io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
            _ => self.pause_accepting(error),
        }
    }

    fn pause_accepting(&mut self, reason: &dyn Display) {
        if self.paused_until.is_none() {
            log::warn!("clients cannot be accepted now: {reason}");
        }
        self.paused_until = Instant::now().checked_add(ACCEPT_PAUSE);
    }

    fn adopt(&mut self, socket: UnixStream) -> io::Result<()> {
        let peer = Peer::of(&socket);
        let watched = Watched::new(Client::new(socket, self.closer.clone()), &self.levels)?;
        log::info!("a client has connected");
        self.connections.made = self.connections.made.saturating_add(1);
        self.connections.current = Some(Connected { since: watched.since, peer });
        self.client = Some(watched);
        Ok(())
    }

    /// Forgets the client; its descriptors and mappings go with it.
    fn disconnect(&mut self, device: &mut dyn Device) {
        if let Some(Watched { client, .. }) = self.client.take() {
            if let Err(error) = self.levels.delete(client.socket()) {
                log::debug!("a client cannot be unwatched: {error}");
            }
            client.end(device);
            self.connections.current = None;
        }
    }

    fn watch(&self, descriptor: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&descriptor), token, interest)
    }

    fn unwatch(&self, descriptor: RawFd) {
        if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&descriptor)) {
            log::debug!("a descriptor cannot be unwatched: {error}");
        }
    }
}

/// What the client's turn is for.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    /// The device was woken, and may owe the client something.
    woken: bool,
    /// The client has signalled an eventfd that unmasks.
    unmasks: bool,
    /// There is something to receive, or room for what is to be sent.
    message: bool,
}

/// The client, and what it is watched for.
#[derive(Debug)]
struct Watched {
    client: Client,
    waiting: Waiting,
    unmasks: bool,
    since: Instant,
}

impl Watched {
    fn new(client: Client, levels: &Epoll) -> Result<Self, Errno> {
        let waiting = client.waiting();
        levels.add(client.socket(), event(waiting))?;
        Ok(Self { client, waiting, unmasks: false, since: Instant::now() })
    }

    /// When it is to be served though no event tells.
    fn ask_again(&self) -> Option<Instant> {
        if self.waiting == Waiting::ForRoom { Instant::now().checked_add(CLOGGED_PAUSE) } else { None }
    }

    /// Returns whether it has said something, or was told what it has waited for: more will come soon then.
    fn serve(&mut self, device: &mut dyn Device, due: Due, clogging_limit: Duration) -> Result<bool, Farewell> {
        let has_answered = due.woken && self.client.resume(device)?;
        if due.unmasks {
            self.client.unmask(device);
        }
        if due.message || self.waiting == Waiting::ForRoom {
            self.client.serve(device, clogging_limit)?;
        }
        Ok(has_answered || due.message)
    }

    /// Watches for what the client waits for now.
    fn watch(&mut self, levels: &Epoll) -> Result<(), Errno> {
        let waiting = self.client.waiting();
        if waiting != self.waiting {
            levels.modify(self.client.socket(), &mut event(waiting))?;
            self.waiting = waiting;
        }
        if !self.unmasks {
            if let Some(unmasks) = self.client.unmask_events() {
                levels.add(unmasks, EpollEvent::new(EpollFlags::EPOLLIN, UNMASKS.0 as u64))?;
                self.unmasks = true;
            }
        }
        Ok(())
    }
}

/// What epoll is to tell of a client.
fn event(waiting: Waiting) -> EpollEvent {
    let flags = match waiting {
        Waiting::ToReceive => EpollFlags::EPOLLIN,
        Waiting::ToSend => EpollFlags::EPOLLOUT,
        // That the client has left is told always, but so only once.
        Waiting::ForRoom => EpollFlags::EPOLLONESHOT,
    };
    EpollEvent::new(flags, CLIENT.0 as u64)
}
