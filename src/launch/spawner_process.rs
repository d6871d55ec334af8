//! The loop of the spawner process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::spawner::{MAX_END, MAX_REQUEST, REMOVE, REMOVED, REQUEST};
use super::{Launcher, Process, Program};
use crate::sandbox::forbid_inspection;
use crate::seqpacket;

/// Most processes at a time. A server has one, and for a moment one that it has killed.
const MAX_PROCESSES: usize = 4;

/// Why the spawner cannot go on.
#[derive(Debug, Error)]
pub enum SpawnerError {
    /// A system call failed.
    #[error("the spawner's socket failed; a spawner is started by the server, with the socket as standard input")]
    Socket(#[from] Errno),
    /// What it was started with cannot be closed, or it can be looked into.
    #[error("cannot prepare the spawner")]
    Inherited(#[from] io::Error),
    /// The server said something that is not in the protocol.
    #[error("the server broke the spawner's protocol")]
    Protocol,
}

/// A process, until its end has been told.
#[derive(Debug)]
struct Child {
    process: Process,
    control: OwnedFd,
    killed: bool,
    /// A copy of its standard input: the server finds that closed only after it has been told why.
    _stdin: OwnedFd,
}

/// Removes the file of the server's socket, if it has this device's and inode's number.
pub type Remover<'a> = &'a dyn Fn(u64, u64) -> io::Result<()>;

/// Starts `program` as often as the server at the other end of `socket` asks for it, and uses `remover` when it asks for
/// that, until it closes the socket. What runs then is killed.
///
/// The spawner itself is not confined: what it starts would be as well, and that is another program's affair. It is out of
/// the reach of guests and clients, and even of a server that was taken over, which has only those two requests.
///
/// # Errors
/// [`SpawnerError`].
pub fn run(socket: BorrowedFd<'_>, program: Option<&Program>, remover: Option<Remover>) -> Result<(), SpawnerError> {
    // The rest was given up by the server before it started this process.
    forbid_inspection()?;
    let launcher = program.map(|program| program as &dyn Launcher);
    let mut spawning = Spawning::new(socket, launcher, remover);
    while spawning.turn(PollTimeout::NONE)? {}
    Ok(())
}

/// What a spawner does, one event after the other. Its processes are killed when this goes.
pub struct Spawning<'a> {
    socket: BorrowedFd<'a>,
    launcher: Option<&'a dyn Launcher>,
    remover: Option<Remover<'a>>,
    children: Vec<Child>,
}

impl<'a> Spawning<'a> {
    /// A spawner that has not been asked for anything yet; without a launcher or a remover, it must not be.
    #[must_use]
    pub fn new(socket: BorrowedFd<'a>, launcher: Option<&'a dyn Launcher>, remover: Option<Remover<'a>>) -> Self {
        Self { socket, launcher, remover, children: Vec::new() }
    }

    /// Waits for an event, if none has come, and acts upon it; returns whether there may be more.
    ///
    /// # Errors
    /// [`SpawnerError`]; it is of no more use then.
    pub fn turn(&mut self, patience: PollTimeout) -> Result<bool, SpawnerError> {
        match self.wait(patience)? {
            Event::Ended(index) => {
                let end = self.children.get_mut(index).and_then(|child| child.process.end().map(str::to_owned));
                if let Some(end) = end {
                    tell(&self.children.swap_remove(index).control, &end);
                }
            }
            Event::Unwanted(index) => {
                if let Some(child) = self.children.get_mut(index) {
                    child.killed = true;
                    child.process.kill();
                }
            }
            Event::Asked => match receive(self.socket)? {
                Request::None => return Ok(false),
                Request::Start { stdin, control } => self.start(stdin, control)?,
                Request::Remove { device, inode } => {
                    let remover = self.remover.ok_or(SpawnerError::Protocol)?;
                    let error = remover(device, inode).err().map(|error| error.to_string().into_bytes());
                    answer(self.socket, &error.unwrap_or(REMOVED.to_vec()));
                }
            },
            Event::None => {}
        }
        Ok(true)
    }

    fn start(&mut self, stdin: OwnedFd, control: OwnedFd) -> Result<(), SpawnerError> {
        let launcher = self.launcher.ok_or(SpawnerError::Protocol)?;
        let started = if self.children.len() < MAX_PROCESSES {
            stdin.try_clone().and_then(|copy| launcher.launch(copy))
        } else {
            Err(io::Error::other("another process: too many run"))
        };
        match started {
            Ok(process) => self.children.push(Child { process, control, killed: false, _stdin: stdin }),
            Err(error) => tell(&control, &format!("cannot start {error}")),
        }
        Ok(())
    }

    /// Waits for an event. Ends come first, so that there is room for what is asked for.
    fn wait(&self, patience: PollTimeout) -> Result<Event, Errno> {
        let ends = self.children.iter().enumerate();
        let ends = ends.map(|(index, child)| (Event::Ended(index), child.process.descriptor()));
        // Of a killed process nothing more can be said.
        let living = self.children.iter().enumerate().filter(|(_, child)| !child.killed);
        let controls = living.map(|(index, child)| (Event::Unwanted(index), child.control.as_fd()));
        let (events, descriptors): (Vec<_>, Vec<_>) = ends.chain(controls).chain([(Event::Asked, self.socket)]).unzip();
        let mut sources: Vec<_> =
            descriptors.into_iter().map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        match poll(&mut sources, patience) {
            Err(Errno::EINTR) => return Ok(Event::None),
            polled => polled?,
        };
        let ready = events.into_iter().zip(&sources).find(|(_, source)| source.any() == Some(true));
        Ok(ready.map_or(Event::None, |(event, _)| event))
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

/// What the server asks for.
enum Request {
    /// Nothing more: the end of the stream.
    None,
    Start {
        stdin: OwnedFd,
        control: OwnedFd,
    },
    Remove {
        device: u64,
        inode: u64,
    },
}

fn receive(socket: BorrowedFd<'_>) -> Result<Request, SpawnerError> {
    let mut buffer = [0; MAX_REQUEST];
    let (request, descriptors) = seqpacket::receive_with_descriptors(socket, &mut buffer)?;
    let mut descriptors = descriptors.into_iter();
    match (request, descriptors.next(), descriptors.next(), descriptors.next()) {
        ([], None, ..) => Ok(Request::None),
        (REQUEST, Some(stdin), Some(control), None) => Ok(Request::Start { stdin, control }),
        ([REMOVE, numbers @ ..], None, ..) => match numbers.split_first_chunk() {
            Some((device, inode)) => Ok(Request::Remove {
                device: u64::from_ne_bytes(*device),
                inode: u64::from_ne_bytes(inode.try_into().map_err(|_| SpawnerError::Protocol)?),
            }),
            None => Err(SpawnerError::Protocol),
        },
        _ => Err(SpawnerError::Protocol),
    }
}

/// The server may be gone, or not want to know.
fn tell(control: &OwnedFd, text: &str) {
    let _ = fcntl(control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    answer(control.as_fd(), text.as_bytes());
}

fn answer(socket: BorrowedFd<'_>, text: &[u8]) {
    let _ = seqpacket::send(socket, text.get(..MAX_END).unwrap_or(text), &[]);
}
