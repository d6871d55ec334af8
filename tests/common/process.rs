//! Processes that never outlive their test.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// A process with its output in a file. It is killed when this is dropped, and also when the test's thread dies.
pub(crate) struct Process {
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `program`; what it prints goes to the file `output`.
    pub(crate) fn start<A: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = A>, output: PathBuf) -> Self {
        Self::start_with_input(program, args, output, Stdio::null())
    }

    /// As [`start`](Self::start), with a standard input.
    pub(crate) fn start_with_input<A: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = A>,
        output: PathBuf,
        input: Stdio,
    ) -> Self {
        let file = File::create(&output).expect("output file");
        // `setpriv` sets the parent-death signal and then becomes the program, so the process id is the program's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .stdin(input)
            .stdout(file.try_clone().expect("output file"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{} cannot be started through setpriv (util-linux): {e}", program.display()));
        Self { child, output }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("pid"))
    }

    /// What the process has printed so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&self.raw_output()).into_owned()
    }

    /// As [`output`](Self::output), byte by byte.
    pub(crate) fn raw_output(&self) -> Vec<u8> {
        std::fs::read(&self.output).unwrap_or_default()
    }

    /// Sends a signal, if the process still runs.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.exit_status().is_none() {
            signal::kill(self.pid(), signal).expect("signal can be sent");
        }
    }

    /// The exit status, if the process has ended.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// Waits until the process has ended; `None` after `deadline`.
    pub(crate) fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        until(deadline, || self.exit_status())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks `ready` again and again until it says something; `None` after `deadline`.
pub(crate) fn until<T>(deadline: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = ready() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(Duration::from_millis(20));
    }
}

/// The last `count` lines of `text`, for failure messages.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
