//! The client that is being served: its connection, its session, and what is still to be sent to it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::closer::Closer;
use super::connection::{Connection, Progress, ReceiveError};
use super::device::Device;
use super::outbox::Outbox;
use super::session::{Next, Session};

/// Receiving system calls that one message gets before the others have their turn.
const BUDGET: u32 = 64;

/// The client that is being served.
#[derive(Debug)]
pub(super) struct Client {
    connection: Connection,
    session: Session,
    outbox: Outbox,
    /// Since when nothing is received, because too many descriptors are still to be closed.
    clogged: Option<Instant>,
}

/// Why a client is served no longer.
#[derive(Debug, Error)]
pub(super) enum Farewell {
    #[error("the client has left")]
    Left,
    #[error("the client is disconnected: {0}")]
    Receive(ReceiveError),
    #[error("the client is disconnected: nothing can be sent to it: {0}")]
    Send(io::Error),
    #[error("the client is disconnected: it did not begin as the protocol wants")]
    Refused,
    #[error("the client is disconnected: it sends descriptors that cannot be closed")]
    Clogged,
    #[error("the client is disconnected: it cannot be watched: {0}")]
    Unwatchable(#[from] Errno),
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The next bytes of the client.
    ToReceive,
    /// Room for what is to be sent. Nothing is received meanwhile: so a client that does not read cannot make the server
    /// keep its replies.
    ToSend,
    /// Fewer descriptors that are still to be closed. Nothing is received meanwhile, and no event tells: it has to be served
    /// again after a moment.
    ForRoom,
}

impl Client {
    pub(super) fn new(socket: UnixStream, closer: Closer) -> Self {
        Self {
            connection: Connection::new(socket, closer),
            session: Session::default(),
            outbox: Outbox::default(),
            clogged: None,
        }
    }

    pub(super) fn socket(&self) -> &UnixStream {
        self.connection.socket()
    }

    /// Whether it has agreed on a version.
    pub(super) fn has_negotiated(&self) -> bool {
        self.session.has_negotiated()
    }

    /// What becomes readable when [`unmask`](Self::unmask) has something to do; `None` as long as the client has not asked
    /// for that.
    pub(super) fn unmask_events(&self) -> Option<BorrowedFd<'_>> {
        self.session.unmask_events()
    }

    pub(super) fn waiting(&self) -> Waiting {
        match self.clogged {
            _ if !self.outbox.is_empty() => Waiting::ToSend,
            None => Waiting::ToReceive,
            Some(_) => Waiting::ForRoom,
        }
    }

    /// Whether it is gone. What it has sent before is still served.
    pub(super) fn is_leaving(&self) -> bool {
        let mut state = [PollFd::new(self.socket().as_fd(), PollFlags::POLLHUP)];
        poll(&mut state, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Sends what waits, and serves at most one message: whether there is another is for the event loop to find out, which
    /// costs less than to ask the socket in vain after each.
    ///
    /// As long as its descriptors cannot be closed as fast as they come, nothing is received; after `clogging_limit` of that
    /// it is time to part.
    pub(super) fn serve(&mut self, device: &mut dyn Device, clogging_limit: Duration) -> Result<(), Farewell> {
        self.flush()?;
        if self.waiting() == Waiting::ToSend {
            return Ok(());
        }
        if !self.connection.has_room() {
            let since = *self.clogged.get_or_insert_with(Instant::now);
            return if since.elapsed() < clogging_limit { Ok(()) } else { Err(Farewell::Clogged) };
        }
        self.clogged = None;
        let mut budget = BUDGET;
        match self.connection.receive(&mut budget) {
            Ok(Progress::Message) => {
                let next = self.session.handle(self.connection.message(), device, &mut self.outbox);
                self.connection.let_go();
                self.flush()?;
                if next == Next::Close { Err(Farewell::Refused) } else { Ok(()) }
            }
            Ok(Progress::WouldBlock | Progress::BudgetSpent) => Ok(()),
            Err(ReceiveError::Closed | ReceiveError::Socket(Errno::ECONNRESET)) => Err(Farewell::Left),
            Err(error) => Err(Farewell::Receive(error)),
        }
    }

    /// Sends what the device has to say after it was woken; returns whether that was anything.
    pub(super) fn resume(&mut self, device: &mut dyn Device) -> Result<bool, Farewell> {
        let waited = !self.outbox.is_empty();
        self.session.resume(device, &mut self.outbox);
        let has_answered = !waited && !self.outbox.is_empty();
        self.flush()?;
        Ok(has_answered)
    }

    /// Unmasks what the client's eventfds say.
    pub(super) fn unmask(&mut self, device: &mut dyn Device) {
        self.session.unmask(device);
    }

    /// Its descriptors and mappings go with it. What it is still owed is sent, as far as it takes it now.
    pub(super) fn end(self, device: &mut dyn Device) {
        let Self { connection, session, mut outbox, .. } = self;
        session.end(device, &mut outbox);
        if let Err(error) = outbox.flush(|data, descriptor| connection.send(data, descriptor)) {
            log::debug!("the last replies cannot be sent: {error}");
        }
        connection.close();
    }

    /// Sends what the client takes.
    fn flush(&mut self) -> Result<(), Farewell> {
        let Self { connection, outbox, .. } = self;
        match outbox.flush(|data, descriptor| connection.send(data, descriptor)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(Farewell::Left)
            }
            result => result.map_err(Farewell::Send),
        }
    }
}

#[cfg(test)]
mod tests;
