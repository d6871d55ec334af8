//! Starts processes for a server that is confined: once it has met a client, it can start none itself.
//!
//! A new worker is needed whenever one has died, so something has to be able to start it; were that the server, so could
//! whoever takes the server over. It is a process that never sees a byte of a client's. It knows the few programs that it
//! may start from its own command line; the server can only name one of them, and end what it has named.
//!
//! One message of a `SOCK_SEQPACKET` pair asks for a process: the number of its program, and two descriptors, its standard
//! input and a control socket. On the control socket comes, once, how the process ended, or why it could not be started;
//! closing it, or its writing half, kills the process.

mod process;

pub use process::{SpawnerError, run};

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};

use crate::worker::frame;

/// The hidden subcommand that makes this program a spawner.
pub const SUBCOMMAND: &str = "spawner";

/// Bytes in the longest word on how a process ended.
const MAX_END: usize = 512;

/// A program that a spawner may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// This program, as a worker.
    Worker = 0,
    /// The command at the end of the spawner's command line.
    Command = 1,
}

/// The server's side of a spawner. The process ends with the last copy.
#[derive(Clone, Debug)]
pub struct Spawner {
    socket: Arc<OwnedFd>,
}

/// A process that a spawner has been asked for.
///
/// It is killed when this goes.
#[derive(Debug)]
pub struct Spawned {
    control: OwnedFd,
}

impl Spawner {
    /// Starts a spawner: `program`, this one, with `arguments` for the subcommand.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start(program: &Path, arguments: impl FnOnce(&mut Command)) -> io::Result<Self> {
        let (socket, theirs) = frame::socket_pair()?;
        // Never waited for: if it should not answer, that is no reason to stop serving.
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut command = Command::new(program);
        command
            .arg0(env!("CARGO_PKG_NAME"))
            .arg(SUBCOMMAND)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // What a terminal sends to a whole group of processes is for the server only.
            .process_group(0);
        arguments(&mut command);
        let process = command.spawn()?;
        log::debug!("spawner process {} started", process.id());
        Ok(Self { socket: Arc::new(socket) })
    }

    /// Asks for a process with this standard input. What becomes of it, [`Spawned::ended`] tells.
    ///
    /// # Errors
    /// Those of `socketpair(2)` and `sendmsg(2)`: `EPIPE` if the spawner is gone, `EAGAIN` if it does not read.
    pub fn spawn(&self, kind: Kind, stdin: BorrowedFd<'_>) -> io::Result<Spawned> {
        let (control, theirs) = frame::socket_pair()?;
        fcntl(&control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        frame::send(self.socket.as_fd(), &[kind as u8], &[stdin, theirs.as_fd()])?;
        Ok(Spawned { control })
    }
}

impl Spawned {
    /// Kills the process, whatever it does. It may take its time to go: [`ended`](Self::ended) tells.
    pub fn kill(&self) {
        // It fails only where the other side is gone, and the process with it.
        let _ = shutdown(self.control.as_raw_fd(), Shutdown::Write);
    }

    /// How the process ended, in words, once it has. To be asked until it tells; it does so once.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        let mut buffer = [0; MAX_END];
        match frame::receive(self.control.as_fd(), &mut buffer) {
            // It takes its processes along.
            Ok([]) => Some("the process that started it is gone".to_owned()),
            Ok(text) => Some(String::from_utf8_lossy(text).into_owned()),
            Err(Errno::EAGAIN) => None,
            Err(errno) => Some(format!("the process that started it gives no answer: {errno}")),
        }
    }

    /// Becomes readable when [`ended`](Self::ended) has something to say.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}
