//! The driver of swtpm, with an swtpm that says anything on its two channels; and the control channel's replies alone.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tempfile::TempDir;
use vfio_user_tpm::backend::swtpm::control::{MAX_STATE_BLOB, Reply, Request};
use vfio_user_tpm::backend::swtpm::{Place, Swtpm, SwtpmConfig};
use vfio_user_tpm::backend::{Backend, BackendError, Done};
use vfio_user_tpm::state::Blob;
use vfio_user_tpm::tpm::{BUFFER_SIZE, Header, Locality, TpmVersion};

use super::open_descriptors;
use super::tape::Tape;

pub fn run(data: &[u8]) {
    super::log_lines::check();
    let mut tape = Tape::new(data);
    if tape.below(4) == 0 {
        return replies(&mut tape);
    }
    open_descriptors::unchanged_by(|| {
        let mut bench = Bench::new(&mut tape);
        while !tape.is_over() {
            bench.step(&mut tape);
        }
        bench.backend.kill();
        assert!(bench.backend.is_gone());
    });
}

/// A reply that is whole is so at one length only, whatever is missing or follows; a refusal may have values or none.
fn replies(tape: &mut Tape<'_>) {
    let requests = [
        Request::GetCapability,
        Request::GetTpmEstablished,
        Request::GetStateBlob { blob: Blob::Permanent, offset: 0, decrypted: false },
        Request::GetConfig,
        Request::SetBufferSize(0),
        Request::GetInfo,
        Request::Stop,
    ];
    let request = tape.choose(&requests);
    let bytes = tape.rest();
    let mut whole = None;
    for length in 0..=bytes.len().min(200) {
        match request.parse_reply(&bytes[..length]) {
            Ok(Some(Reply::Refused(code))) => assert!(code.0 != 0 && !code.to_string().is_empty()),
            Ok(Some(reply)) => {
                assert_eq!(whole.replace(length), None);
                if let Reply::StateBlob { total, data, .. } = reply {
                    assert!(data.len() <= total && total <= MAX_STATE_BLOB);
                }
            }
            Ok(None) => assert_eq!(whole, None),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let _ = request.parse_reply(bytes);
}

struct Bench {
    listener: UnixListener,
    _folder: TempDir,
    backend: Swtpm,
    version: TpmVersion,
    control: Option<UnixStream>,
    data: Option<UnixStream>,
    under_way: Option<Operation>,
    /// Number of the last control request.
    asked: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Control,
    Command,
}

impl Bench {
    fn new(tape: &mut Tape<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let control = folder.path().join("control");
        let listener = UnixListener::bind(&control).expect("a socket");
        listener.set_nonblocking(true).expect("it can be");
        let version = if tape.flag() { TpmVersion::V2_0 } else { TpmVersion::V1_2 };
        let backend = Swtpm::new(SwtpmConfig { version, place: Place::Attach { control } });
        Self { listener, _folder: folder, backend, version, control: None, data: None, under_way: None, asked: 0 }
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.byte() {
            begin @ 0..=79 if self.under_way.is_none() => self.begin(begin, tape),
            0..=3 => {
                let _obeys = self.backend.cancel();
            }
            4..=7 => {
                self.backend.kill();
                assert!(self.backend.is_gone());
                self.under_way = None;
            }
            8..=11 => self.control = None,
            12..=15 => self.data = None,
            // What is asked is answered well, as often as it is asked.
            16..=139 => {
                for _ in 0..16 {
                    let established = tape.flag();
                    self.answer_well(established);
                    self.poll();
                }
                return;
            }
            140..=159 => {
                let established = tape.flag();
                self.answer_well(established);
            }
            160..=199 => {
                let bytes = [&[0; 4][..], tape.short()].concat();
                let count = bytes.len() - usize::from(tape.below(5));
                say(&mut self.control, &bytes[..count]);
            }
            200..=239 => {
                let response = response(tape);
                say(&mut self.data, &response);
            }
            _ => say(&mut self.control, tape.short()),
        }
        self.poll();
    }

    fn begin(&mut self, which: u8, tape: &mut Tape<'_>) {
        let locality = Locality::new(tape.below(5)).expect("below 5");
        let (operation, begun) = match which % 8 {
            0 | 1 => {
                let mut command = tape.short().to_vec();
                if command.len() >= 10 && which & 8 == 0 {
                    let size = u32::try_from(command.len()).expect("small");
                    command[2..6].copy_from_slice(&size.to_be_bytes());
                }
                (Operation::Command, self.backend.execute(locality, &command))
            }
            2 => (Operation::Control, self.backend.reset_established(locality)),
            3 => (Operation::Control, self.backend.terminate()),
            _ => (Operation::Control, self.backend.initialize()),
        };
        match begun {
            Ok(()) => self.under_way = Some(operation),
            Err(BackendError::Refused(_)) => {}
            Err(BackendError::Gone(_)) => assert!(self.backend.is_gone()),
        }
        self.meet();
    }

    /// Accepts the driver's connection, if there is a new one.
    fn meet(&mut self) {
        if let Ok((control, _)) = self.listener.accept() {
            control.set_nonblocking(true).expect("it can be");
            self.control = Some(control);
            self.data = None;
        }
    }

    fn poll(&mut self) {
        let mut response = vec![];
        let outcome = self.backend.poll(&mut response);
        while self.backend.take_new_descriptor().is_some() {}
        let Some(outcome) = outcome else { return };
        let operation = self.under_way.take();
        match (&outcome, operation) {
            (Ok(Done::Control { .. }), Some(Operation::Control)) => {}
            (Ok(Done::Response), Some(Operation::Command)) => {
                assert!(Header::of_whole(&response).is_some() && response.len() <= BUFFER_SIZE);
            }
            (Err(BackendError::Refused(text)), Some(_)) => check_text(text),
            // It may go at any time.
            (Err(BackendError::Gone(text)), _) => {
                check_text(text);
                assert!(self.backend.is_gone());
            }
            other => panic!("{other:?}"),
        }
    }

    fn answer_well(&mut self, established: bool) {
        self.hear();
        if let Some(data) = &mut self.data {
            if data.read(&mut [0; 2 * BUFFER_SIZE]).is_ok_and(|count| count > 0) {
                let response = Header { tag: 0x8001, size: 10, code: 0 }.to_bytes();
                say(&mut self.data, &response);
            }
        }
        let family = if self.version == TpmVersion::V2_0 { "2.0" } else { "1.2" };
        let info = format!(r#"{{"TPMSpecification":{{"family":"{family}","level":0,"revision":159}}}}"#);
        let length = u32::try_from(info.len() + 1).expect("small").to_be_bytes();
        let ok = [0; 4];
        let size = 4096u32.to_be_bytes();
        let reply = match std::mem::take(&mut self.asked) {
            0 => return,
            1 => vec![0, 0, 0, 0, 0, 1, 0x7f, 0xff],
            4 => [&ok[..], &[established.into(), 0, 0, 0]].concat(),
            0x0f => [ok, [0, 0, 0, 1]].concat(),
            0x11 => [ok, size, size, size].concat(),
            0x12 => [&ok[..], &length, &length, info.as_bytes(), &[0]].concat(),
            _ => ok.to_vec(),
        };
        say(&mut self.control, &reply);
    }

    /// Takes the last request, and the data channel if it comes with it.
    fn hear(&mut self) {
        let Some(control) = &self.control else { return };
        let mut buffer = [0; 256];
        let mut space = nix::cmsg_space!(RawFd);
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let Ok(received) = recvmsg::<()>(control.as_raw_fd(), &mut parts, Some(&mut space), flags) else { return };
        let count = received.bytes;
        for message in received.cmsgs().expect("one fits") {
            if let ControlMessageOwned::ScmRights(rights) = message {
                for right in rights {
                    // SAFETY: the kernel has just opened it for us.
                    let data = UnixStream::from(unsafe { OwnedFd::from_raw_fd(right) });
                    data.set_nonblocking(true).expect("it can be");
                    self.data = Some(data);
                }
            }
        }
        if let Some(number) = buffer[..count].first_chunk() {
            self.asked = u32::from_be_bytes(*number);
        }
    }
}

fn check_text(text: &str) {
    assert!(!text.chars().any(char::is_control) && text.len() < 8192, "{text:?}");
}

fn say(socket: &mut Option<UnixStream>, bytes: &[u8]) {
    if let Some(stream) = socket {
        match stream.write_all(bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => *socket = None,
        }
    }
}

fn response(tape: &mut Tape<'_>) -> Vec<u8> {
    if tape.flag() {
        return tape.short().to_vec();
    }
    let size = tape.number32();
    let mut response = Header { tag: 0x8001, size, code: tape.u32() }.to_bytes().to_vec();
    response.resize(if tape.below(4) == 0 { tape.byte().into() } else { size.min(5000) as usize }, 7);
    response
}
