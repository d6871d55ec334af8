//! The processes that `run` looks after, and the signals by which it hears of them and of its user.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, ExitStatus};

use anyhow::Context;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::cli::signals;

/// What somebody may send to end or to tell QEMU something.
const FOR_QEMU: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// One or more child processes may have ended.
    Children,
    /// A signal came.
    Signal(Signal, Reach),
}

/// Who has got a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// This process alone, as far as we can know.
    Us,
    /// The foreground processes of our terminal, and so QEMU too.
    Terminal,
}

/// The signals of this process, as events.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals, so that they wait to be taken from here. Processes that are started have them blocked too.
    pub(super) fn block() -> nix::Result<Self> {
        // SAFETY: the default action is no function.
        #[expect(unsafe_code, reason = "one that a program was started to ignore would never tell of its children")]
        unsafe {
            signal(Signal::SIGCHLD, SigHandler::SigDfl)?;
        }
        let mut mask = signals::wanted(FOR_QEMU);
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).map(Self)
    }

    /// Waits for the next event.
    pub(super) fn next(&self) -> anyhow::Result<Event> {
        loop {
            let info = match self.0.read_signal() {
                Ok(Some(info)) => info,
                Ok(None) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno).context("cannot read signals"),
            };
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            return match Signal::try_from(number).context("a signal came that was not asked for")? {
                Signal::SIGCHLD => Ok(Event::Children),
                // A hang-up comes from the kernel too, but may be for the session's leader alone.
                signal @ (Signal::SIGINT | Signal::SIGQUIT) if info.ssi_code == libc::SI_KERNEL => {
                    Ok(Event::Signal(signal, Reach::Terminal))
                }
                signal => Ok(Event::Signal(signal, Reach::Us)),
            };
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A child process.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// How it has ended, if it has. Asks without waiting.
    pub(super) fn status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.0.try_wait().context("cannot tell whether a child process has ended")
    }

    /// Sends a signal, if the process has not ended.
    pub(super) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // Its number is its own until we have seen that it has ended.
        let (None, Ok(pid)) = (self.status()?, self.0.id().try_into()) else { return Ok(()) };
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) => log::debug!("{signal} passed on to process {pid}"),
            // It may have become another user's.
            Err(errno) => log::warn!("{signal} cannot be passed on to process {pid}: {errno}"),
        }
        Ok(())
    }
}
