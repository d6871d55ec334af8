//! The spawner's channel in both directions: any server that asks, any spawner that answers. The processes are played, too:
//! by a spawner behind the spawner.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollTimeout;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vfio_user_tpm::launch::{Launcher, Process, Spawner, Spawning};
use vfio_user_tpm::seqpacket::{pair, receive, receive_with_descriptors, send};

use super::open_descriptors;
use super::tape::Tape;

const START: &[u8] = &[1];
const REMOVE: u8 = 2;
/// Bytes in the longest request, and in the longest answer.
const MAX_REQUEST: usize = 17;
const MAX_ANSWER: usize = 512;
/// Most processes at a time, and most that one input asks for.
const MAX_PROCESSES: usize = 4;
const REQUESTS: usize = 20;
/// More events than can have come at a time: of each process an end and a wish that it end, and one request.
const TURNS: usize = 2 * MAX_PROCESSES + 1;

pub fn run(data: &[u8]) {
    super::log_lines::check();
    open_descriptors::unchanged_by(|| {
        let mut tape = Tape::new(data);
        if tape.below(4) == 0 { answers(&mut tape) } else { requests(&mut tape) }
    });
}

/// A spawner says anything to a server.
fn answers(tape: &mut Tape<'_>) {
    let (spawner, theirs) = channel();
    let spawner = Spawner::over(spawner);
    if tape.flag() {
        let answer = tape.rest().to_vec();
        say(&theirs, &answer);
        match spawner.remove_socket(1, 2) {
            Ok(()) => assert_eq!(answer, [0]),
            Err(error) => {
                assert_ne!(answer, [0]);
                is_legible(&error.to_string());
            }
        }
        return;
    }
    let (stdin, _) = channel();
    let mut process = spawner.launch(stdin).expect("there is room for one request");
    let mut buffer = [0; MAX_REQUEST];
    let (request, descriptors) = receive_with_descriptors(theirs.as_fd(), &mut buffer).expect("it was sent");
    assert_eq!((request, descriptors.len()), (START, 2));
    assert_eq!(process.end(), None);
    let control = &descriptors[1];
    let first = tape.short().to_vec();
    say(control, &first);
    say(control, tape.rest());
    let end = process.end().expect("it has come").to_owned();
    is_legible(&end);
    assert!(first.len() > MAX_ANSWER || first.is_empty() || end == told(&first), "{end}");
    // It ends once.
    assert_eq!(process.end(), Some(&*end));
}

/// A server asks a spawner for anything.
fn requests(tape: &mut Tape<'_>) {
    let (server, theirs) = channel();
    let (launcher, kernel) = channel();
    let launcher = Spawner::over(launcher);
    let remover = |device: u64, inode: u64| if device == 0 { Ok(()) } else { Err(io::Error::other(inode.to_string())) };
    let has = tape.below(8);
    let (has_launcher, has_remover) = (has != 0, has != 1);
    let spawning = Spawning::new(
        theirs.as_fd(),
        has_launcher.then_some(&launcher as &dyn Launcher),
        has_remover.then_some(&remover as &dyn Fn(u64, u64) -> io::Result<()>),
    );
    let mut bench = Bench {
        honest: Spawner::over(server.try_clone().expect("a copy")),
        server,
        spawning: Some(spawning),
        has_launcher,
        has_remover,
        kernel: Some(kernel),
        asked: vec![],
        running: vec![],
    };
    while !tape.is_over() && bench.spawning.is_some() {
        bench.step(tape);
    }
    bench.end();
}

struct Bench<'a> {
    /// The server's end, and one that keeps to the protocol on it.
    server: OwnedFd,
    honest: Spawner,
    spawning: Option<Spawning<'a>>,
    has_launcher: bool,
    has_remover: bool,
    /// Where the spawner's processes come from, unless none can be started.
    kernel: Option<OwnedFd>,
    asked: Vec<Asked>,
    running: Vec<Running>,
}

/// What a server has of a process that it asked for.
enum Asked {
    Honest {
        process: Option<Process>,
        expected: Option<String>,
    },
    /// The other end of what it gave as a control socket, if that was a socket.
    Raw {
        control: Option<OwnedFd>,
    },
}

/// A process that the spawner has started, as its kernel sees it.
struct Running {
    asked: usize,
    control: OwnedFd,
    _stdin: OwnedFd,
}

impl Bench<'_> {
    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(8) {
            0 | 1 => self.ask(),
            2 => self.ask_anything(tape),
            3 => {
                let message: Vec<u8> = [REMOVE].into_iter().chain(tape.bytes(16).iter().copied()).collect();
                self.send(&message, vec![], None);
            }
            4 => self.end_one(tape),
            5 => self.let_go(tape),
            6 => drop(self.kernel.take_if(|_| tape.below(16) == 0)),
            _ => self.look(),
        }
    }

    /// A server asks as it should.
    fn ask(&mut self) {
        if self.asked.len() == REQUESTS {
            return;
        }
        let (stdin, _) = channel();
        let process = self.honest.launch(stdin).expect("the spawner reads");
        let number = self.asked.len();
        self.asked.push(Asked::Honest { process: Some(process), expected: None });
        self.take(START, 2, Some(number));
    }

    fn ask_anything(&mut self, tape: &mut Tape<'_>) {
        if self.asked.len() == REQUESTS {
            return;
        }
        let message = match tape.below(4) {
            0 => tape.short().to_vec(),
            1 => tape.bytes(MAX_REQUEST).to_vec(),
            _ => START.to_vec(),
        };
        let count = if tape.below(4) == 0 { tape.below(40) } else { 2 };
        let (mut descriptors, mut others): (Vec<_>, Vec<_>) = (0..count).map(|_| descriptor(tape)).unzip();
        let control = if others.len() > 1 { others.swap_remove(1) } else { None };
        descriptors.truncate(count.into());
        let number = (message == START && count == 2).then_some(self.asked.len());
        if number.is_some() {
            self.asked.push(Asked::Raw { control });
        }
        self.send(&message, descriptors, number);
    }

    fn send(&mut self, message: &[u8], descriptors: Vec<OwnedFd>, number: Option<usize>) {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        send(self.server.as_fd(), message, &borrowed).expect("the spawner reads");
        let count = borrowed.len();
        drop(descriptors);
        self.take(message, count, number);
    }

    /// The spawner takes the message, with which this many descriptors came, and does what is to be done.
    fn take(&mut self, message: &[u8], descriptors: usize, number: Option<usize>) {
        let expected = match (message, descriptors) {
            ([], 0) => Some(true),
            (START, 2) if self.has_launcher => None,
            ([REMOVE, ..], 0) if message.len() == MAX_REQUEST && self.has_remover => None,
            _ => Some(false),
        };
        let outcome = self.turn();
        assert_eq!(outcome, expected, "{message:x?} with {descriptors} descriptors");
        if let (None, [REMOVE, numbers @ ..]) = (outcome, message) {
            let mut answer = [0; MAX_ANSWER];
            let answer = receive(self.server.as_fd(), &mut answer).expect("it is answered");
            let inode = u64::from_ne_bytes(numbers[8..].try_into().expect("16 bytes"));
            let refusal = inode.to_string();
            assert_eq!(answer, if numbers[..8] == [0; 8] { &[0][..] } else { refusal.as_bytes() });
        }
        assert!(matches!(receive(self.server.as_fd(), &mut [0; MAX_ANSWER]), Err(Errno::EAGAIN) | Ok([])));
        if let (None, Some(number)) = (outcome, number) {
            self.started(number);
        }
    }

    /// Has the spawner do all that is to be done: `None` if it goes on, else whether it has ended as it should.
    fn turn(&mut self) -> Option<bool> {
        let spawning = self.spawning.as_mut()?;
        for _ in 0..TURNS {
            match spawning.turn(PollTimeout::ZERO) {
                Ok(true) => {}
                ended => {
                    self.spawning = None;
                    ended.as_ref().err().map(ToString::to_string).iter().for_each(|text| is_legible(text));
                    return Some(ended.is_ok());
                }
            }
        }
        None
    }

    /// A process was asked for: there is one, or it is told why not.
    fn started(&mut self, number: usize) {
        let mut buffer = [0; MAX_REQUEST];
        let kernel = self.kernel.as_ref().map(|kernel| receive_with_descriptors(kernel.as_fd(), &mut buffer));
        let reason = match kernel {
            None | Some(Err(Errno::EAGAIN)) if self.running.len() == MAX_PROCESSES => "too many",
            None => "is gone",
            Some(asked) => {
                let (request, descriptors) = asked.expect("the spawner asks as it should");
                assert_eq!(request, START);
                let [stdin, control] = descriptors.try_into().expect("two descriptors");
                self.running.push(Running { asked: number, control, _stdin: stdin });
                return assert!(self.running.len() <= MAX_PROCESSES);
            }
        };
        match &mut self.asked[number] {
            Asked::Honest { process: Some(process), .. } => {
                let end = process.end().expect("it is told");
                assert!(end.starts_with("cannot start ") && end.contains(reason), "{end}");
            }
            Asked::Honest { .. } => {}
            Asked::Raw { control } => is_told_once(control.as_ref()),
        }
    }

    /// A process ends, and says how or does not.
    fn end_one(&mut self, tape: &mut Tape<'_>) {
        if self.running.is_empty() {
            return;
        }
        let index = usize::from(tape.byte()) % self.running.len();
        let Running { asked, control, .. } = self.running.swap_remove(index);
        let text = tape.short();
        say(&control, text);
        drop(control);
        assert_eq!(self.turn(), None);
        match &mut self.asked[asked] {
            Asked::Honest { process: Some(process), expected } => {
                let end = process.end().expect("it is told").to_owned();
                let text = if text.is_empty() { "unknown: the spawner is gone".to_owned() } else { told(text) };
                let cut = text.as_bytes();
                assert_eq!(end, told(cut.get(..MAX_ANSWER).unwrap_or(cut)));
                *expected = Some(end);
            }
            Asked::Honest { .. } => {}
            Asked::Raw { control } => is_told_once(control.as_ref()),
        }
    }

    /// A server does not want a process any more.
    fn let_go(&mut self, tape: &mut Tape<'_>) {
        if self.asked.is_empty() {
            return;
        }
        let index = usize::from(tape.byte()) % self.asked.len();
        match &mut self.asked[index] {
            Asked::Honest { process: Some(process), .. } if tape.flag() => process.kill(),
            Asked::Honest { process, .. } => *process = None,
            Asked::Raw { control } => *control = None,
        }
        let is_honest = matches!(self.asked[index], Asked::Honest { .. });
        assert_eq!(self.turn(), None);
        if let Some(running) = self.running.iter().find(|running| running.asked == index && is_honest) {
            assert_eq!(receive(running.control.as_fd(), &mut [0; 1]), Ok(&[][..]), "it is killed");
        }
    }

    /// Nothing happens by itself, and what was told stays so.
    fn look(&mut self) {
        assert_eq!(self.turn(), None);
        for asked in &mut self.asked {
            if let Asked::Honest { process: Some(process), expected: Some(expected) } = asked {
                assert_eq!(process.end(), Some(expected.as_str()));
            }
        }
    }

    /// All processes end with the spawner.
    fn end(mut self) {
        self.spawning = None;
        for running in &self.running {
            assert_eq!(receive(running.control.as_fd(), &mut [0; 1]), Ok(&[][..]), "it is killed");
            if let Asked::Honest { process: Some(process), .. } = &mut self.asked[running.asked] {
                is_legible(process.end().expect("the spawner is gone"));
            }
        }
    }
}

/// Ours and theirs; neither blocks.
fn channel() -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = pair().expect("a pair");
    for socket in [&ours, &theirs] {
        fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("it can be");
    }
    (ours, theirs)
}

/// A descriptor of any kind; of a socket, the other end as well.
fn descriptor(tape: &mut Tape<'_>) -> (OwnedFd, Option<OwnedFd>) {
    let eventfd = |value| EventFd::from_value_and_flags(value, EfdFlags::EFD_CLOEXEC).expect("an eventfd").into();
    match tape.below(8) {
        0 => (eventfd(0), None),
        1 => (eventfd(1), None),
        2 => (File::open("/dev/null").expect("it is there").into(), None),
        3 => (nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe").0, None),
        4 => (channel().0, None),
        _ => {
            let (theirs, ours) = channel();
            (theirs, Some(ours))
        }
    }
}

/// One message; the other side may be gone, and an empty one is the end.
fn say(socket: &OwnedFd, text: &[u8]) {
    let _gone = send(socket.as_fd(), text, &[]);
}

/// How the end of a process is told that was said so.
fn told(text: &[u8]) -> String {
    String::from_utf8_lossy(text).escape_debug().collect()
}

fn is_legible(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(char::is_control), "{text:?}");
}

/// On a control socket comes one word, and then the end.
fn is_told_once(control: Option<&OwnedFd>) {
    let Some(control) = control else { return };
    let mut buffer = [0; MAX_ANSWER];
    let messages = std::iter::from_fn(|| {
        let message = receive(control.as_fd(), &mut buffer).expect("the other end is closed");
        Some(message.len()).filter(|length| *length > 0)
    });
    assert_eq!(messages.count(), 1);
}
