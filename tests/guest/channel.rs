//! The command channel: the guest's second serial port, served by `/init`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a script in the guest has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// Exit status of the script.
    pub(crate) status: i32,
    /// What it wrote to standard output.
    pub(crate) stdout: String,
    /// What it wrote to standard error.
    pub(crate) stderr: String,
}

pub(crate) struct Channel {
    stream: BufReader<UnixStream>,
    next_id: u32,
    /// The beginning of a line.
    partial: String,
}

const NO_ANSWER: &str = "no answer within the deadline";

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), next_id: 0, partial: String::new() }
    }

    /// Waits until a boot has reached `/init`. What a boot before it had not finished saying is skipped.
    pub(crate) fn wait_for_hello(&mut self, deadline: Duration) -> Result<(), String> {
        let end = Instant::now() + deadline;
        while self.line(end)? != "hello" {}
        Ok(())
    }

    /// Runs a script and waits for its end.
    pub(crate) fn run(&mut self, script: &str, deadline: Duration) -> Result<Output, String> {
        let id = self.send(script)?;
        self.answer(id, deadline)
    }

    /// Waits for the end of the script that was sent with this id.
    pub(crate) fn answer(&mut self, id: u32, deadline: Duration) -> Result<Output, String> {
        let line = self.line(Instant::now() + deadline)?;
        Self::output(id, &line)
    }

    /// As [`answer`](Self::answer), with an empty line sent now and then: `/init` ignores it, but a guest that sleeps and lets
    /// the serial port wake it does wake up.
    pub(crate) fn answer_after_waking(&mut self, id: u32, deadline: Duration) -> Result<Output, String> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(line) = self.line_within(Duration::from_secs(1))? {
                return Self::output(id, &line);
            }
            if Instant::now() >= end {
                return Err(NO_ANSWER.into());
            }
            self.write("\n")?;
        }
    }

    fn output(id: u32, line: &str) -> Result<Output, String> {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["done", answered, status, stdout, stderr] if answered == id.to_string() => Ok(Output {
                status: status.parse().map_err(|_| format!("no exit status: {line:?}"))?,
                stdout: decode(stdout),
                stderr: decode(stderr),
            }),
            ["hello"] => Err("the guest has booted again meanwhile".into()),
            _ => Err(format!("unexpected answer {line:?}")),
        }
    }

    /// Sends a script without waiting for anything, and returns its id.
    pub(crate) fn send(&mut self, script: &str) -> Result<u32, String> {
        self.next_id += 1;
        self.write(&format!("{} {}\n", self.next_id, base64(&[], script.as_bytes())))?;
        Ok(self.next_id)
    }

    /// Writes as it is: for a script that speaks on the channel itself, and listens.
    pub(super) fn write(&mut self, text: &str) -> Result<(), String> {
        self.stream.get_mut().write_all(text.as_bytes()).map_err(|e| format!("the channel is closed: {e}"))
    }

    /// The next line.
    pub(super) fn line(&mut self, end: Instant) -> Result<String, String> {
        self.line_within(end.saturating_duration_since(Instant::now()))?.ok_or_else(|| NO_ANSWER.into())
    }

    /// The next line, if all of it comes in time; else what has come of it is kept.
    fn line_within(&mut self, time: Duration) -> Result<Option<String>, String> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.get_ref().set_read_timeout(Some(left)).expect("read timeout");
            match self.stream.read_line(&mut self.partial) {
                Ok(0) => return Err("QEMU has ended".into()),
                Ok(_) if self.partial.ends_with('\n') => {
                    return Ok(Some(std::mem::take(&mut self.partial).trim_end().to_owned()));
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(format!("the channel is broken: {e}")),
            }
        }
    }
}

fn decode(field: &str) -> String {
    base64(&["--decode"], field.trim_start_matches('-').as_bytes())
}

/// The host's `base64` (coreutils): not worth a dependency.
fn base64(args: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("base64")
        .args(["--wrap", "0"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("base64 (coreutils)");
    let mut stdin = child.stdin.take().expect("stdin");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("base64")
    });
    String::from_utf8_lossy(&output.stdout).into_owned()
}
