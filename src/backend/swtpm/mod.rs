//! The TPM that an swtpm process runs, attached to by its control socket, or started and owned.
//!
//! swtpm has two channels: on the control channel it is asked for everything but commands ([`control`]), on the data
//! channel it gets commands and gives responses. It reads both in one thread, and takes what has arrived for a whole
//! command; so one message is under way at a time, on either, and goes out in one write. How a TPM is brought up:
//!
//! ```text
//!   connect or spawn ─▶ GET_CAPABILITY ─▶ GET_INFO ─▶ GET_CONFIG ─▶ SET_DATAFD ─┐
//!                                                                               ▼
//!                             GET_TPMESTABLISHED ◀─ INIT ◀─ SET_BUFFERSIZE ◀─ STOP ◀─ each _TPM_Init
//! ```

mod channel;
pub mod control;
mod place;
mod specification;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zeroize::{Zeroize, Zeroizing};

use super::{Backend, BackendError, Done};
use crate::launch::Process;
use crate::tpm::{BUFFER_SIZE, HEADER_SIZE, Header, Locality, TpmVersion};
use channel::Channel;
use control::{Capabilities, Config, MAX_REPLY, Reply, Request, ResultCode};
pub use place::{Place, command};
use specification::Specification;

/// What this driver cannot do without.
const REQUIRED: Capabilities = Capabilities::INIT
    .union(Capabilities::SHUTDOWN)
    .union(Capabilities::GET_TPMESTABLISHED)
    .union(Capabilities::SET_LOCALITY)
    .union(Capabilities::RESET_TPMESTABLISHED)
    .union(Capabilities::STOP)
    .union(Capabilities::GET_CONFIG)
    .union(Capabilities::SET_DATAFD)
    .union(Capabilities::SET_BUFFERSIZE)
    .union(Capabilities::GET_INFO);

/// [`BUFFER_SIZE`] as swtpm is told it.
const WIRE_BUFFER_SIZE: u32 = 4096;
const _: () = assert!(WIRE_BUFFER_SIZE as usize == BUFFER_SIZE);

/// The command by which an swtpm that was started with `--locality allow-set-locality` lets a guest choose its locality
/// (`TPM_CC_SET_LOCALITY`, `TPM2_CC_SET_LOCALITY`).
const SET_LOCALITY_COMMAND: u32 = 0x2000_1000;

/// What is asked of an swtpm whenever its TPM is to start. STOP may come while the TPM is off, and only while it is off may
/// the buffer size be set. A file with volatile state, left by some other program's STORE_VOLATILE, must not be there for
/// the next time.
const INITIALIZE: [Request<'static>; 4] = [
    Request::Stop,
    Request::SetBufferSize(WIRE_BUFFER_SIZE),
    Request::Init { delete_volatile: true },
    Request::GetTpmEstablished,
];

/// A hash sequence; its data are filled in.
const HASH: [Request<'static>; 3] = [Request::HashStart, Request::HashData(&[]), Request::HashEnd];

/// What is asked of a new swtpm before that. INIT resumes from such a file before it deletes it: the first is for that,
/// and the one that follows brings up a fresh TPM.
const MEET: [Request<'static>; 6] = [
    Request::GetCapability,
    Request::GetInfo,
    Request::GetConfig,
    Request::SetDataFd,
    Request::Stop,
    Request::Init { delete_volatile: true },
];

/// Which swtpm.
#[derive(Debug)]
pub struct SwtpmConfig {
    /// Version of its TPM.
    pub version: TpmVersion,
    /// Where it is.
    pub place: Place,
}

/// A TPM that an swtpm runs. What it is asked and answers may be secret; so it cannot be printed.
pub struct Swtpm {
    config: SwtpmConfig,
    peer: Option<Peer>,
    /// A process that ends: no other may be started on its state.
    dying: Option<Process>,
    doing: Doing,
    /// What is asked in the operation under way, the first already.
    requests: VecDeque<Request<'static>>,
    /// What comes when all of it has been answered.
    then: Then,
    /// Empty, unless a command is to be sent yet, or what is hashed.
    command: Zeroizing<Vec<u8>>,
    established: bool,
    /// What there is to say about this swtpm has been logged.
    known: bool,
    /// What it has said of its TPM.
    about: Option<String>,
    /// Processes that were started.
    launches: u64,
    new_descriptors: Vec<Descriptor>,
}

/// A connected swtpm. The data channel is closed first, so that swtpm has always given it up when it takes its next client.
struct Peer {
    data: Channel,
    /// swtpm's end of the data channel, until it gets it.
    their_data: Option<OwnedFd>,
    control: Channel,
    /// Its process, if it is ours.
    process: Option<Process>,
    /// It has the data channel.
    is_ready: bool,
    /// The locality of its next command, as far as known.
    locality: Option<Locality>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// [`Backend::initialize`] waits for a process to end.
    Burying,
    /// The first of the requests is to be answered.
    Asking,
    /// The command is to be answered.
    Executing,
    /// [`Backend::terminate`] waits for swtpm's process to end.
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Report,
    Execute,
    End,
}

#[derive(Clone, Copy, Debug)]
enum Descriptor {
    Control,
    Data,
    Dying,
}

impl Swtpm {
    /// A TPM that is off; its swtpm is connected to, or started, by the first [`Backend::initialize`].
    #[must_use]
    pub fn new(config: SwtpmConfig) -> Self {
        Self {
            config,
            peer: None,
            dying: None,
            doing: Doing::Nothing,
            requests: VecDeque::new(),
            then: Then::Report,
            command: Vec::with_capacity(BUFFER_SIZE).into(),
            established: false,
            known: false,
            about: None,
            launches: 0,
            new_descriptors: Vec::new(),
        }
    }

    /// Connects to the swtpm, or starts it.
    fn open(&mut self) -> Result<(), BackendError> {
        let (data, their_data) = Channel::pair("data")
            .map_err(|errno| BackendError::Gone(format!("cannot make swtpm's data channel: {errno}")))?;
        let (control, process) = self.config.place.open()?;
        if process.is_some() {
            self.launches = self.launches.saturating_add(1);
        }
        let their_data = Some(their_data);
        self.peer = Some(Peer { data, their_data, control, process, is_ready: false, locality: None });
        self.new_descriptors = vec![Descriptor::Control, Descriptor::Data];
        Ok(())
    }

    /// Begins an operation.
    fn begin(&mut self, requests: impl IntoIterator<Item = Request<'static>>, then: Then) -> Result<(), BackendError> {
        self.requests = requests.into_iter().collect();
        self.then = then;
        match self.go_on() {
            Ok(_) => Ok(()),
            Err(error) => Err(self.give_up(error)),
        }
    }

    /// Asks what is to be asked next, or does what comes after.
    fn go_on(&mut self) -> Result<Option<Done>, BackendError> {
        let Some(peer) = &mut self.peer else {
            return Err(BackendError::Gone("no swtpm is connected".to_owned()));
        };
        if let Some(request) = self.requests.front() {
            match request {
                Request::HashData(_) => peer.ask(Request::HashData(&self.command))?,
                request => peer.ask(*request)?,
            }
            self.doing = Doing::Asking;
            return Ok(None);
        }
        match self.then {
            Then::Execute => {
                let sent = peer.data.send(&self.command, None);
                if Header::parse(&self.command).is_some_and(|header| header.code == SET_LOCALITY_COMMAND) {
                    peer.locality = None;
                }
                self.command.zeroize();
                sent.map_err(BackendError::Gone)?;
                self.doing = Doing::Executing;
                Ok(None)
            }
            Then::End => {
                let process = self.peer.take().and_then(|peer| peer.process);
                self.dying = process;
                if self.dying.is_none() {
                    return Ok(Some(self.report()));
                }
                self.new_descriptors = vec![Descriptor::Dying];
                self.doing = Doing::Ending;
                Ok(None)
            }
            Then::Report => Ok(Some(self.report())),
        }
    }

    fn report(&mut self) -> Done {
        self.doing = Doing::Nothing;
        Done::Control { established: self.established }
    }

    /// Takes what has come from swtpm, and goes on with it.
    fn converse(&mut self, response: &mut Vec<u8>) -> Result<Option<Done>, BackendError> {
        let Some(peer) = &mut self.peer else { return Ok(None) };
        let mut channels = [(&mut peer.data, BUFFER_SIZE), (&mut peer.control, MAX_REPLY)];
        // The one that is asked comes last: so its answer is there if the other is found to be closed after it.
        if self.doing == Doing::Executing {
            channels.reverse();
        }
        for (channel, limit) in channels {
            channel.fill(limit).map_err(BackendError::Gone)?;
        }
        for (channel, is_asked) in
            [(&peer.control, self.doing == Doing::Asking), (&peer.data, self.doing == Doing::Executing)]
        {
            if !channel.inbox.is_empty() && !is_asked {
                let text = format!("swtpm spoke on its {} channel, and nothing was asked there", channel.name);
                return Err(BackendError::Gone(text));
            }
        }
        match (self.doing, self.requests.front().copied()) {
            (Doing::Asking, Some(request)) => {
                let inbox = std::mem::take(&mut peer.control.inbox);
                match request.parse_reply(&inbox) {
                    Err(error) => return Err(BackendError::Gone(format!("swtpm broke its protocol: {error}"))),
                    Ok(Some(reply)) => {
                        self.requests.pop_front();
                        return match self.take_reply(request, reply, response)? {
                            None => self.go_on(),
                            done => Ok(done),
                        };
                    }
                    Ok(None) => peer.control.inbox = inbox,
                }
            }
            (Doing::Executing, _) if is_whole_response(&peer.data.inbox)? => {
                response.clear();
                response.extend_from_slice(&peer.data.inbox);
                peer.data.inbox.zeroize();
                self.doing = Doing::Nothing;
                return Ok(Some(Done::Response));
            }
            _ => {}
        }
        if let Some(channel) = [&peer.control, &peer.data].into_iter().find(|channel| channel.is_closed) {
            // Usually a process of ours has ended already, and can say how.
            let end = peer.process.as_mut().and_then(Process::end);
            let end = end.map_or_else(String::new, |end| format!(" and ended: {end}"));
            return Err(BackendError::Gone(format!("swtpm has closed its {} channel{end}", channel.name)));
        }
        Ok(None)
    }

    /// Takes note of a reply; an operation may end with it.
    fn take_reply(
        &mut self,
        request: Request<'_>,
        reply: Reply<'_>,
        response: &mut Vec<u8>,
    ) -> Result<Option<Done>, BackendError> {
        match (request, reply) {
            (Request::SetLocality(_), Reply::Refused(ResultCode::BAD_LOCALITY)) => {
                // swtpm was started to reject it; then its TPM would have answered so.
                self.command.zeroize();
                response.clear();
                response.extend_from_slice(&locality_error(self.config.version));
                self.doing = Doing::Nothing;
                return Ok(Some(Done::Response));
            }
            (_, Reply::Refused(code)) => return Err(refused(request, code)),
            (_, Reply::Capabilities(capabilities)) => {
                let missing = REQUIRED.difference(capabilities);
                if !missing.is_empty() {
                    return Err(BackendError::Refused(format!(
                        "this swtpm's control channel cannot do {}; swtpm 0.7.1 or newer is needed",
                        missing.names()
                    )));
                }
                log::debug!("swtpm's control channel can do {}", capabilities.names());
            }
            (_, Reply::Info(text)) => {
                let specification = Specification::of_version(text, self.config.version)?;
                // Again and again it would only fill the log.
                let level = if self.known { log::Level::Debug } else { log::Level::Info };
                log::log!(level, "swtpm runs a {specification}");
                self.about = Some(specification.to_string());
            }
            (_, Reply::Config(config)) => {
                log::debug!("swtpm's state files are encrypted: {}", config.contains(Config::FILE_KEY));
                self.known = true;
            }
            (_, Reply::BufferSize { size, .. }) if size != WIRE_BUFFER_SIZE => {
                return Err(BackendError::Refused(format!(
                    "swtpm's TPM takes commands of {size} bytes, and {BUFFER_SIZE} are needed"
                )));
            }
            (_, Reply::TpmEstablished(established)) => self.established = established,
            (Request::SetLocality(locality), _) => {
                if let Some(peer) = &mut self.peer {
                    peer.locality = Some(locality);
                }
            }
            (Request::HashEnd, _) => self.command.zeroize(),
            (Request::SetDataFd, _) => {
                if let Some(peer) = &mut self.peer {
                    peer.is_ready = true;
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// Ends an operation that has failed, and the connection if it is of no use any more.
    fn give_up(&mut self, error: BackendError) -> BackendError {
        let is_usable = self.peer.as_ref().is_some_and(|peer| peer.is_ready);
        if is_usable && matches!(error, BackendError::Refused(_)) {
            self.doing = Doing::Nothing;
            self.command.zeroize();
        } else {
            self.kill();
        }
        error
    }

    /// Whether a process that ended is gone.
    fn is_buried(&mut self) -> bool {
        let Some(dying) = &mut self.dying else { return true };
        let Some(end) = dying.end() else { return false };
        log::debug!("swtpm has ended: {end}");
        self.dying = None;
        true
    }
}

impl Peer {
    /// Sends a request.
    fn ask(&mut self, request: Request<'_>) -> Result<(), BackendError> {
        let bytes = request.encode().map_err(|error| BackendError::Refused(error.to_string()))?;
        if let Request::SetLocality(_) = request {
            self.locality = None;
        }
        // It goes out of our hands with this, so that swtpm's is the only one.
        let descriptor = (request == Request::SetDataFd).then(|| self.their_data.take()).flatten();
        self.control.send(&bytes, descriptor.as_ref().map(AsFd::as_fd)).map_err(BackendError::Gone)
    }
}

impl Backend for Swtpm {
    fn initialize(&mut self) -> Result<(), BackendError> {
        if self.peer.is_some() {
            return self.begin(INITIALIZE, Then::Report);
        }
        if !self.is_buried() {
            self.doing = Doing::Burying;
            return Ok(());
        }
        self.open()?;
        self.begin(MEET.into_iter().chain(INITIALIZE), Then::Report)
    }

    fn hash(&mut self, data: &[u8]) -> Result<(), BackendError> {
        self.command.zeroize();
        self.command.extend_from_slice(data);
        self.begin(HASH.into_iter().chain([Request::GetTpmEstablished]), Then::Report)
    }

    fn execute(&mut self, locality: Locality, command: &[u8]) -> Result<(), BackendError> {
        // swtpm takes what arrives for a command without looking at its size, waits for more if it is no header, and knows
        // a header in front of a command that sets its locality; that one cannot be passed off as a whole command.
        if Header::of_whole(command).is_none() || command.len() > BUFFER_SIZE {
            return Err(BackendError::Refused("a command whose size field is not its size".to_owned()));
        }
        self.command.zeroize();
        self.command.extend_from_slice(command);
        let is_set = self.peer.as_ref().is_some_and(|peer| peer.locality == Some(locality));
        self.begin((!is_set).then_some(Request::SetLocality(locality)), Then::Execute)
    }

    fn reset_established(&mut self, locality: Locality) -> Result<(), BackendError> {
        self.begin([Request::ResetTpmEstablished(locality), Request::GetTpmEstablished], Then::Report)
    }

    fn terminate(&mut self) -> Result<(), BackendError> {
        match &self.peer {
            Some(Peer { process: Some(_), .. }) => self.begin([Request::Shutdown], Then::End),
            // It is somebody else's, and stays for whoever comes next.
            _ => self.begin([Request::Stop], Then::Report),
        }
    }

    /// There is nothing to do: swtpm, 0.7.1 as well as 0.10, has one thread, which comes to read a request to cancel when
    /// the command has ended. At best it would do nothing then.
    fn cancel(&mut self) -> bool {
        log::debug!("swtpm cannot cancel a command; it is waited for");
        false
    }

    fn poll(&mut self, response: &mut Vec<u8>) -> Option<Result<Done, BackendError>> {
        if !self.is_buried() {
            return None;
        }
        match self.doing {
            Doing::Burying => {
                self.doing = Doing::Nothing;
                self.initialize().err().map(Err)
            }
            Doing::Ending => Some(Ok(self.report())),
            _ => self.converse(response).map_err(|error| self.give_up(error)).transpose(),
        }
    }

    fn kill(&mut self) {
        self.doing = Doing::Nothing;
        self.command.zeroize();
        if let Some(dying) = &mut self.dying {
            dying.kill();
        }
        let Some(peer) = self.peer.take() else { return };
        self.new_descriptors.clear();
        if let Some(mut process) = peer.process {
            process.kill();
            if process.end().is_none() {
                self.dying = Some(process);
                self.new_descriptors.push(Descriptor::Dying);
            }
        } else if !peer.control.has_spoken && !peer.control.is_closed {
            log::warn!("swtpm has never answered: is another program attached to it, or is it stopped?");
        }
    }

    fn is_gone(&self) -> bool {
        self.peer.is_none() && self.dying.is_none()
    }

    fn launches(&self) -> u64 {
        self.launches
    }

    fn about(&self) -> Option<String> {
        self.about.clone()
    }

    fn take_new_descriptor(&mut self) -> Option<BorrowedFd<'_>> {
        let descriptor = self.new_descriptors.pop()?;
        match descriptor {
            Descriptor::Control => self.peer.as_ref().map(|peer| peer.control.as_fd()),
            Descriptor::Data => self.peer.as_ref().map(|peer| peer.data.as_fd()),
            Descriptor::Dying => self.dying.as_ref().map(Process::descriptor),
        }
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a whole response has arrived, and nothing else.
fn is_whole_response(inbox: &[u8]) -> Result<bool, BackendError> {
    let Some(header) = Header::parse(inbox) else { return Ok(false) };
    let size = usize::try_from(header.size).unwrap_or(usize::MAX);
    if !(HEADER_SIZE..=BUFFER_SIZE).contains(&size) {
        return Err(BackendError::Gone(format!("swtpm's response says that it has {size} bytes")));
    }
    if inbox.len() > size {
        let surplus = inbox.len().saturating_sub(size);
        return Err(BackendError::Gone(format!("swtpm's response has {size} bytes, and {surplus} more follow")));
    }
    Ok(inbox.len() == size)
}

/// The response of a TPM that refuses a locality: `TPM_RC_LOCALITY` (2.0), `TPM_BAD_LOCALITY` (1.2).
fn locality_error(version: TpmVersion) -> [u8; HEADER_SIZE] {
    let (tag, code) = match version {
        TpmVersion::V2_0 => (0x8001, 0x907),
        TpmVersion::V1_2 => (0x00c4, 0x3d),
    };
    Header { tag, size: 10, code }.to_bytes()
}

fn refused(request: Request<'_>, code: ResultCode) -> BackendError {
    let advice = match request {
        Request::Init { .. } => "; its state may be damaged, encrypted by another key, or in use",
        Request::SetDataFd => "; it must not be started with --server, since it can have one data channel only",
        _ => "",
    };
    BackendError::Refused(format!("swtpm refused {} with {code}{advice}", request.name()))
}
