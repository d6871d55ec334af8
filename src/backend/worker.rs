//! A TPM behind a worker process: the program itself, started again, holds the TPM and answers by frames.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use zeroize::Zeroize;

use super::unaccompanied::refuse_descriptors;
use super::{Backend, BackendError, Done};
use crate::launch::{Launcher, Process, Program};
use crate::seqpacket;
use crate::tpm::Locality;
use crate::worker::SUBCOMMAND;
use crate::worker::frame::{self, MAX_FRAME, Reply, Request};

/// Number of a worker's first frame, which starts it and is not answered.
const STARTED: u32 = 1;

/// What a worker is to do.
pub trait Task {
    /// The first frame, which says so, and the descriptors that go with it after the cancel socket.
    fn start(&self) -> (Request<'_>, Vec<BorrowedFd<'_>>);

    /// What `_TPM_Init` is for this worker.
    fn initialize(&self) -> Request<'_> {
        Request::Initialize
    }

    /// Whether a command that is cancelled is sure to end soon.
    fn obeys_cancel(&self) -> bool {
        true
    }

    /// A worker is started after one has ended or was killed; for what a user has to be told of that.
    fn begins_again(&self) {}

    /// See [`Backend::about`].
    fn about(&self) -> Option<String> {
        None
    }
}

/// This program, at `path`, as a worker. With no more arguments it is confined fully, and holds what it is given.
#[must_use]
pub fn worker_program(path: PathBuf, log_level: log::LevelFilter) -> Program {
    Program::ourselves(path, SUBCOMMAND, log_level)
}

/// A TPM in a worker process.
#[derive(Debug)]
pub struct WorkerBackend<T> {
    task: T,
    launcher: Box<dyn Launcher>,
    worker: Option<Worker>,
    /// A killed process that may still be there: no other may be started on its state.
    dying: Option<Process>,
    /// There is an [`initialize`](Backend::initialize) that waits for the dying process.
    initialize_waits: bool,
    /// The descriptor to wait for is another one.
    new_descriptor: bool,
    /// Workers that were started.
    launches: u64,
    frame: Vec<u8>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Worker {
    process: Process,
    socket: OwnedFd,
    cancel: OwnedFd,
    /// Number of the request under way, or the last.
    sequence: u32,
    /// It served before the `_TPM_Init` that is under way, and may be dying of what it did then.
    is_from_before: bool,
}

impl<T: Task> WorkerBackend<T> {
    /// A TPM that is off; its worker is started by the first [`Backend::initialize`].
    #[must_use]
    pub fn new(task: T, launcher: impl Launcher + 'static) -> Self {
        Self {
            task,
            launcher: Box::new(launcher),
            worker: None,
            dying: None,
            initialize_waits: false,
            new_descriptor: false,
            launches: 0,
            frame: Vec::with_capacity(MAX_FRAME),
            buffer: vec![0; MAX_FRAME],
        }
    }

    fn start_worker(&mut self) -> io::Result<()> {
        let (socket, theirs) = seqpacket::pair()?;
        let (cancel, their_cancel) = seqpacket::pair()?;
        for ours in [&socket, &cancel] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            refuse_descriptors(ours)?;
        }
        let process = self.launcher.launch(theirs)?;
        if self.launches > 0 {
            self.task.begins_again();
        }
        self.launches = self.launches.saturating_add(1);
        self.new_descriptor = true;
        let worker = self.worker.insert(Worker { process, socket, cancel, sequence: 0, is_from_before: false });
        let (start, theirs) = self.task.start();
        let mut descriptors = vec![their_cancel.as_fd()];
        descriptors.extend(theirs);
        Ok(worker.send(start, &mut self.frame, &descriptors)?)
    }

    fn begin(&mut self, request: Request<'_>) -> Result<(), BackendError> {
        let Some(worker) = &mut self.worker else {
            return Err(BackendError::Gone("its process does not run".to_owned()));
        };
        worker.send(request, &mut self.frame, &[]).map_err(|errno| self.lost(&format!("cannot write to it: {errno}")))
    }

    /// Carries out an [`initialize`](Backend::initialize) with a new worker: the one there is has died of something that
    /// came before, which a new one does not know of.
    fn begin_again(&mut self) -> Result<(), BackendError> {
        log::warn!("the TPM's process has ended before it could be reset; a new one is started");
        self.kill();
        self.initialize()
    }

    /// Gives up the worker and says why.
    fn lost(&mut self, reason: &str) -> BackendError {
        self.kill();
        BackendError::Gone(reason.to_owned())
    }

    /// Whether a killed process has ended.
    fn is_buried(&mut self) -> bool {
        let Some(dying) = &mut self.dying else { return true };
        let Some(end) = dying.end() else { return false };
        log::debug!("the TPM's process has ended: {end}");
        self.dying = None;
        true
    }
}

impl Worker {
    fn send(&mut self, request: Request<'_>, frame: &mut Vec<u8>, descriptors: &[BorrowedFd<'_>]) -> nix::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        request.encode(self.sequence, frame);
        let sent = seqpacket::send(self.socket.as_fd(), frame, descriptors);
        // A key may be in it, and a guest's passwords.
        frame.zeroize();
        sent
    }
}

impl<T: Task> Backend for WorkerBackend<T> {
    fn initialize(&mut self) -> Result<(), BackendError> {
        if self.worker.is_none() {
            if !self.is_buried() {
                self.initialize_waits = true;
                return Ok(());
            }
            if let Err(error) = self.start_worker() {
                return Err(self.lost(&format!("cannot start its process: {error}")));
            }
        }
        let Some(worker) = &mut self.worker else {
            return Err(BackendError::Gone("its process does not run".to_owned()));
        };
        worker.is_from_before = worker.sequence > STARTED;
        match worker.send(self.task.initialize(), &mut self.frame, &[]) {
            Ok(()) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) if worker.is_from_before => self.begin_again(),
            Err(errno) => Err(self.lost(&format!("cannot write to it: {errno}"))),
        }
    }

    fn hash(&mut self, data: &[u8]) -> Result<(), BackendError> {
        self.begin(Request::Hash(data))
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

    fn cancel(&mut self) -> bool {
        let Some(worker) = &self.worker else { return false };
        // A full socket holds requests to cancel this same command.
        if let Err(errno) = frame::send_cancel(&worker.cancel, worker.sequence) {
            log::debug!("cancelling is not possible: {errno}");
        }
        self.task.obeys_cancel()
    }

    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>> {
        if !self.is_buried() {
            return None;
        }
        if std::mem::take(&mut self.initialize_waits) {
            return self.initialize().err().map(Err);
        }
        let worker = self.worker.as_mut()?;
        let frame = match seqpacket::receive(worker.socket.as_fd(), &mut self.buffer) {
            Ok([]) | Err(Errno::ECONNRESET) if worker.is_from_before => return self.begin_again().err().map(Err),
            Ok([]) => {
                // Usually it has ended already, and how is known.
                let end = worker.process.end().map_or_else(String::new, |end| format!(" and ended: {end}"));
                return Some(Err(self.lost(&format!("its process has closed its socket{end}"))));
            }
            Ok(frame) => frame,
            Err(Errno::EAGAIN) => return None,
            Err(errno) => return Some(Err(self.lost(&format!("cannot read from it: {errno}")))),
        };
        worker.is_from_before = false;
        Some(match Reply::decode(frame) {
            Ok((sequence, _)) if sequence != worker.sequence => {
                let expected = worker.sequence;
                Err(self.lost(&format!("it answered request {sequence}, and {expected} was asked")))
            }
            Ok((_, Reply::Done { established })) => Ok(Done::Control { established }),
            Ok((_, Reply::Response(bytes))) => {
                response.clear();
                response.extend_from_slice(bytes);
                // What a TPM unseals.
                self.buffer.as_mut_slice().zeroize();
                Ok(Done::Response)
            }
            // From a process that may have been taken over: no control characters in the log.
            Ok((_, Reply::Failed(text))) => Err(BackendError::Refused(text.escape_debug().take(1000).collect())),
            Err(error) => Err(self.lost(&error.to_string())),
        })
    }

    fn kill(&mut self) {
        self.initialize_waits = false;
        // What did not fit the protocol may have been a response all the same.
        self.buffer.as_mut_slice().zeroize();
        let Some(mut worker) = self.worker.take() else { return };
        worker.process.kill();
        if worker.process.end().is_none() {
            self.dying = Some(worker.process);
            self.new_descriptor = true;
        }
    }

    fn is_gone(&self) -> bool {
        self.worker.is_none() && self.dying.is_none()
    }

    fn launches(&self) -> u64 {
        self.launches
    }

    fn about(&self) -> Option<String> {
        self.task.about()
    }

    fn take_new_descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        if !std::mem::take(&mut self.new_descriptor) {
            return None;
        }
        match (&self.dying, &self.worker) {
            (Some(dying), _) => Some(dying.descriptor()),
            (None, worker) => worker.as_ref().map(|worker| worker.socket.as_fd()),
        }
    }
}
