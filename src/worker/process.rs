//! The loop of the worker process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;

use super::cancel::{self, Ended};
use super::frame::{self, FrameError, MAX_FRAME, Reply, Request};
use super::libtpms::Tpm;
use super::nvram::Nvram;
use crate::state::StateFolder;
use crate::tpm::TpmVersion;

/// Why the worker cannot go on. It then ends, and the server sees its socket closed.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A system call failed.
    #[error("the worker's socket failed: {0}; the worker is started by the server, with the socket as standard input")]
    Socket(#[from] nix::Error),
    /// The server said something that is not in the protocol.
    #[error("the server broke the worker's protocol: {0}")]
    Frame(#[from] FrameError),
    /// The first frame was not what it must be.
    #[error("the server's first frame must be START with one descriptor or three")]
    NotStarted,
    /// The library is not usable.
    #[error("{0}")]
    Library(String),
    /// The process could not be prepared.
    #[error("cannot prepare the worker process: {0}")]
    Process(#[from] io::Error),
}

/// Runs the worker on `socket` until the server closes it.
///
/// # Errors
/// [`WorkerError`].
pub fn run(socket: BorrowedFd<'_>) -> Result<(), WorkerError> {
    prepare()?;
    let mut buffer = vec![0; MAX_FRAME];
    let Some((version, descriptors)) = receive_start(socket, &mut buffer)? else { return Ok(()) };
    let ended = Ended::default();
    let folder = match descriptors {
        Descriptors::Ephemeral { cancel } => {
            cancel::start(cancel, ended.clone())?;
            None
        }
        Descriptors::Stateful { cancel, dir, lock } => {
            cancel::start(cancel, ended.clone())?;
            Some(StateFolder::shared(dir, lock))
        }
    };
    let mut tpm = Tpm::new(version, Nvram::new(version, folder)).map_err(WorkerError::Library)?;
    let (mut response, mut reply) = (Vec::with_capacity(MAX_FRAME), Vec::with_capacity(MAX_FRAME));
    loop {
        let (frame, _) = frame::receive(socket, &mut buffer)?;
        if frame.is_empty() {
            tpm.terminate();
            return Ok(());
        }
        let (sequence, request) = Request::decode(frame)?;
        match answer(&mut tpm, request, &mut response) {
            Ok(answer) => answer.encode(sequence, &mut reply),
            Err(text) => Reply::Failed(&text).encode(sequence, &mut reply),
        }
        ended.note(sequence);
        frame::send(socket, &reply, &[])?;
    }
}

/// Carries out one request.
fn answer<'a>(tpm: &mut Tpm, request: Request<'_>, response: &'a mut Vec<u8>) -> Result<Reply<'a>, String> {
    match request {
        Request::Start(_) => return Err("START came twice".to_owned()),
        Request::Initialize => tpm.initialize()?,
        Request::Execute(locality, command) => {
            tpm.process(locality, command, response)?;
            return Ok(Reply::Response(response));
        }
        Request::ResetEstablished(locality) => tpm.reset_established(locality)?,
        Request::Terminate => tpm.terminate(),
    }
    Ok(Reply::Done { established: tpm.established() })
}

enum Descriptors {
    Ephemeral { cancel: OwnedFd },
    Stateful { cancel: OwnedFd, dir: OwnedFd, lock: OwnedFd },
}

fn receive_start(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<(TpmVersion, Descriptors)>, WorkerError> {
    let (frame, descriptors) = frame::receive(socket.as_fd(), buffer)?;
    if frame.is_empty() {
        return Ok(None);
    }
    let (_, request) = Request::decode(frame)?;
    let mut descriptors = descriptors.into_iter();
    let descriptors = match (descriptors.next(), descriptors.next(), descriptors.next()) {
        (Some(cancel), None, None) => Some(Descriptors::Ephemeral { cancel }),
        (Some(cancel), Some(dir), Some(lock)) => Some(Descriptors::Stateful { cancel, dir, lock }),
        _ => None,
    };
    match (request, descriptors) {
        (Request::Start(version), Some(descriptors)) => Ok(Some((version, descriptors))),
        _ => Err(WorkerError::NotStarted),
    }
}

/// The worker ends with its server and by nothing else: a signal sent to all processes of a service or a terminal must
/// not take the TPM away before the server has shut it down.
fn prepare() -> Result<(), WorkerError> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]).thread_block()?;
    // A write to a file that became too large must fail, not kill.
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block()?;
    Ok(())
}
