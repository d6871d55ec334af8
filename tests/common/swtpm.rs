//! Real swtpm programs for tests: those that are there, one that listens, and a plain client of its control channel.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vfio_user_tpm::backend::swtpm::control::{Reply, Request};
use vfio_user_tpm::tpm::{BUFFER_SIZE, TpmVersion};

use super::engine::PATIENCE;
use super::process::{Process, until};

/// The programs that are there: the machine's, and the one that `tests/swtpm/kit` has fetched.
pub fn programs() -> &'static [PathBuf] {
    static PROGRAMS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let kit = std::env::var_os("SWTPM_KIT").map_or_else(
            || Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("swtpm-kit"),
            |kit| std::path::absolute(kit).unwrap(),
        );
        let programs: Vec<_> = [PathBuf::from("swtpm"), kit.join("swtpm")]
            .into_iter()
            .filter(|program| {
                let Ok(output) = Command::new(program).arg("--version").output() else { return false };
                let version = String::from_utf8_lossy(&output.stdout);
                println!("testing with {}: {}", program.display(), version.lines().next().unwrap_or("no version"));
                output.status.success()
            })
            .collect();
        assert!(!programs.is_empty(), "no swtpm here: run ./test, or apt-get install swtpm");
        programs
    })
}

/// An swtpm that somebody else has started: it listens on a control socket.
pub struct Listening {
    program: PathBuf,
    version: TpmVersion,
    folder: PathBuf,
    extra: Vec<String>,
    pub process: Process,
}

impl Listening {
    /// Starts one with its state and its socket in `folder`.
    pub fn start(program: &Path, version: TpmVersion, folder: &Path, extra: &[&str]) -> Self {
        let extra: Vec<_> = extra.iter().map(ToString::to_string).collect();
        let process = launch(program, version, folder, &extra);
        Self { program: program.to_owned(), version, folder: folder.to_owned(), extra, process }
    }

    pub fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// After its end: another one in the same place.
    pub fn start_again(&mut self) {
        assert!(self.process.wait(PATIENCE).is_some());
        self.process = launch(&self.program, self.version, &self.folder, &self.extra);
    }
}

fn launch(program: &Path, version: TpmVersion, folder: &Path, extra: &[String]) -> Process {
    let control = folder.join("control");
    let _ = std::fs::remove_file(&control);
    let mut arguments = vec![
        "socket".to_owned(),
        "--ctrl".to_owned(),
        format!("type=unixio,path={}", control.display()),
        "--tpmstate".to_owned(),
        format!("dir={}", folder.display()),
    ];
    arguments.extend((version == TpmVersion::V2_0).then(|| "--tpm2".to_owned()));
    arguments.extend_from_slice(extra);
    let process = Process::start(program, arguments, folder.join("output"));
    let is_listening = until(PATIENCE, || UnixStream::connect(&control).ok());
    assert!(is_listening.is_some(), "swtpm does not listen: {}", process.output());
    process
}

/// A client of both channels that waits for each answer.
pub struct Client {
    control: UnixStream,
    data: Option<UnixStream>,
}

impl Client {
    pub fn connect(control: &Path) -> Self {
        let control = UnixStream::connect(control).unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { control, data: None }
    }

    /// Sends a request and hands its reply to `look`.
    pub fn ask<T>(&mut self, request: Request<'_>, look: impl FnOnce(Reply<'_>) -> T) -> T {
        self.control.write_all(&request.encode().unwrap()).unwrap();
        self.reply(request, look)
    }

    fn reply<T>(&mut self, request: Request<'_>, look: impl FnOnce(Reply<'_>) -> T) -> T {
        let mut bytes = Vec::new();
        loop {
            if let Some(reply) = request.parse_reply(&bytes).unwrap() {
                return look(reply);
            }
            let mut buffer = [0; 4096];
            let length = read(&mut self.control, &mut buffer);
            assert_ne!(length, 0, "the control channel is closed: {request:?}");
            bytes.extend(&buffer[..length]);
        }
    }

    /// Sends a request that is to be carried out.
    pub fn done(&mut self, request: Request<'_>) {
        self.ask(request, |reply| assert_eq!(reply, Reply::Done, "{request:?}"));
    }

    pub fn set_data_channel(&mut self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = Request::SetDataFd.encode().unwrap();
        let descriptors = [theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let data = [std::io::IoSlice::new(&request)];
        sendmsg::<()>(self.control.as_raw_fd(), &data, &rights, MsgFlags::empty(), None).unwrap();
        self.reply(Request::SetDataFd, |reply| assert_eq!(reply, Reply::Done));
        self.data = Some(ours);
    }

    /// Begins a command on the data channel.
    pub fn begin(&mut self, command: &[u8]) {
        self.data.as_mut().expect("a data channel").write_all(command).unwrap();
    }

    /// The response to it. swtpm writes each in one piece.
    pub fn response(&mut self) -> Vec<u8> {
        let mut buffer = [0; BUFFER_SIZE];
        let length = read(self.data.as_mut().expect("a data channel"), &mut buffer);
        buffer[..length].to_vec()
    }

    pub fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.begin(command);
        self.response()
    }
}

/// Reads once; a read that was interrupted is begun again.
fn read(socket: &mut UnixStream, buffer: &mut [u8]) -> usize {
    loop {
        match socket.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            length => return length.unwrap(),
        }
    }
}
