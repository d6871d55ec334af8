//! QEMU's monitor, as far as the tests need it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    /// What has happened and nobody has asked for yet.
    events: Vec<Value>,
}

impl Qmp {
    /// Takes QEMU's end of the monitor and enters command mode.
    pub(crate) fn new(stream: UnixStream) -> Result<Self, String> {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("read timeout");
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        qmp.message()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command. What happened before it is forgotten.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        self.events.clear();
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|e| format!("QMP {command}: {e}"))?;
        loop {
            let mut message = self.message().map_err(|e| format!("QMP {command}: {e}"))?;
            if let Some(error) = message.get("error") {
                return Err(format!("QMP {command}: {error}"));
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            self.events.push(message);
        }
    }

    /// Waits until the event `name` comes, or has come since the last command, with all the members of `data`.
    pub(crate) fn wait_for(&mut self, name: &str, data: &Value) -> Result<(), String> {
        let is_it = |message: &Value| {
            let members = data.as_object().into_iter().flatten();
            message["event"] == name && members.into_iter().all(|(key, value)| message["data"][key] == *value)
        };
        if self.events.iter().any(is_it) {
            return Ok(());
        }
        while !is_it(&self.message().map_err(|e| format!("waiting for {name} {data}: {e}"))?) {}
        Ok(())
    }

    fn message(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("QEMU has ended".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|e| format!("{e} in {line:?}")),
            Err(e) => Err(e.to_string()),
        }
    }
}
