//! The loop of the worker process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::cancel::{self, Cancel, Ended};
use super::device::DeviceTpm;
use super::frame::{FrameError, MAX_FRAME, Reply, Request};
use super::holding::Holding;
use super::libtpms::Tpm;
use super::nvram::Nvram;
use crate::sandbox::{Confinement, Grant, SandboxError, WORKER_CALLS, forbid_inspection};
use crate::seqpacket;
use crate::state::{Anchor, Key, StateFolder};
use crate::tpm::{Locality, TpmVersion};

/// Descriptors that may be open: the standard streams, those that came with START, a file or two, and some to spare.
const MAX_OPEN: u64 = 32;

/// Why the worker cannot go on. It then ends, and the server sees its socket closed.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A system call failed.
    #[error("the worker's socket failed; a worker is started by the server, with the socket as standard input")]
    Socket(#[source] nix::Error),
    /// The server said something that is not in the protocol.
    #[error("the server broke the worker's protocol")]
    Frame(#[from] FrameError),
    /// The first frame was not what it must be.
    #[error("the server's first frame must be START or START_DEVICE with the descriptors that belong to it")]
    NotStarted,
    /// The first frame was about another TPM.
    #[error("the server's first frame is about a TPM that this worker was not started for")]
    Foreign,
    /// The library or the device is not usable.
    #[error("{0}")]
    Tpm(String),
    /// The process could not be prepared.
    #[error("cannot prepare the worker process")]
    Process(#[from] io::Error),
    /// The process could not be confined.
    #[error("cannot confine the worker process")]
    Sandbox(#[from] SandboxError),
}

/// The TPM that the worker holds: libtpms, or a device of the host.
pub(super) trait HeldTpm {
    /// `_TPM_Init`, as far as it is ours to give.
    ///
    /// # Errors
    /// What stopped it, for the log.
    fn initialize(&mut self) -> Result<(), String>;

    /// Chooses the profile of a TPM that the next [`initialize`](Self::initialize) makes. A TPM that is already there keeps
    /// its own.
    ///
    /// # Errors
    /// Why there can be none, for the user.
    fn set_profile(&mut self, profile: &str) -> Result<(), String>;

    /// Ends the TPM without a word to it, as when power is cut.
    fn terminate(&mut self);

    /// `_TPM_Hash_Start`, `_TPM_Hash_Data` and `_TPM_Hash_End`, at locality 4.
    ///
    /// # Errors
    /// The refusal, for the log.
    fn hash(&mut self, data: &[u8]) -> Result<(), String>;

    /// Runs one command and puts its response into `response`.
    ///
    /// # Errors
    /// Why there is no response, for the log.
    fn process(&mut self, locality: Locality, command: &[u8], response: &mut Vec<u8>) -> Result<(), String>;

    /// The TPM's `tpmEstablished` flag.
    fn established(&self) -> bool;

    /// Clears the `tpmEstablished` flag, if the TPM lets `locality` do so.
    ///
    /// # Errors
    /// The refusal, for the log.
    fn reset_established(&mut self, locality: Locality) -> Result<(), String>;

    /// What it opens again while it is held, if it does that.
    fn opens(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Runs the worker on `socket` until the server closes it. The process is confined before anything of a guest's arrives.
/// `holding` is what it may hold; without it, what the server says.
///
/// # Errors
/// [`WorkerError`].
pub fn run(socket: BorrowedFd<'_>, confinement: Confinement, holding: Option<Holding>) -> Result<(), WorkerError> {
    prepare()?;
    confinement.give_up_privileges(MAX_OPEN)?;
    // Both hold what the guest says and hears, one command after the other: secrets too.
    let mut buffer = Zeroizing::new(vec![0; MAX_FRAME]);
    let ended = Ended::default();
    let tpm = receive_start(socket, &mut buffer, &ended, confinement, holding);
    // A key may be in it.
    buffer.fill(0);
    let Some(mut tpm) = tpm? else { return Ok(()) };
    let _ = confinement.restrict_calls(&[WORKER_CALLS])?;
    let mut response = Vec::with_capacity(MAX_FRAME);
    let mut reply = Zeroizing::new(Vec::with_capacity(MAX_FRAME));
    loop {
        let frame = seqpacket::receive(socket, &mut buffer).map_err(WorkerError::Socket)?;
        if frame.is_empty() {
            tpm.terminate();
            return Ok(());
        }
        let (sequence, request) = Request::decode(frame)?;
        match answer(&mut *tpm, request, &mut response) {
            Ok(answer) => answer.encode(sequence, &mut reply),
            Err(text) => Reply::Failed(&text).encode(sequence, &mut reply),
        }
        ended.note(sequence);
        seqpacket::send(socket, &reply, &[]).map_err(WorkerError::Socket)?;
        // Until the next command this process may be idle for long.
        for buffer in [&mut buffer[..], &mut response, &mut reply] {
            buffer.zeroize();
        }
    }
}

/// Carries out one request.
pub(super) fn answer<'a>(
    tpm: &mut dyn HeldTpm,
    request: Request<'_>,
    response: &'a mut Vec<u8>,
) -> Result<Reply<'a>, String> {
    match request {
        Request::Start(..) | Request::StartDevice(_) => return Err("START came twice".to_owned()),
        Request::Initialize => tpm.initialize()?,
        Request::InitializeProfile(profile) => {
            tpm.set_profile(profile)?;
            tpm.initialize()?;
        }
        Request::Hash(data) => tpm.hash(data)?,
        Request::Execute(locality, command) => {
            tpm.process(locality, command, response)?;
            return Ok(Reply::Response(response));
        }
        Request::ResetEstablished(locality) => tpm.reset_established(locality)?,
        Request::Terminate => tpm.terminate(),
    }
    Ok(Reply::Done { established: tpm.established() })
}

/// Takes the first frame, and begins to hold the TPM that it describes.
fn receive_start(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    ended: &Ended,
    confinement: Confinement,
    holding: Option<Holding>,
) -> Result<Option<Box<dyn HeldTpm>>, WorkerError> {
    let (frame, descriptors) =
        seqpacket::receive_with_descriptors(socket.as_fd(), buffer).map_err(WorkerError::Socket)?;
    if frame.is_empty() {
        return Ok(None);
    }
    let (_, request) = Request::decode(frame)?;
    let mut descriptors = descriptors.into_iter();
    let Some(cancel_socket) = descriptors.next() else { return Err(WorkerError::NotStarted) };
    let received = [descriptors.next(), descriptors.next(), descriptors.next()];
    let file = received.first().and_then(Option::as_ref).map(AsFd::as_fd);
    if holding.is_some_and(|holding| !holding.admits(&request, file)) {
        return Err(WorkerError::Foreign);
    }
    let mut state_folder = None;
    let (tpm, cancel): (Box<dyn HeldTpm>, _) = match (request, received) {
        (Request::Start(version, _), [None, None, None]) => (library(version, None)?, Cancel::Library),
        (Request::Start(version, key), [Some(dir), Some(lock), anchor]) => {
            state_folder = Some(dir.try_clone()?);
            let folder = StateFolder::shared(dir, lock).with_key(key.map(Key::from_master));
            (library(version, Some(folder.with_anchor(anchor.map(Anchor::shared))))?, Cancel::Library)
        }
        (Request::StartDevice(properties), [Some(device), cancel_file, None]) => (
            Box::new(DeviceTpm::new(device, properties).map_err(WorkerError::Tpm)?),
            cancel_file.map_or(Cancel::Impossible, Cancel::File),
        ),
        _ => return Err(WorkerError::NotStarted),
    };
    let state_folder = state_folder.as_ref().map(|folder| Grant::StateFolder(folder.as_fd()));
    let granted: Vec<_> = state_folder.into_iter().chain(tpm.opens().map(Grant::Device)).collect();
    // The thread takes it over.
    let _ = confinement.restrict_files(&granted)?;
    cancel::start(cancel_socket, ended.clone(), cancel)?;
    Ok(Some(tpm))
}

fn library(version: TpmVersion, folder: Option<StateFolder>) -> Result<Box<dyn HeldTpm>, WorkerError> {
    Ok(Box::new(Tpm::new(version, Nvram::new(version, folder)).map_err(WorkerError::Tpm)?))
}

/// The worker ends with its server and by nothing else: a signal sent to all processes of a service or a terminal must
/// not take the TPM away before the server has shut it down. And what it holds stays with it.
fn prepare() -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // However little it is confined: the seeds are in its memory.
    forbid_inspection()?;
    let ignored = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        // A log line to a terminal must not stop the TPM.
        Signal::SIGTTOU,
        // A write to a file that became too large must fail, not kill.
        Signal::SIGXFSZ,
    ];
    SigSet::from_iter(ignored).thread_block()?;
    Ok(())
}
