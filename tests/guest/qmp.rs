//! QEMU's monitor, as far as the tests need it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    /// `RESET` events seen that were our own doing.
    resets: u32,
}

impl Qmp {
    /// Takes QEMU's end of the monitor and enters command mode.
    pub(crate) fn new(stream: UnixStream) -> Result<Self, String> {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("read timeout");
        let mut qmp = Self { stream: BufReader::new(stream), resets: 0 };
        qmp.message()?;
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments; events that come meanwhile are skipped.
    pub(crate) fn execute(&mut self, command: &str) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|e| format!("QMP {command}: {e}"))?;
        loop {
            let mut message = self.message().map_err(|e| format!("QMP {command}: {e}"))?;
            if let Some(error) = message.get("error") {
                return Err(format!("QMP {command}: {error}"));
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Pushes the machine's reset button, and waits until the machine is reset.
    pub(crate) fn system_reset(&mut self) -> Result<(), String> {
        let before = self.resets;
        self.execute("system_reset")?;
        while self.resets == before {
            self.message().map_err(|e| format!("waiting for the reset: {e}"))?;
        }
        Ok(())
    }

    fn message(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let message: Value = match self.stream.read_line(&mut line) {
            Ok(0) => return Err("QEMU has ended".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|e| format!("{e} in {line:?}"))?,
            Err(e) => return Err(e.to_string()),
        };
        if message["event"] == "RESET" && message["data"]["reason"] == "host-qmp-system-reset" {
            self.resets += 1;
        }
        Ok(message)
    }
}
