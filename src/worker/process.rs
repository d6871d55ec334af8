//! The loop of the worker process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use thiserror::Error;
use zeroize::Zeroize;

use super::cancel::{self, Ended};
use super::frame::{self, FrameError, MAX_FRAME, Reply, Request};
use super::libtpms::Tpm;
use super::nvram::Nvram;
use crate::state::{Anchor, Key, StateFolder};
use crate::tpm::TpmVersion;

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
    #[error("the server's first frame must be START with one descriptor, three or four")]
    NotStarted,
    /// The library is not usable.
    #[error("{0}")]
    Library(String),
    /// The process could not be prepared.
    #[error("cannot prepare the worker process")]
    Process(#[from] io::Error),
}

/// Runs the worker on `socket` until the server closes it.
///
/// # Errors
/// [`WorkerError`].
pub fn run(socket: BorrowedFd<'_>) -> Result<(), WorkerError> {
    prepare()?;
    let mut buffer = vec![0; MAX_FRAME];
    let started = receive_start(socket, &mut buffer);
    // A key may be in it.
    buffer.zeroize();
    buffer.resize(MAX_FRAME, 0);
    let Some((version, key, descriptors)) = started? else { return Ok(()) };
    let ended = Ended::default();
    let folder = match descriptors {
        Descriptors::Ephemeral { cancel } => {
            cancel::start(cancel, ended.clone())?;
            None
        }
        Descriptors::Stateful { cancel, dir, lock, anchor } => {
            cancel::start(cancel, ended.clone())?;
            Some(StateFolder::shared(dir, lock).with_key(key).with_anchor(anchor.map(Anchor::shared)))
        }
    };
    let mut tpm = Tpm::new(version, Nvram::new(version, folder)).map_err(WorkerError::Library)?;
    let (mut response, mut reply) = (Vec::with_capacity(MAX_FRAME), Vec::with_capacity(MAX_FRAME));
    loop {
        let frame = frame::receive(socket, &mut buffer).map_err(WorkerError::Socket)?;
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
        frame::send(socket, &reply, &[]).map_err(WorkerError::Socket)?;
    }
}

/// Carries out one request.
fn answer<'a>(tpm: &mut Tpm, request: Request<'_>, response: &'a mut Vec<u8>) -> Result<Reply<'a>, String> {
    match request {
        Request::Start(..) => return Err("START came twice".to_owned()),
        Request::Initialize => tpm.initialize()?,
        Request::InitializeProfile(profile) => {
            tpm.set_profile(profile)?;
            tpm.initialize()?;
        }
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
    Stateful { cancel: OwnedFd, dir: OwnedFd, lock: OwnedFd, anchor: Option<OwnedFd> },
}

type Started = (TpmVersion, Option<Key>, Descriptors);

fn receive_start(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Started>, WorkerError> {
    let (frame, descriptors) = frame::receive_start(socket.as_fd(), buffer).map_err(WorkerError::Socket)?;
    if frame.is_empty() {
        return Ok(None);
    }
    let (_, request) = Request::decode(frame)?;
    let mut descriptors = descriptors.into_iter();
    let descriptors = match (descriptors.next(), descriptors.next(), descriptors.next()) {
        (Some(cancel), None, None) => Some(Descriptors::Ephemeral { cancel }),
        (Some(cancel), Some(dir), Some(lock)) => {
            Some(Descriptors::Stateful { cancel, dir, lock, anchor: descriptors.next() })
        }
        _ => None,
    };
    match (request, descriptors) {
        (Request::Start(version, key), Some(descriptors)) => {
            Ok(Some((version, key.map(Key::from_master), descriptors)))
        }
        _ => Err(WorkerError::NotStarted),
    }
}

/// The worker ends with its server and by nothing else: a signal sent to all processes of a service or a terminal must
/// not take the TPM away before the server has shut it down. And what it holds stays with it.
fn prepare() -> io::Result<()> {
    // Whatever the server was started with: it is none of the TPM's business.
    close_inherited()?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // No dump of the memory that holds the seeds, and no debugger of the same user.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
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

fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in this process has opened a descriptor yet; those above 2 belong to nobody.
    #[expect(unsafe_code, reason = "there is no safe face for it")]
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    match Errno::result(closed) {
        // Linux before 5.9 cannot do this; the server's own descriptors are closed on exec anyway.
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
