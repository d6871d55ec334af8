//! A process that starts others for a server that is confined: once it has met a client, it can start none itself.
//!
//! A new worker is needed whenever one has died, so something has to be able to start it; were that the server, so could
//! whoever takes the server over. The spawner never sees a byte of a client's. It knows the one program that it may start
//! from its own command line; the server can only ask for it, and end what it has asked for.
//!
//! It also removes the files of the server's sockets, which a server that reaches no files cannot.
//!
//! One message of a `SOCK_SEQPACKET` pair asks for a process. With it come two descriptors, the process's standard input
//! and a control socket. On the control socket comes, once, how the process ended, or why it could not be started;
//! closing it, or its writing half, kills the process. Another message, with a device's and an inode's number, asks to
//! remove the file of whichever socket that is; the answer is an empty text (a zero byte), or why it could not be done.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use super::direct::Started;
use super::{Inner, Launcher, Process, Program};
use crate::seqpacket;

/// The hidden subcommand that makes this program a spawner.
pub const SUBCOMMAND: &str = "spawner";

/// The message that asks for a process.
pub(super) const REQUEST: &[u8] = b"\x01";
/// The first byte of the message that asks to remove the socket's file.
pub(super) const REMOVE: u8 = 0x02;
/// Bytes in it: that byte, device, inode.
pub(super) const MAX_REQUEST: usize = 17;
/// The answer to it when it is gone.
pub(super) const REMOVED: &[u8] = b"\x00";
/// How long that is waited for, in milliseconds. A disk may be slow, and a socket that stays is no harm.
const REMOVE_LIMIT: u16 = 2000;
/// Bytes in the longest word on how a process ended.
pub(super) const MAX_END: usize = 512;

/// What a spawner is to be.
#[derive(Debug)]
pub struct SpawnerConfig {
    /// The program to run as the spawner: this one, with the subcommand [`SUBCOMMAND`].
    pub spawner: Program,
    /// The program that it may start, if there is to be one.
    pub program: Option<Program>,
    /// The sockets whose files it may remove: absolute paths.
    pub sockets: Vec<PathBuf>,
}

/// A spawner process. It and all that it started end when the last clone of this goes.
#[derive(Clone, Debug)]
pub struct Spawner(Arc<OwnedFd>);

impl Spawner {
    /// Starts a spawner.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start(config: SpawnerConfig) -> io::Result<Self> {
        let SpawnerConfig { mut spawner, program, sockets: files } = config;
        for file in files {
            spawner.arguments.extend(["--socket-path".into(), file.into()]);
        }
        if let Some(program) = program {
            spawner.arguments.push("--".into());
            spawner.arguments.push(program.path.into());
            spawner.arguments.extend(program.arguments);
        }
        let (socket, theirs) = seqpacket::pair()?;
        // Never waited for: if it should not answer, that is no reason to stop serving.
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // It ends with its socket, or with this thread. A confined server can neither kill it nor wait for it.
        mem::forget(Started::start(&spawner, theirs)?);
        Ok(Self::over(socket))
    }

    /// A spawner that runs already, at the other end of this socket, which must not block.
    #[must_use]
    pub fn over(socket: OwnedFd) -> Self {
        Self(Arc::new(socket))
    }

    /// Has the file of a socket removed, if one of them has these numbers, and waits until that is done.
    ///
    /// # Errors
    /// Why it is not done, as far as is known.
    pub fn remove_socket(&self, device: u64, inode: u64) -> io::Result<()> {
        let request = [&[REMOVE][..], &device.to_ne_bytes(), &inode.to_ne_bytes()].concat();
        seqpacket::send(self.0.as_fd(), &request, &[])?;
        let mut answered = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut answered, PollTimeout::from(REMOVE_LIMIT))?;
        match seqpacket::receive(self.0.as_fd(), &mut [0; MAX_END])? {
            REMOVED => Ok(()),
            [] => Err(io::Error::other("the spawner is gone")),
            reason => Err(io::Error::other(legible(reason))),
        }
    }
}

impl Launcher for Spawner {
    fn launch(&self, stdin: OwnedFd) -> io::Result<Process> {
        let (control, theirs) = seqpacket::pair()?;
        fcntl(&control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        seqpacket::send(self.0.as_fd(), REQUEST, &[stdin.as_fd(), theirs.as_fd()]).map_err(|errno| match errno {
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
            self.end = match seqpacket::receive(self.control.as_fd(), &mut buffer) {
                // It takes its processes along.
                Ok([]) => Some("unknown: the spawner is gone".to_owned()),
                Ok(text) => Some(legible(text)),
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

/// What the spawner says, for the log. There may be a path in it, and control characters in that.
fn legible(text: &[u8]) -> String {
    String::from_utf8_lossy(text).escape_debug().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_spawner_says_comes_without_control_characters() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let mut process = Spawned { control: ours, end: None };
        seqpacket::send(theirs.as_fd(), b"cannot start /a\nb\x1b[31m\xff: no such file", &[]).unwrap();
        assert_eq!(process.end(), Some("cannot start /a\\nb\\u{1b}[31m\u{fffd}: no such file"));
        let (ours, theirs) = seqpacket::pair().unwrap();
        seqpacket::send(theirs.as_fd(), b"\x07", &[]).unwrap();
        let error = Spawner::over(ours).remove_socket(1, 2).unwrap_err();
        assert_eq!(error.to_string(), "\\u{7}");
    }
}
