//! The loop of the spawner process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;

use super::{Kind, MAX_END};
use crate::worker::{SUBCOMMAND as WORKER, frame, prepare};

/// Most processes at a time. A server has one, and for a moment one that it has killed.
const MAX_PROCESSES: usize = 4;

/// Why the spawner cannot go on.
#[derive(Debug, Error)]
pub enum SpawnerError {
    /// A system call failed.
    #[error("the spawner's socket failed; a spawner is started by the server, with the socket as standard input")]
    Socket(#[source] Errno),
    /// The server said something that is not in the protocol.
    #[error("the server broke the spawner's protocol")]
    Protocol,
    /// The process could not be prepared.
    #[error("cannot prepare the spawner process")]
    Process(#[from] io::Error),
}

/// A process, until its end has been told.
struct Started {
    child: Child,
    /// Readable once the process has ended.
    pidfd: OwnedFd,
    control: OwnedFd,
    killed: bool,
}

/// Starts processes for the server at the other end of `socket` until that closes it. `command` is [`Kind::Command`], and
/// `worker_arguments` are for [`Kind::Worker`].
///
/// # Errors
/// [`SpawnerError`].
pub fn run(socket: BorrowedFd<'_>, worker_arguments: &[OsString], command: &[OsString]) -> Result<(), SpawnerError> {
    prepare()?;
    let mut started = Vec::new();
    let outcome = serve(socket, worker_arguments, command, &mut started);
    for process in &mut started {
        let _ = process.child.kill();
    }
    outcome
}

fn serve(
    socket: BorrowedFd<'_>,
    worker_arguments: &[OsString],
    command: &[OsString],
    started: &mut Vec<Started>,
) -> Result<(), SpawnerError> {
    loop {
        match wait(socket, started)? {
            Some(Event::Request) => {
                let Some((kind, stdin, control)) = receive(socket)? else { return Ok(()) };
                let full = started.len() >= MAX_PROCESSES;
                let process = match kind {
                    _ if full => Err(io::Error::other("too many processes")),
                    Kind::Worker => start(Path::new("/proc/self/exe"), worker(worker_arguments), stdin),
                    Kind::Command => match command {
                        [] => Err(io::Error::other("there is no such program")),
                        [program, arguments @ ..] => start(Path::new(program), arguments.to_vec(), stdin),
                    },
                };
                match process {
                    Ok((child, pidfd)) => started.push(Started { child, pidfd, control, killed: false }),
                    Err(error) => tell(&control, &format!("it cannot be started: {error}")),
                }
            }
            Some(Event::Control(index)) => {
                // Whatever it says, and also if it is closed.
                if let Some(process) = started.get_mut(index) {
                    process.killed = true;
                    // It fails only for a process that has ended.
                    let _ = process.child.kill();
                }
            }
            Some(Event::Ended(index)) if index < started.len() => {
                let mut process = started.swap_remove(index);
                let end = process.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                tell(&process.control, &end);
            }
            Some(Event::Ended(_)) | None => {}
        }
    }
}

enum Event {
    Request,
    Control(usize),
    Ended(usize),
}

/// Waits for one event. Ends come first, so that there is room for what is asked for then.
fn wait(socket: BorrowedFd<'_>, started: &[Started]) -> Result<Option<Event>, SpawnerError> {
    let mut sources = vec![PollFd::new(socket, PollFlags::POLLIN)];
    for process in started {
        sources.push(PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN));
        // Of a killed process nothing more is asked.
        let flags = if process.killed { PollFlags::empty() } else { PollFlags::POLLIN };
        sources.push(PollFd::new(process.control.as_fd(), flags));
    }
    match poll(&mut sources, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(None),
        Err(errno) => return Err(SpawnerError::Socket(errno)),
    }
    let [request, processes @ ..] = &*sources else { return Ok(None) };
    let ready = |source: &PollFd<'_>| source.any() == Some(true);
    let mut ended = processes.iter().step_by(2);
    let mut asked = processes.iter().skip(1).step_by(2).zip(started);
    Ok(if let Some(index) = ended.position(ready) {
        Some(Event::Ended(index))
    } else if let Some(index) = asked.position(|(source, process)| !process.killed && ready(source)) {
        Some(Event::Control(index))
    } else {
        ready(request).then_some(Event::Request)
    })
}

/// One request; none at the end of the stream.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Kind, OwnedFd, OwnedFd)>, SpawnerError> {
    let mut buffer = [0; 1];
    let (request, descriptors) = frame::receive_start(socket, &mut buffer).map_err(SpawnerError::Socket)?;
    let kind = match request {
        [] => return Ok(None),
        [kind] if *kind == Kind::Worker as u8 => Kind::Worker,
        [kind] if *kind == Kind::Command as u8 => Kind::Command,
        _ => return Err(SpawnerError::Protocol),
    };
    let mut descriptors = descriptors.into_iter();
    match (descriptors.next(), descriptors.next(), descriptors.next()) {
        (Some(stdin), Some(control), None) => Ok(Some((kind, stdin, control))),
        _ => Err(SpawnerError::Protocol),
    }
}

fn worker(arguments: &[OsString]) -> Vec<OsString> {
    std::iter::once(OsString::from(WORKER)).chain(arguments.iter().cloned()).collect()
}

fn start(program: &Path, arguments: Vec<OsString>, stdin: OwnedFd) -> io::Result<(Child, OwnedFd)> {
    let mut command = Command::new(program);
    if program.starts_with("/proc/self") {
        command.arg0(env!("CARGO_PKG_NAME"));
    }
    command.args(arguments).current_dir("/").stdin(Stdio::from(stdin)).stdout(Stdio::null()).process_group(0);
    // SAFETY: between fork and exec only this one system call is made.
    #[expect(unsafe_code, reason = "a process that is killed cannot take its children along by itself")]
    unsafe {
        command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    match pidfd {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(errno) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(errno.into())
        }
    }
}

/// The server may be gone, or not want to know.
fn tell(control: &OwnedFd, text: &str) {
    let text: Vec<u8> = text.bytes().take(MAX_END).collect();
    let _ = fcntl(control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let _ = frame::send(control.as_fd(), &text, &[]);
}
