//! A process as a child of this one.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Inner, Launcher, Process};

/// What a service manager tells the server alone: which sockets it listens on for it, and where to say that it is ready.
const NOT_FOR_CHILDREN: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"];

/// A program and its arguments.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program. A name without a slash is looked for in `PATH`.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// This program, or another that does the same, with a hidden subcommand and a log level.
    #[must_use]
    pub fn ourselves(path: PathBuf, subcommand: &str, log_level: log::LevelFilter) -> Self {
        let level = log_level.as_str().to_ascii_lowercase();
        Self { path, arguments: [subcommand, "--log-level", &level].map(OsString::from).to_vec() }
    }
}

impl Launcher for Program {
    fn launch(&self, stdin: OwnedFd) -> io::Result<Process> {
        Started::start(self, stdin)
            .map(|started| Process(Inner::Started(started)))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display())))
    }
}

/// A child process, until it is gone.
#[derive(Debug)]
pub(super) struct Started {
    child: Child,
    /// Readable once it has ended: to wait for it otherwise would block.
    pidfd: OwnedFd,
    end: Option<String>,
}

impl Started {
    pub(super) fn start(program: &Program, stdin: OwnedFd) -> io::Result<Self> {
        let starter = std::process::id();
        let mut command = Command::new(&program.path);
        for name in NOT_FOR_CHILDREN {
            command.env_remove(name);
        }
        if program.path.starts_with("/proc/self") {
            // In lists of processes "exe" says nothing.
            command.arg0(env!("CARGO_PKG_NAME"));
        }
        command
            .args(&program.arguments)
            .current_dir("/")
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::null())
            // What a terminal sends to a whole group of processes is for the server only.
            .process_group(0);
        // SAFETY: what runs between fork and exec makes system calls and nothing else: no allocation, no lock.
        #[expect(unsafe_code, reason = "only the new process itself can say that it is to end with its parent")]
        unsafe {
            command.pre_exec(move || prepare(starter));
        }
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        match pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Ok(pidfd) => {
                log::debug!("process {} started: {}", child.id(), program.path.display());
                Ok(Self { child, pidfd, end: None })
            }
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                // Or no descriptor is left.
                let needs = "Linux 5.3, and in a container a seccomp profile that allows it";
                Err(io::Error::new(io::Error::from(errno).kind(), format!("pidfd_open: {errno}; it needs {needs}")))
            }
        }
    }

    pub(super) fn kill(&mut self) {
        // It fails only for a process that has ended.
        let _ = self.child.kill();
    }

    pub(super) fn end(&mut self) -> Option<&str> {
        if self.end.is_none() {
            self.end = match self.child.try_wait() {
                Ok(status) => status.map(|status| status.to_string()),
                Err(error) => Some(error.to_string()),
            };
        }
        self.end.as_deref()
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
        // Mostly it is gone by now, and leaves nothing behind.
        let _ = self.child.try_wait();
    }
}

/// Prepares the new process, in which this runs: it ends with its parent and by nothing else, so that a signal sent to all
/// processes of a service does not take the TPM away before the server has shut it down.
fn prepare(starter: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if parent_id() != starter {
        return Err(Errno::ESRCH.into());
    }
    Ok(SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]).thread_block()?)
}
