//! The loop of the spawner process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::Program;
use super::direct::{Started, close_inherited};
use super::spawner::{MAX_END, REQUEST};
use crate::worker::frame;

/// Most processes at a time. A server has one, and for a moment one that it has killed.
const MAX_PROCESSES: usize = 4;

/// Why the spawner cannot go on.
#[derive(Debug, Error)]
pub enum SpawnerError {
    /// A system call failed.
    #[error("the spawner's socket failed; a spawner is started by the server, with the socket as standard input")]
    Socket(#[from] Errno),
    /// What it was started with cannot be closed.
    #[error("cannot close inherited descriptors")]
    Inherited(#[from] io::Error),
    /// The server said something that is not in the protocol.
    #[error("the server broke the spawner's protocol")]
    Protocol,
}

/// A process, until its end has been told.
struct Child {
    process: Started,
    control: OwnedFd,
    killed: bool,
    /// A copy of its standard input: the server finds that closed only after it has been told why.
    _stdin: OwnedFd,
}

/// Starts `program` as often as the server at the other end of `socket` asks for it, until that closes it. What runs then
/// is killed.
///
/// # Errors
/// [`SpawnerError`].
pub fn run(socket: BorrowedFd<'_>, program: &Program) -> Result<(), SpawnerError> {
    // A socket for clients, a key: none of it is for the processes that are started here.
    close_inherited()?;
    let mut children: Vec<Child> = Vec::new();
    loop {
        match wait(socket, &children)? {
            Event::Ended(index) => {
                let end = children.get_mut(index).and_then(|child| child.process.end().map(str::to_owned));
                if let Some(end) = end {
                    tell(&children.swap_remove(index).control, &end);
                }
            }
            Event::Unwanted(index) => {
                if let Some(child) = children.get_mut(index) {
                    child.killed = true;
                    child.process.kill();
                }
            }
            Event::Asked => {
                let Some((stdin, control)) = receive(socket)? else { return Ok(()) };
                let started = if children.len() < MAX_PROCESSES {
                    stdin.try_clone().and_then(|copy| Started::start(program, copy))
                } else {
                    Err(io::Error::other("too many processes"))
                };
                match started {
                    Ok(process) => children.push(Child { process, control, killed: false, _stdin: stdin }),
                    Err(error) => tell(&control, &format!("cannot start {}", program.explain(&error))),
                }
            }
            Event::None => {}
        }
    }
}

enum Event {
    /// A process has ended.
    Ended(usize),
    /// A process is to be killed: its control socket was closed, or something else was said on it.
    Unwanted(usize),
    /// A process is wanted, or the server is gone.
    Asked,
    /// None; to be waited for again.
    None,
}

/// Waits for an event. Ends come first, so that there is room for what is asked for.
fn wait(socket: BorrowedFd<'_>, children: &[Child]) -> Result<Event, Errno> {
    let ends = children.iter().enumerate().map(|(index, child)| (Event::Ended(index), child.process.descriptor()));
    // Of a killed process nothing more can be said.
    let living = children.iter().enumerate().filter(|(_, child)| !child.killed);
    let controls = living.map(|(index, child)| (Event::Unwanted(index), child.control.as_fd()));
    let (events, descriptors): (Vec<_>, Vec<_>) = ends.chain(controls).chain([(Event::Asked, socket)]).unzip();
    let mut sources: Vec<_> =
        descriptors.into_iter().map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
    match poll(&mut sources, PollTimeout::NONE) {
        Err(Errno::EINTR) => return Ok(Event::None),
        polled => polled?,
    };
    let ready = events.into_iter().zip(&sources).find(|(_, source)| source.any() == Some(true));
    Ok(ready.map_or(Event::None, |(event, _)| event))
}

/// The descriptors of one request; none at the end of the stream.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(OwnedFd, OwnedFd)>, SpawnerError> {
    let mut buffer = [0; REQUEST.len()];
    let (request, descriptors) = frame::receive_start(socket, &mut buffer)?;
    if request.is_empty() {
        return Ok(None);
    }
    let mut descriptors = descriptors.into_iter();
    match (request == REQUEST, descriptors.next(), descriptors.next(), descriptors.next()) {
        (true, Some(stdin), Some(control), None) => Ok(Some((stdin, control))),
        _ => Err(SpawnerError::Protocol),
    }
}

/// The server may be gone, or not want to know.
fn tell(control: &OwnedFd, text: &str) {
    let text: Vec<u8> = text.bytes().take(MAX_END).collect();
    let _ = fcntl(control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let _ = frame::send(control.as_fd(), &text, &[]);
}
