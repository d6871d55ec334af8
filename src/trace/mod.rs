//! A capture of what is sent to the TPM and what it answers, for tshark and Wireshark (`--trace-pcap`).
//!
//! The engine tells the [`Tracer`] of each command and response. What may be secret is left out at once (`redact`), and the
//! rest is put into a queue of bounded size. A thread (`writer`) takes it from there, makes the packets of it that TCG's
//! simulator and its client would exchange (`conversation`), and those blocks of a capture file (`pcapng`). So a disk or a
//! reader that takes its time holds nobody up: the trace has a gap then, and says so.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod capture;
mod conversation;
mod file;
mod pcapng;
pub mod redact;
mod writer;

pub use file::{TraceFile, TraceFileError};

use std::io;
use std::sync::mpsc::TrySendError;
use std::time::SystemTime;

use zeroize::Zeroizing;

use crate::tpm::{BUFFER_SIZE, Header, Locality, TpmVersion};
use writer::Writer;

/// Who has sent a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The guest.
    Guest,
    /// The platform, which is us: Startup, closing the platform hierarchy, Shutdown. Its secrets are never shown.
    Platform,
}

/// How much is traced.
#[derive(Clone, Copy, Debug)]
pub struct TraceOptions {
    /// Largest size of the file in bytes. The trace ends there.
    pub limit: u64,
    /// The guest's secrets are shown.
    pub with_secrets: bool,
}

/// What is to be written: a command, or a response.
struct Message {
    time: SystemTime,
    sender: Sender,
    /// Of a command; `None` for a response.
    locality: Option<Locality>,
    bytes: Zeroizing<Vec<u8>>,
    /// How many before this one could not be written.
    missing: u64,
}

/// Hears of all commands and responses. By default it is off, and nothing is done.
#[derive(Default)]
pub struct Tracer(Option<Running>);

struct Running {
    writer: Writer,
    version: TpmVersion,
    with_secrets: bool,
    /// The command under way.
    command: Option<Traced>,
    missing: u64,
}

/// A command that a response may follow.
#[derive(Clone, Copy)]
struct Traced {
    sender: Sender,
    code: Option<u32>,
    /// It is in the trace. Without it, the response would be taken for that of another.
    written: bool,
}

impl Tracer {
    /// Begins a trace of a TPM of `version`. Its thread inherits the confinement of this one, and is at work when this returns.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(file: TraceFile, version: TpmVersion, options: TraceOptions) -> io::Result<Self> {
        let TraceOptions { limit, with_secrets } = options;
        let writer = Writer::start(file, limit, with_secrets)?;
        Ok(Self(Some(Running { writer, version, with_secrets, command: None, missing: 0 })))
    }

    /// A command is about to be given to the TPM.
    pub fn command(&mut self, sender: Sender, locality: Locality, command: &[u8]) {
        let Some(running) = &mut self.0 else { return };
        let code = Header::parse(command).map(|header| header.code);
        let bytes = running.shown(sender, command, redact::command);
        let goes_on = running.write(sender, Some(locality), bytes).map(|written| {
            running.command = Some(Traced { sender, code, written });
        });
        if goes_on.is_none() {
            self.0 = None;
        }
    }

    /// The TPM has answered the last command.
    pub fn response(&mut self, response: &[u8]) {
        let Some(running) = &mut self.0 else { return };
        let Some(Traced { sender, code, written }) = running.command.take() else { return };
        if !written {
            running.missing = running.missing.saturating_add(1);
            return;
        }
        let bytes = running.shown(sender, response, |version, response| redact::response(version, code, response));
        if running.write(sender, None, bytes).is_none() {
            self.0 = None;
        }
    }
}

impl Running {
    fn shown(
        &self,
        sender: Sender,
        bytes: &[u8],
        redact: impl FnOnce(TpmVersion, &[u8]) -> Zeroizing<Vec<u8>>,
    ) -> Zeroizing<Vec<u8>> {
        // No TPM that keeps to the rules goes further.
        let bytes = bytes.get(..BUFFER_SIZE).unwrap_or(bytes);
        if self.with_secrets && sender == Sender::Guest { bytes.to_vec().into() } else { redact(self.version, bytes) }
    }

    /// Whether it is on its way to the file; `None` if the trace has ended.
    fn write(&mut self, sender: Sender, locality: Option<Locality>, bytes: Zeroizing<Vec<u8>>) -> Option<bool> {
        let message = Message { time: SystemTime::now(), sender, locality, bytes, missing: self.missing };
        match self.writer.try_write(message) {
            Ok(()) => {
                self.missing = 0;
                Some(true)
            }
            Err(TrySendError::Full(_)) => {
                log::warn!("the trace has a gap: its file does not take as much as the TPM and its guest say");
                self.missing = self.missing.saturating_add(1);
                Some(false)
            }
            // It has said why.
            Err(TrySendError::Disconnected(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests;
