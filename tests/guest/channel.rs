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
}

impl Channel {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), next_id: 0 }
    }

    /// Waits until a boot has reached `/init`. What a boot before it had not finished saying is skipped.
    pub(crate) fn wait_for_hello(&mut self, deadline: Duration) -> Result<(), String> {
        let end = Instant::now() + deadline;
        while self.line(end)? != "hello" {}
        Ok(())
    }

    /// Runs a script and waits for its end.
    pub(crate) fn run(&mut self, script: &str, deadline: Duration) -> Result<Output, String> {
        let end = Instant::now() + deadline;
        let id = self.send(script)?;
        let line = self.line(end)?;
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

    /// Sends a script without waiting for anything.
    pub(crate) fn send(&mut self, script: &str) -> Result<u32, String> {
        self.next_id += 1;
        let line = format!("{} {}\n", self.next_id, base64(&[], script.as_bytes()));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|e| format!("the channel is closed: {e}"))?;
        Ok(self.next_id)
    }

    fn line(&mut self, end: Instant) -> Result<String, String> {
        let mut line = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("no answer within the deadline".into());
            }
            self.stream.get_ref().set_read_timeout(Some(left)).expect("read timeout");
            match self.stream.read_line(&mut line) {
                Ok(0) => return Err("QEMU has ended".into()),
                Ok(_) if line.ends_with('\n') => return Ok(line.trim_end().to_owned()),
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
