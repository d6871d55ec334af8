//! The socket, served by the event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::request::{MAX_REQUEST, Request, parse};
use super::{Answer, Outcome};
use crate::vfio_user::{ATTENDANT_TOKEN, Attendant, Connections, Visitor, Visitors};

/// Connections at a time. More wait until one of them has ended.
const MAX_CONNECTIONS: usize = 4;

/// Those that are accepted, and end at once, before the others have their turn.
const ACCEPT_BUDGET: usize = 8;

/// How long a connection may take to ask, and to read what it is told.
const LIMIT: Duration = Duration::from_secs(5);

/// How long accepting rests when the system has no descriptor for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Makes the answer about a device; `None` where there is nothing at that path.
pub type Answerer<D> = Box<dyn Fn(&str, &D, &Connections) -> Option<Answer>>;

/// A control socket.
pub struct ControlSocket<D> {
    visitors: Visitors,
    registry: Registry,
    answerer: Answerer<D>,
    limit: Duration,
    connections: [Option<Connection>; MAX_CONNECTIONS],
    /// There may be somebody to accept.
    arrivals: bool,
    /// Accepting goes on then, though no event tells.
    paused_until: Option<Instant>,
}

/// One question, and its answer.
#[derive(Debug)]
struct Connection {
    visitor: Visitor,
    deadline: Instant,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// These bytes have come so far.
    Asking(Vec<u8>),
    /// As many bytes of the answer are sent.
    Answering(Vec<u8>, usize),
}

impl<D> ControlSocket<D> {
    /// Has the event loop of `registry` serve `visitors`. `answerer` is given the path that is asked for.
    ///
    /// # Errors
    /// If the loop cannot watch the socket.
    pub fn new(visitors: Visitors, registry: Registry, answerer: Answerer<D>) -> io::Result<Self> {
        registry.register(&mut SourceFd(&visitors.as_raw_fd()), ATTENDANT_TOKEN, Interest::READABLE)?;
        Ok(Self {
            visitors,
            registry,
            answerer,
            limit: LIMIT,
            connections: Default::default(),
            arrivals: true,
            paused_until: None,
        })
    }

    /// How long a connection may take, if not 5 seconds.
    pub fn limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Accepts whom there is room for.
    fn accept(&mut self, device: &D, connections: &Connections) {
        self.paused_until = None;
        for _ in 0..ACCEPT_BUDGET {
            let Some(place) = self.connections.iter().position(Option::is_none) else { return };
            if !self.arrivals {
                return;
            }
            match self.visitors.accept() {
                Ok(visitor) => self.welcome(place, visitor, device, connections),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.arrivals = false,
                    io::ErrorKind::PermissionDenied => log::warn!("a question is not heard: {error}"),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        log::warn!("nobody can be accepted on the control socket now: {error}");
                        self.paused_until = Instant::now().checked_add(ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
        self.paused_until = Some(Instant::now());
    }

    fn welcome(&mut self, place: usize, visitor: Visitor, device: &D, connections: &Connections) {
        let token = Token(ATTENDANT_TOKEN.0.saturating_add(1).saturating_add(place));
        let now = Instant::now();
        let watched =
            self.registry.register(&mut SourceFd(&visitor.as_raw_fd()), token, Interest::READABLE | Interest::WRITABLE);
        if let Err(error) = watched {
            return log::warn!("a connection to the control socket cannot be watched: {error}");
        }
        let deadline = now.checked_add(self.limit).unwrap_or(now);
        if let Some(connection) = self.connections.get_mut(place) {
            *connection = Some(Connection { visitor, deadline, phase: Phase::Asking(Vec::new()) });
        }
        // Most have asked before they are accepted.
        self.serve(place, device, connections);
    }

    /// Goes on with one connection as far as it can without waiting.
    fn serve(&mut self, place: usize, device: &D, connections: &Connections) {
        let Some(slot) = self.connections.get_mut(place) else { return };
        let Some(connection) = slot else { return };
        let answer = |path: &str| (self.answerer)(path, device, connections);
        match connection.go_on(answer) {
            Ok(true) => *slot = None,
            Ok(false) => {}
            Err(error) => {
                log::debug!("a connection to the control socket has ended: {error}");
                *slot = None;
            }
        }
    }
}

impl Connection {
    /// Returns whether all is done.
    fn go_on(&mut self, answer: impl Fn(&str) -> Option<Answer>) -> io::Result<bool> {
        loop {
            match &mut self.phase {
                Phase::Asking(received) => {
                    let answer = match parse(received) {
                        Request::Partial => {
                            let mut bytes = [0; MAX_REQUEST];
                            let room = bytes.get_mut(received.len()..).unwrap_or_default();
                            match self.visitor.receive(room) {
                                Ok(0) => return Ok(true),
                                Ok(size) => received.extend_from_slice(room.get(..size).unwrap_or_default()),
                                Err(error) => return waits(error),
                            }
                            continue;
                        }
                        Request::Refused(answer) => answer,
                        Request::Get(path) => {
                            answer(path).unwrap_or_else(|| Answer::line(Outcome::NotFound, "there is nothing here"))
                        }
                    };
                    self.phase = Phase::Answering(answer.to_bytes(), 0);
                }
                Phase::Answering(bytes, sent) => {
                    let rest = bytes.get(*sent..).unwrap_or_default();
                    if rest.is_empty() {
                        return Ok(true);
                    }
                    match self.visitor.send(rest) {
                        Ok(size) => *sent = sent.saturating_add(size),
                        Err(error) => return waits(error),
                    }
                }
            }
        }
    }

    /// Its time is over: who has not asked is told so.
    fn expire(&self) {
        if let Phase::Asking(received) = &self.phase {
            if !received.is_empty() {
                let answer = Answer::line(Outcome::RequestTimeout, "the request did not come in time");
                let _ = self.visitor.send(&answer.to_bytes());
            }
        }
    }
}

fn waits(error: io::Error) -> io::Result<bool> {
    match error.kind() {
        io::ErrorKind::WouldBlock => Ok(false),
        _ => Err(error),
    }
}

impl<D> Attendant<D> for ControlSocket<D> {
    fn ready(&mut self, token: Token, device: &D, connections: &Connections) {
        match token.0.checked_sub(ATTENDANT_TOKEN.0) {
            Some(0) => self.arrivals = true,
            Some(number) => self.serve(number.saturating_sub(1), device, connections),
            None => {}
        }
        self.accept(device, connections);
    }

    fn deadline(&self) -> Option<Instant> {
        let connections = self.connections.iter().flatten().map(|connection| connection.deadline);
        connections.chain(self.paused_until).min()
    }

    fn expire(&mut self, now: Instant, device: &D, connections: &Connections) {
        for slot in &mut self.connections {
            if let Some(connection) = slot.take_if(|connection| connection.deadline <= now) {
                connection.expire();
            }
        }
        self.accept(device, connections);
    }
}
