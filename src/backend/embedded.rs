//! The TPM that comes with the program: libtpms in a worker process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{Backend, BackendError, Done};
use crate::state::StateFolder;
use crate::tpm::{Locality, TpmVersion};
use crate::worker::SUBCOMMAND;
use crate::worker::frame::{self, MAX_FRAME, Reply, Request};

/// What the embedded TPM is to be.
#[derive(Debug)]
pub struct EmbeddedConfig {
    /// Version of the TPM.
    pub version: TpmVersion,
    /// Where its state lives. Without one, the TPM is ephemeral: its state is in the worker's memory and ends with it.
    pub state: Option<StateFolder>,
    /// The program to run as the worker: this one.
    pub program: PathBuf,
    /// The worker's log level.
    pub log_level: log::LevelFilter,
}

/// The embedded TPM.
#[derive(Debug)]
pub struct Embedded {
    config: EmbeddedConfig,
    worker: Option<Worker>,
    frame: Vec<u8>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Worker {
    process: Child,
    socket: OwnedFd,
    cancel: OwnedFd,
    /// Number of the request under way, or the last.
    sequence: u32,
}

impl Embedded {
    /// An embedded TPM; its worker is started by the first [`Backend::initialize`].
    #[must_use]
    pub fn new(config: EmbeddedConfig) -> Self {
        Self { config, worker: None, frame: Vec::with_capacity(MAX_FRAME), buffer: vec![0; MAX_FRAME] }
    }

    fn start_worker(&mut self) -> io::Result<Worker> {
        let (socket, theirs) = frame::socket_pair()?;
        let (cancel, their_cancel) = frame::socket_pair()?;
        for ours in [&socket, &cancel] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let process = Command::new(&self.config.program)
            .arg0(env!("CARGO_PKG_NAME"))
            .arg(SUBCOMMAND)
            .args(["--log-level", self.config.log_level.as_str()])
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            // What a terminal sends to a whole group of processes is for the server only.
            .process_group(0)
            .spawn()?;
        let mut worker = Worker { process, socket, cancel, sequence: 0 };
        let mut descriptors = vec![their_cancel.as_fd()];
        descriptors.extend(self.config.state.iter().flat_map(StateFolder::descriptors));
        let sent = worker.send(Request::Start(self.config.version), &mut self.frame, &descriptors);
        if let Err(errno) = sent {
            worker.kill();
            return Err(errno.into());
        }
        log::debug!("worker process {} started", worker.process.id());
        Ok(worker)
    }

    fn begin(&mut self, request: Request<'_>) -> Result<(), BackendError> {
        let Some(worker) = &mut self.worker else {
            return Err(BackendError::Gone("its process does not run".to_owned()));
        };
        worker.send(request, &mut self.frame, &[]).map_err(|errno| self.lost(&format!("cannot write to it: {errno}")))
    }

    /// Gives up the worker and says why.
    fn lost(&mut self, reason: &str) -> BackendError {
        let status = self.worker.take().map_or_else(String::new, Worker::end);
        BackendError::Gone(format!("{reason}{status}"))
    }
}

impl Worker {
    fn send(&mut self, request: Request<'_>, frame: &mut Vec<u8>, descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        request.encode(self.sequence, frame);
        frame::send(self.socket.as_fd(), frame, descriptors)
    }

    /// SIGKILL cannot be refused, so that waiting for the process takes no longer than the kernel needs to end it.
    fn kill(&mut self) -> Option<std::process::ExitStatus> {
        let _ = self.process.kill();
        self.process.wait().ok()
    }

    /// Makes sure that the process has ended, and tells how it did.
    fn end(mut self) -> String {
        self.kill().map_or_else(String::new, |status| format!(" (its process ended with {status})"))
    }
}

impl Backend for Embedded {
    fn initialize(&mut self) -> Result<(), BackendError> {
        if self.worker.is_none() {
            let worker = self.start_worker();
            let worker = worker.map_err(|error| BackendError::Gone(format!("cannot start its process: {error}")))?;
            self.worker = Some(worker);
        }
        self.begin(Request::Initialize)
    }

    fn execute(&mut self, locality: Locality, command: &[u8]) -> Result<(), BackendError> {
        self.begin(Request::Execute(locality, command))
    }

    fn reset_established(&mut self, locality: Locality) -> Result<(), BackendError> {
        self.begin(Request::ResetEstablished(locality))
    }

    fn terminate(&mut self) -> Result<(), BackendError> {
        self.begin(Request::Terminate)
    }

    fn cancel(&mut self) {
        if let Some(worker) = &self.worker {
            // A full socket holds requests to cancel this same command.
            if let Err(errno) = frame::send_cancel(&worker.cancel, worker.sequence) {
                log::debug!("cancelling is not possible: {errno}");
            }
        }
    }

    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>> {
        let worker = self.worker.as_mut()?;
        let frame = match frame::receive(worker.socket.as_fd(), &mut self.buffer) {
            Ok(([], _)) => return Some(Err(self.lost("it closed its socket"))),
            Ok((frame, _)) => frame,
            Err(Errno::EAGAIN) => return None,
            Err(errno) => return Some(Err(self.lost(&format!("cannot read from it: {errno}")))),
        };
        Some(match Reply::decode(frame) {
            Ok((sequence, _)) if sequence != worker.sequence => {
                let expected = worker.sequence;
                Err(self.lost(&format!("it answered request {sequence}, and {expected} was asked")))
            }
            Ok((_, Reply::Done { established })) => Ok(Done::Control { established }),
            Ok((_, Reply::Response(bytes))) => {
                response.clear();
                response.extend_from_slice(bytes);
                Ok(Done::Response)
            }
            // From a process that may have been taken over: no control characters in the log.
            Ok((_, Reply::Failed(text))) => Err(BackendError::Refused(text.escape_debug().take(1000).collect())),
            Err(error) => Err(self.lost(&error.to_string())),
        })
    }

    fn kill(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.kill();
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.worker.as_ref().map(|worker| worker.socket.as_fd())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.kill();
    }
}
