//! The worker, as the built program: what it takes from a server that was taken over.

mod common;

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use common::process::Process;
use common::server::Server;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vfio_user_tpm::seqpacket;
use vfio_user_tpm::tpm::{Locality, TpmVersion};
use vfio_user_tpm::worker::frame::{MAX_FRAME, Reply, Request};

/// A worker that was started for `holding`.
struct Worker {
    socket: OwnedFd,
    _cancel: OwnedFd,
    process: Process,
    folder: tempfile::TempDir,
}

impl Worker {
    fn start(holding: &str, request: Request<'_>, descriptors: &[BorrowedFd<'_>]) -> Self {
        let (socket, theirs) = seqpacket::pair().unwrap();
        let (cancel, their_cancel) = seqpacket::pair().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let args = ["worker".to_owned(), format!("--holds={holding}")];
        let program = Path::new(env!("CARGO_BIN_EXE_vfio-user-tpm"));
        let process = Process::start_with_input(program, args, folder.path().join("log"), theirs.into());
        let worker = Self { socket, _cancel: cancel, process, folder };
        worker.send(request, &[&[their_cancel.as_fd()], descriptors].concat());
        worker
    }

    fn send(&self, request: Request<'_>, descriptors: &[BorrowedFd<'_>]) {
        let mut frame = Vec::new();
        request.encode(1, &mut frame);
        // It may have ended.
        let _ = seqpacket::send(self.socket.as_fd(), &frame, descriptors);
    }

    /// Its TPM is on, and off again.
    fn works(&self) {
        for request in [Request::Initialize, Request::Terminate] {
            self.send(request, &[]);
            let mut buffer = [0; MAX_FRAME];
            let reply = seqpacket::receive(self.socket.as_fd(), &mut buffer).unwrap();
            assert!(matches!(Reply::decode(reply), Ok((1, Reply::Done { .. }))), "{}", self.process.output());
        }
    }

    /// It does nothing that it is asked for.
    fn refuses(mut self) {
        self.send(Request::Initialize, &[]);
        self.send(Request::Execute(Locality::ZERO, &[0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x7b]), &[]);
        let mut closed = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut closed, PollTimeout::from(60_000_u16)), Ok(1));
        assert!(matches!(seqpacket::receive(self.socket.as_fd(), &mut [0; MAX_FRAME]), Ok([]) | Err(_)));
        assert_eq!(self.process.wait(std::time::Duration::from_secs(60)).unwrap().code(), Some(1));
        let output = self.process.output();
        assert!(output.contains("was not started for"), "{output}");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 1, "only its log");
    }
}

fn numbers(kind: &str, path: &Path) -> String {
    let metadata = fs::metadata(path).unwrap();
    format!("{kind}:{}:{}", metadata.dev(), metadata.ino())
}

/// An open folder and a lock.
fn state_folder(path: &Path) -> [File; 2] {
    [path.to_owned(), path.join("lock")]
        .map(|path| if path.is_dir() { File::open(path) } else { File::create(path) }.unwrap())
}

fn start() -> Request<'static> {
    Request::Start(TpmVersion::V2_0, None)
}

#[test]
fn a_worker_takes_the_state_folder_that_it_was_started_for_and_no_other() {
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [folder, lock] = state_folder(own.path());
    let holding = numbers("folder", own.path());
    Worker::start(&holding, start(), &[folder.as_fd(), lock.as_fd()]).works();
    assert!(fs::read_dir(own.path()).unwrap().count() > 1, "there is a state");

    let [folder, lock] = state_folder(other.path());
    Worker::start(&holding, start(), &[folder.as_fd(), lock.as_fd()]).refuses();
    Worker::start("nothing", start(), &[folder.as_fd(), lock.as_fd()]).refuses();
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1, "only the lock");
    // Nor does one with a state become ephemeral, of which nobody would know.
    Worker::start(&holding, start(), &[]).refuses();
}

#[test]
fn a_worker_without_files_holds_an_ephemeral_tpm() {
    Worker::start("nothing", start(), &[]).works();
}

/// It would open, write to and read whatever was handed over for a device.
#[test]
fn a_worker_takes_no_file_for_its_device() {
    let folder = tempfile::tempdir().unwrap();
    let (own, other) = (folder.path().join("own"), folder.path().join("other"));
    for path in [&own, &other] {
        fs::write(path, "precious").unwrap();
    }
    let path_only = |path| File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).unwrap();
    let handed_over = path_only(&other);
    let holdings = ["nothing".to_owned(), numbers("device", &own), numbers("folder", folder.path())];
    for holding in holdings {
        Worker::start(&holding, Request::StartDevice(None), &[handed_over.as_fd()]).refuses();
    }
    assert_eq!(fs::read(&other).unwrap(), b"precious");

    // As many bytes as a command has are written to the right one: it is no device, but that is not the worker's to know.
    let worker = Worker::start(&numbers("device", &own), Request::StartDevice(None), &[path_only(&own).as_fd()]);
    worker.works();
}

#[test]
fn a_servers_workers_are_started_for_one_thing_only() {
    let folder = tempfile::tempdir().unwrap();
    for (server, holding) in
        [(Server::start(), "nothing".to_owned()), (Server::with_state(folder.path()), numbers("folder", folder.path()))]
    {
        let line = fs::read(format!("/proc/{}/cmdline", server.running_engine())).unwrap();
        let holds = format!("--holds={holding}");
        assert!(line.split(|byte| *byte == 0).any(|argument| argument == holds.as_bytes()), "{holds}");
    }
}
