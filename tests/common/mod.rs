//! What the tests share: a client that speaks raw bytes, a toy device with a server that runs in a thread, the server as
//! the built program, and a driver for the TPM behind it.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod crb;
pub mod engine;
pub mod process;
pub mod raw_client;
pub mod root;
pub mod server;
pub mod swtpm;
pub mod tis;
pub mod toy;
pub mod tpm_commands;

use std::os::unix::thread::JoinHandleExt;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tempfile::TempDir;
use vfio_user_tpm::vfio_user::{Attendant, Device, Listener, Server, ServerError};

use raw_client::RawClient;
use toy::{Control, ToyDevice};

/// A server with a [`ToyDevice`] on a socket of its own.
pub struct ToyServer {
    folder: TempDir,
    pub control: Control,
    thread: JoinHandle<Result<(), ServerError>>,
}

impl ToyServer {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("socket")).unwrap();
        Self::start_on(folder, listener)
    }

    pub fn start_on(folder: TempDir, listener: Listener) -> Self {
        let server = Server::new(listener).unwrap();
        let (device, control) = ToyDevice::new(&server.registry().unwrap());
        Self { folder, control, thread: run_in_thread(server, device) }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A client that is connected and has said nothing.
    pub fn connect(&self) -> RawClient {
        RawClient::connect(&self.path())
    }

    /// A client that has negotiated.
    pub fn client(&self) -> RawClient {
        let mut client = self.connect();
        client.negotiate();
        client
    }

    pub fn signal(&self, signal: Signal) {
        signal_thread(&self.thread, signal);
    }

    /// Whether the server has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the server to end.
    pub fn join(self) -> (TempDir, Result<(), ServerError>) {
        (self.folder, self.thread.join().unwrap())
    }

    /// Ends the server with SIGTERM.
    pub fn stop(self) {
        self.signal(Signal::SIGTERM);
        self.join().1.unwrap();
    }
}

/// Runs a server in a thread that can be ended with [`signal_thread`].
pub fn run_in_thread(server: Server, device: impl Device + Send + 'static) -> JoinHandle<Result<(), ServerError>> {
    run_made_in_thread(server, || device)
}

/// As [`run_in_thread`], for a device that has to be made in the thread in which it is used.
pub fn run_made_in_thread<D: Device>(
    server: Server,
    make: impl FnOnce() -> D + Send + 'static,
) -> JoinHandle<Result<(), ServerError>> {
    run_attended_in_thread(server, || (make(), ()))
}

/// As [`run_made_in_thread`], with an attendant.
pub fn run_attended_in_thread<D: Device, A: Attendant<D>>(
    server: Server,
    make: impl FnOnce() -> (D, A) + Send + 'static,
) -> JoinHandle<Result<(), ServerError>> {
    // Blocked before the thread is there, so that no signal can come too early; only this thread's are affected.
    let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    mask.thread_block().unwrap();
    thread::spawn(move || {
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).unwrap();
        let (mut device, mut attendant) = make();
        server.run_attended(&mut device, &mut attendant, &signals)
    })
}

/// Sends a signal to the thread of a server that has not been joined.
pub fn signal_thread<T>(thread: &JoinHandle<T>, signal: Signal) {
    // SAFETY: the thread is not joined, so its handle is valid.
    let result = unsafe { libc::pthread_kill(thread.as_pthread_t(), signal as i32) };
    assert_eq!(result, 0);
}

/// Bytes as tools print them.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}
