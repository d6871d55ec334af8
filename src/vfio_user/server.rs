//! The event loop: one client at a time, the device's own sources, signals.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use thiserror::Error;

use super::complaints::Complaints;
use super::connection::{Connection, Progress, ReceiveError};
use super::device::{Device, DeviceFailure};
use super::listener::{Listener, ListeningSocket, Source};
use super::outbox::Outbox;
use super::session::{Next, Session};

/// The first token that a device may register its sources with, in [`Server::registry`].
pub const DEVICE_TOKEN: Token = Token(16);

const LISTENER: Token = Token(0);
const CLIENT: Token = Token(1);
const SIGNALS: Token = Token(2);

/// Receiving system calls that a client gets before the others have their turn: about 32 messages.
const CLIENT_BUDGET: u32 = 64;

/// Clients that are accepted, or refused, before the others have their turn.
const ACCEPT_BUDGET: u32 = 16;

/// How long accepting rests when the system has no descriptor or memory for it.
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
    /// `None` if the only client came with a descriptor, and once the server is about to end.
    listener: Option<ListeningSocket>,
    client: Option<Client>,
    /// Has come while its predecessor was leaving.
    successor: Option<UnixStream>,
    /// There may be clients to accept.
    arrivals: bool,
    /// Accepting has failed, and rests until then.
    paused_until: Option<Instant>,
    stopping: bool,
    /// A signal to end has come; a second one does not wait.
    signalled: bool,
}

impl Server {
    /// Prepares to serve what comes from `listener`.
    pub fn new(listener: Listener) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut server = Self {
            poll,
            listener: None,
            client: None,
            successor: None,
            arrivals: true,
            paused_until: None,
            stopping: false,
            signalled: false,
        };
        match listener.0 {
            Source::Listening(socket) => {
                server.watch(socket.as_raw_fd(), LISTENER, Interest::READABLE)?;
                server.listener = Some(socket);
            }
            Source::Connected(client) => server.adopt(client)?,
        }
        Ok(server)
    }

    /// Where a device registers what it wants to be woken by, with tokens from [`DEVICE_TOKEN`] on.
    pub fn registry(&self) -> io::Result<Registry> {
        self.poll.registry().try_clone()
    }

    /// Serves until a signal arrives at `signals`, or until the client is gone if there can be no other.
    ///
    /// Then the client is disconnected, the socket is removed, the device is stopped, and the loop goes on until the device
    /// has finished. The signals have to be blocked in every thread of the process; a second one ends the server at once.
    pub fn run(mut self, device: &mut dyn Device, signals: &SignalFd) -> Result<(), ServerError> {
        let flags = fcntl(signals, FcntlArg::F_GETFL).map_err(ServerError::Signals)?;
        fcntl(signals, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK))
            .map_err(ServerError::Signals)?;
        self.watch(signals.as_fd().as_raw_fd(), SIGNALS, Interest::READABLE).map_err(ServerError::Poll)?;

        let result = self.serve(device, signals);
        self.disconnect(device);
        result
    }

    fn serve(&mut self, device: &mut dyn Device, signals: &SignalFd) -> Result<(), ServerError> {
        let mut events = Events::with_capacity(64);
        loop {
            if let Some(failure) = device.take_failure() {
                return Err(ServerError::Device(failure));
            }
            if !self.stopping && self.listener.is_none() && self.client.is_none() {
                log::info!("the only client is gone");
                self.stop(device);
            }
            if self.stopping && device.stopped() {
                return Ok(());
            }
            match self.poll.poll(&mut events, self.timeout(device)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
                result => result.map_err(ServerError::Poll)?,
            }

            let mut wake = device.deadline().is_some_and(|deadline| deadline <= Instant::now());
            for event in &events {
                match event.token() {
                    LISTENER => self.arrivals = true,
                    CLIENT => self.note_client_event(),
                    SIGNALS => self.take_signals(device, signals)?,
                    _ => wake = true,
                }
            }
            if wake {
                device.wake();
            }
            self.serve_client(device, wake);
            self.accept(device);
        }
    }

    /// How long to wait for events; `None` without limit.
    fn timeout(&self, device: &dyn Device) -> Option<Duration> {
        if self.client.as_ref().is_some_and(|client| client.ready) || self.may_accept() {
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let next = [device.deadline(), self.paused_until].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    /// Begins to end after a signal; a second one does not wait for the device.
    fn take_signals(&mut self, device: &mut dyn Device, signals: &SignalFd) -> Result<(), ServerError> {
        let mut name = None;
        while let Some(signal) = signals.read_signal().map_err(ServerError::Signals)? {
            name = Some(signal.ssi_signo);
        }
        match name {
            None => Ok(()),
            Some(_) if self.signalled => Err(ServerError::Interrupted),
            Some(number) => {
                log::info!("ending, for signal {number}");
                self.signalled = true;
                if !self.stopping {
                    self.stop(device);
                }
                Ok(())
            }
        }
    }

    /// Lets go of client and listener, and has the device finish.
    fn stop(&mut self, device: &mut dyn Device) {
        self.stopping = true;
        self.successor = None;
        self.paused_until = None;
        self.disconnect(device);
        if let Some(listener) = self.listener.take() {
            self.unwatch(listener.as_raw_fd());
        }
        device.stop();
    }

    fn note_client_event(&mut self) {
        if let Some(client) = &mut self.client {
            client.ready = true;
        }
    }

    /// Gives the client its turn, and what the device owes it if the device was woken.
    fn serve_client(&mut self, device: &mut dyn Device, woken: bool) {
        let Some(client) = &mut self.client else { return };
        if woken {
            client.session.resume(device, &mut client.outbox);
            client.ready = true;
        }
        if !client.ready {
            return;
        }
        let interest = match client.serve(device) {
            Ok(Turn::Spent) => return,
            Ok(Turn::Waiting(interest)) => interest,
            Err(reason) => {
                log::info!("{reason}");
                return self.disconnect(device);
            }
        };
        client.ready = false;
        if interest != client.interest {
            client.interest = interest;
            let descriptor = client.connection.socket().as_raw_fd();
            if let Err(error) = self.poll.registry().reregister(&mut SourceFd(&descriptor), CLIENT, interest) {
                log::warn!("the client is disconnected: it cannot be watched: {error}");
                self.disconnect(device);
            }
        }
    }

    /// Takes a client, and refuses all others while it is there.
    fn accept(&mut self, device: &mut dyn Device) {
        for _ in 0..ACCEPT_BUDGET {
            if self.client.is_none() {
                if let Some(successor) = self.successor.take() {
                    self.welcome(successor, device);
                }
            }
            if !self.may_accept() {
                return;
            }
            let Some(listener) = &self.listener else { return };
            let arrival = listener.accept();
            if arrival.is_ok() {
                self.paused_until = None;
            }
            match (arrival, &mut self.client) {
                (Ok(socket), None) => self.welcome(socket, device),
                // It is left to read what its predecessor has sent, and perhaps to notice that it is gone.
                (Ok(socket), Some(client)) if client.is_leaving() => {
                    client.ready = true;
                    self.successor = Some(socket);
                }
                (Ok(_refused), Some(client)) => {
                    client.complaints.warn(format_args!("a second client is refused: this server has one at a time"));
                }
                (Err(error), _) => self.note_accept_error(&error),
            }
        }
    }

    /// Whether there may be somebody who can be served or refused.
    fn may_accept(&self) -> bool {
        self.arrivals
            && self.listener.is_some()
            && self.successor.is_none()
            && self.paused_until.is_none_or(|until| until <= Instant::now())
    }

    fn welcome(&mut self, socket: UnixStream, device: &mut dyn Device) {
        match self.adopt(socket) {
            Ok(()) => self.serve_client(device, false),
            Err(error) => log::warn!("a client cannot be served: {error}"),
        }
    }

    fn note_accept_error(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::WouldBlock => {
                self.arrivals = false;
                self.paused_until = None;
            }
            io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
            _ => {
                if self.paused_until.is_none() {
                    log::warn!("clients cannot be accepted now: {error}");
                }
                self.paused_until = Instant::now().checked_add(ACCEPT_PAUSE);
            }
        }
    }

    fn adopt(&mut self, socket: UnixStream) -> io::Result<()> {
        self.watch(socket.as_raw_fd(), CLIENT, Interest::READABLE)?;
        log::info!("a client has connected");
        self.client = Some(Client::new(socket));
        Ok(())
    }

    /// Forgets the client; its descriptors and mappings go with it.
    fn disconnect(&mut self, device: &mut dyn Device) {
        if let Some(client) = self.client.take() {
            self.unwatch(client.connection.socket().as_raw_fd());
            client.session.end(device);
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

/// The client that is being served.
#[derive(Debug)]
struct Client {
    connection: Connection,
    session: Session,
    outbox: Outbox,
    /// There may be something to receive or to send.
    ready: bool,
    /// What it is watched for: for room only while there is something to send, for each reply that it reads makes room.
    interest: Interest,
    /// About those that come while it is there.
    complaints: Complaints,
}

/// How a client's turn ended.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// It goes on when this is possible.
    Waiting(Interest),
    /// There may be more to do.
    Spent,
}

/// Why a client is served no longer.
#[derive(Debug, Error)]
enum Farewell {
    #[error("the client has left")]
    Left,
    #[error("the client is disconnected: {0}")]
    Receive(ReceiveError),
    #[error("the client is disconnected: nothing can be sent to it: {0}")]
    Send(io::Error),
    #[error("the client is disconnected: it did not begin as the protocol wants")]
    Refused,
}

impl Client {
    fn new(socket: UnixStream) -> Self {
        Self {
            connection: Connection::new(socket),
            session: Session::default(),
            outbox: Outbox::default(),
            ready: true,
            interest: Interest::READABLE,
            complaints: Complaints::default(),
        }
    }

    /// Whether it is gone. What it has sent before is still served.
    fn is_leaving(&self) -> bool {
        let mut state = [PollFd::new(self.connection.socket().as_fd(), PollFlags::POLLHUP)];
        poll(&mut state, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sends and receives until it would block or the budget is spent. Nothing is received while there is something to
    /// send: so a client that does not read cannot make the server keep its replies.
    fn serve(&mut self, device: &mut dyn Device) -> Result<Turn, Farewell> {
        let mut budget = CLIENT_BUDGET;
        loop {
            if !self.flush()? {
                return Ok(Turn::Waiting(Interest::WRITABLE));
            }
            match self.connection.receive(&mut budget) {
                Ok(Progress::Message) => {
                    let next = self.session.handle(self.connection.message(), device, &mut self.outbox);
                    if next == Next::Close {
                        self.flush()?;
                        return Err(Farewell::Refused);
                    }
                }
                Ok(Progress::WouldBlock) => return Ok(Turn::Waiting(Interest::READABLE)),
                Ok(Progress::BudgetSpent) => return Ok(Turn::Spent),
                Err(ReceiveError::Closed | ReceiveError::Socket(Errno::ECONNRESET)) => return Err(Farewell::Left),
                Err(error) => return Err(Farewell::Receive(error)),
            }
        }
    }

    /// Sends what the client takes; tells whether that was all.
    fn flush(&mut self) -> Result<bool, Farewell> {
        let Self { connection, outbox, .. } = self;
        match outbox.flush(|data| connection.send(data)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(Farewell::Left)
            }
            result => result.map_err(Farewell::Send),
        }
    }
}
