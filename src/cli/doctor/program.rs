//! What another program says: within a time, in a bounded room, and without trust.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use rustix::process::{PidfdFlags, pidfd_open};
use thiserror::Error;

/// Bytes that a program may say. QEMU's list of devices is a tenth of it.
const MOST: usize = 1 << 20;

/// How long a killed program may take to be gone.
const END: Duration = Duration::from_secs(1);

/// Why a program has no answer.
#[derive(Debug, Error)]
pub(super) enum ProgramError {
    #[error("it cannot be started: {0}")]
    Start(io::Error),
    #[error("it has not answered within {} s", .0.as_secs())]
    Hangs(Duration),
    #[error("it does not stop talking")]
    Endless,
    #[error("it failed ({status}){}", said(.output))]
    Failed { status: ExitStatus, output: String },
    #[error("its answer cannot be read: {0}")]
    Read(io::Error),
}

/// The first line of what a program said, for people.
pub(super) fn first_line(output: &str) -> String {
    output.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().chars().take(120).collect()
}

fn said(output: &str) -> String {
    let line = first_line(output);
    if line.is_empty() { String::new() } else { format!(": {line}") }
}

/// Finds a program: by its path, or in `PATH`.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    if program.as_os_str().as_encoded_bytes().contains(&b'/') {
        return program.exists().then(|| program.to_owned());
    }
    let folders = std::env::var_os("PATH")?;
    let is_program =
        |path: &PathBuf| path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(is_program)
}

/// Runs a program, and gives what it printed. It and what it has started are killed if that takes longer than `patience`.
pub(super) fn output(program: &Path, arguments: &[&str], patience: Duration) -> Result<String, ProgramError> {
    let start = |errno: Errno| ProgramError::Start(errno.into());
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(start)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(start)?;
    let errors = theirs.try_clone().map_err(ProgramError::Start)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(theirs).stderr(errors);
    // So that all of it can be killed.
    command.process_group(0);
    let child = command.spawn().map_err(ProgramError::Start)?;
    // It has copies of the pipe's other end.
    drop(command);
    let mut running = Running(child);
    let (output, status) = running.listen(&mut File::from(ours), Instant::now().checked_add(patience), patience)?;
    if status.success() { Ok(output) } else { Err(ProgramError::Failed { status, output }) }
}

/// A program that runs. It is killed when this goes.
struct Running(Child);

impl Running {
    /// Reads to the end of what it says, and waits until it has ended.
    fn listen(
        &mut self,
        pipe: &mut File,
        end: Option<Instant>,
        patience: Duration,
    ) -> Result<(String, ExitStatus), ProgramError> {
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        let ended = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let ended = ended.map_err(|errno| ProgramError::Read(errno.into()))?;
        let mut output = Vec::new();
        let mut open = true;
        loop {
            // What it has started may keep the pipe open; whether it itself has ended is asked before the pipe is emptied.
            let status = self.0.try_wait().map_err(ProgramError::Read)?;
            while open {
                let mut buffer = [0; 4096];
                match pipe.read(&mut buffer) {
                    Ok(0) => open = false,
                    Ok(length) => output.extend(buffer.iter().take(length)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(ProgramError::Read(error)),
                }
                if output.len() > MOST {
                    return Err(ProgramError::Endless);
                }
            }
            if let Some(status) = status {
                return Ok((String::from_utf8_lossy(&output).into_owned(), status));
            }
            let left = end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(ProgramError::Hangs(patience));
            }
            let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
            let mut sources = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            if open {
                sources.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut sources, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(ProgramError::Read(errno.into())),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Before it is waited for: as long as it is not, the number of its group is nobody else's.
        if let Ok(None) = self.0.try_wait() {
            let group = i32::try_from(self.0.id()).map(Pid::from_raw);
            let _ = group.map(|group| killpg(group, Signal::SIGKILL));
        }
        let end = Instant::now().checked_add(END);
        while let Ok(None) = self.0.try_wait() {
            // One that waits for a disk is left behind.
            if end < Some(Instant::now()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn shell(script: &str, patience: Duration) -> Result<String, ProgramError> {
        output(Path::new("/bin/sh"), &["-c", script], patience)
    }

    #[test]
    fn what_a_program_prints_on_either_stream_is_its_answer() {
        assert_eq!(shell("echo one; echo two >&2", PATIENCE).unwrap(), "one\ntwo\n");
        assert_eq!(shell("", PATIENCE).unwrap(), "");
    }

    #[test]
    fn a_failure_is_told_with_what_the_program_said() {
        let error = shell("echo; echo 'no such library'; exit 3", PATIENCE).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with(": no such library"), "{error}");
        assert!(matches!(output(Path::new("/nowhere/qemu"), &[], PATIENCE), Err(ProgramError::Start(_))));
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_all_that_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", pid.display());
        // The script may not get as far as to name its child before it is killed; then there is none.
        assert!(matches!(shell(&script, Duration::from_secs(1)), Err(ProgramError::Hangs(_))));
        let Ok(Ok(child)) = std::fs::read_to_string(pid).map(|text| text.trim().parse::<u32>()) else { return };
        let status = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(status.is_empty() || status.contains(") Z") || status.contains(") X"), "{status}");
    }

    #[test]
    fn a_program_that_leaves_somebody_with_its_output_is_not_waited_for() {
        assert_eq!(shell("echo said; (exec sleep 2) & exit 0", PATIENCE).unwrap(), "said\n");
    }

    #[test]
    fn a_program_that_does_not_stop_talking_is_stopped() {
        assert!(matches!(
            shell("while :; do echo yes yes yes yes yes yes; done", PATIENCE),
            Err(ProgramError::Endless)
        ));
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert!(find(Path::new("sh")).unwrap().is_absolute());
        assert_eq!(find(Path::new("/bin/sh")), Some("/bin/sh".into()));
        assert_eq!(find(Path::new("./no-such-program")), None);
        assert_eq!(find(Path::new("no-such-program")), None);
    }
}
