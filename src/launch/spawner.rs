//! A process that starts others for a server that is confined: once it has met a client, it can start none itself.
//!
//! A new worker is needed whenever one has died, so something has to be able to start it; were that the server, so could
//! whoever takes the server over. The spawner never sees a byte of a client's. It knows the one program that it may start
//! from its own command line; the server can only ask for it, and end what it has asked for.
//!
//! One message of a `SOCK_SEQPACKET` pair asks for a process. With it come two descriptors, the process's standard input
//! and a control socket. On the control socket comes, once, how the process ended, or why it could not be started;
//! closing it, or its writing half, kills the process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};

use super::direct::Started;
use super::{Inner, Launcher, Process, Program};
use crate::worker::frame;

/// The hidden subcommand that makes this program a spawner.
pub const SUBCOMMAND: &str = "spawner";

/// The message that asks for a process.
pub(super) const REQUEST: &[u8] = b"\x01";
/// Bytes in the longest word on how a process ended.
pub(super) const MAX_END: usize = 512;

/// What a spawner is to be.
#[derive(Debug)]
pub struct SpawnerConfig {
    /// The program to run as the spawner: this one.
    pub spawner: PathBuf,
    /// Its log level.
    pub log_level: log::LevelFilter,
    /// The program that it may start.
    pub program: Program,
}

/// A spawner process. It and all that it started end when this goes.
#[derive(Debug)]
pub struct Spawner {
    socket: OwnedFd,
    _process: Started,
}

impl Spawner {
    /// Starts a spawner.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start(config: SpawnerConfig) -> io::Result<Self> {
        let SpawnerConfig { spawner, log_level, program } = config;
        let mut spawner = Program::ourselves(spawner, SUBCOMMAND, log_level);
        spawner.arguments.push("--".into());
        spawner.arguments.push(program.path.into());
        spawner.arguments.extend(program.arguments);
        let (socket, theirs) = frame::socket_pair()?;
        // Never waited for: if it should not answer, that is no reason to stop serving.
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { socket, _process: Started::start(&spawner, theirs)? })
    }
}

impl Launcher for Spawner {
    fn launch(&self, stdin: OwnedFd) -> io::Result<Process> {
        let (control, theirs) = frame::socket_pair()?;
        fcntl(&control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        frame::send(self.socket.as_fd(), REQUEST, &[stdin.as_fd(), theirs.as_fd()]).map_err(|errno| match errno {
            // It cannot be started again either, by a server that is confined.
            Errno::EPIPE | Errno::ECONNRESET => {
                io::Error::other("the process that starts others is gone; start this program again")
            }
            errno => errno.into(),
        })?;
        Ok(Process(Inner::Spawned(Spawned { control, end: None })))
    }
}

/// A process that a spawner has been asked for. Closing its control socket kills it.
#[derive(Debug)]
pub(super) struct Spawned {
    control: OwnedFd,
    end: Option<String>,
}

impl Spawned {
    pub(super) fn kill(&self) {
        // It fails only where the other side is gone, and the process with it.
        let _ = shutdown(self.control.as_raw_fd(), Shutdown::Write);
    }

    pub(super) fn end(&mut self) -> Option<&str> {
        if self.end.is_none() {
            let mut buffer = [0; MAX_END];
            self.end = match frame::receive(self.control.as_fd(), &mut buffer) {
                // It takes its processes along.
                Ok([]) => Some("unknown: the spawner is gone".to_owned()),
                Ok(text) => Some(String::from_utf8_lossy(text).into_owned()),
                Err(Errno::EAGAIN) => None,
                Err(errno) => Some(format!("unknown: the spawner gives no answer: {errno}")),
            };
        }
        self.end.as_deref()
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}
