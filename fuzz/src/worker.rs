//! The driver of a worker process, with a process that says anything.
//!
//! The worker is a shell that becomes `cat`, and passes on, a frame at a time, what comes through a named pipe.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use log::LevelFilter;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::Mode;
use tempfile::TempDir;
use vfio_user_tpm::backend::worker::{Task, WorkerBackend, worker_program};
use vfio_user_tpm::backend::{Backend, BackendError, Done};
use vfio_user_tpm::tpm::{BUFFER_SIZE, Locality};
use vfio_user_tpm::worker::frame::{MAX_FRAME, Request};

use super::open_descriptors;
use super::tape::Tape;

/// The whole life of a worker; each takes some milliseconds.
const LIVES: u8 = 3;
/// No process takes this long, in milliseconds, to pass a frame on, or to die.
const PATIENCE: u16 = 30_000;

pub fn run(data: &[u8]) {
    super::log_lines::check();
    open_descriptors::unchanged_by(|| {
        let mut tape = Tape::new(data);
        let mut bench = Bench::new();
        while !tape.is_over() {
            bench.step(&mut tape);
        }
        bench.kill();
    });
}

struct Fuzzed;

impl Task for Fuzzed {
    fn start(&self) -> (Request<'_>, Vec<BorrowedFd<'_>>) {
        // Nobody reads it.
        (Request::Initialize, vec![])
    }
}

struct Bench {
    folder: TempDir,
    backend: WorkerBackend<Fuzzed>,
    pipe: Option<fs::File>,
    /// Copies of what the backend waits for.
    descriptor: Option<OwnedFd>,
    lives: u8,
    runs: bool,
    /// Something has come from this worker, so that it has its pipe open.
    has_spoken: bool,
    sequence: u32,
    under_way: bool,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (program, pipe) = (folder.path().join("worker"), folder.path().join("pipe"));
        fs::write(&program, format!("#!/bin/sh\nexec cat '{}' >&0\n", pipe.display())).expect("a script");
        fs::set_permissions(&program, Permissions::from_mode(0o700)).expect("it can be run");
        let config = worker_program(program, LevelFilter::Off);
        let mut bench = Self {
            folder,
            backend: WorkerBackend::new(Fuzzed, config),
            pipe: None,
            descriptor: None,
            lives: 0,
            runs: false,
            has_spoken: false,
            sequence: 0,
            under_way: false,
        };
        bench.open_pipe();
        bench
    }

    /// An empty one, whatever was left in the last.
    fn open_pipe(&mut self) {
        let path = self.folder.path().join("pipe");
        let _none_yet = fs::remove_file(&path);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a named pipe");
        self.pipe = Some(OpenOptions::new().read(true).write(true).open(path).expect("it opens"));
    }

    fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(8) {
            0..=2 if !self.under_way => self.begin(tape),
            0 => {
                let _obeys = self.backend.cancel();
            }
            1 => self.kill(),
            2 if self.runs && self.has_spoken => {
                self.pipe = None;
                self.wait();
                match self.poll() {
                    Some(Err(BackendError::Gone(_))) => self.lost(),
                    // It was asked to begin again, and does so with another worker.
                    None if self.under_way => self.kill(),
                    outcome => panic!("{outcome:?}"),
                }
            }
            _ if self.runs => {
                let frame = self.frame(tape);
                self.say(&frame);
            }
            _ => {
                assert!(self.poll().is_none(), "there is nothing to be said");
            }
        }
    }

    fn begin(&mut self, tape: &mut Tape<'_>) {
        let locality = Locality::new(tape.below(5)).expect("below 5");
        let begun = match tape.below(6) {
            0 => {
                let mut command = tape.short().to_vec();
                command.push(0);
                self.backend.execute(locality, &command)
            }
            1 => self.backend.reset_established(locality),
            2 => self.backend.terminate(),
            _ => {
                if !self.runs {
                    if self.lives == LIVES {
                        return;
                    }
                    self.lives += 1;
                    self.sequence = 1;
                    self.has_spoken = false;
                    self.runs = true;
                }
                self.backend.initialize()
            }
        };
        self.look();
        assert_eq!(begun.is_ok(), self.runs, "{begun:?}");
        self.under_way = begun.is_ok();
        self.sequence = self.sequence.wrapping_add(u32::from(begun.is_ok()));
    }

    fn frame(&self, tape: &mut Tape<'_>) -> Vec<u8> {
        if tape.below(4) == 0 {
            let frame = tape.short().to_vec();
            return if frame.is_empty() { vec![0] } else { frame };
        }
        let sequence = if tape.below(16) == 0 { tape.u32() } else { self.sequence };
        let detail = if tape.below(4) == 0 { tape.byte() } else { tape.byte() & 1 };
        let kind = tape.choose(&[0x81, 0x82, 0x83, 0x81, 0x82, 0x03, 0xff]);
        let mut frame =
            [&[kind, if kind == 0x81 { detail } else { detail & 2 }, 0, 0][..], &sequence.to_ne_bytes()].concat();
        match tape.below(8) {
            0 => frame.resize(usize::from(tape.u16()) % (MAX_FRAME + 8) + 1, tape.byte()),
            1 => {}
            _ if kind == 0x81 => {}
            _ => frame.extend_from_slice(tape.short()),
        }
        frame
    }

    fn say(&mut self, frame: &[u8]) {
        let pipe = self.pipe.as_mut().expect("it is open as long as the worker runs");
        pipe.write_all(frame).expect("there is room");
        self.wait();
        self.has_spoken = true;
        let outcome = self.poll();
        let expected = expect(frame, self.sequence);
        match (&outcome, expected) {
            (Some(Ok(Done::Control { established })), Expected::Control(expected)) => {
                assert_eq!(*established, expected);
            }
            (Some(Ok(Done::Response)), Expected::Response) => {}
            (Some(Err(BackendError::Refused(text))), Expected::Refused) => {
                assert!(!text.chars().any(char::is_control) && text.len() <= 4000, "{text:?}");
            }
            (Some(Err(BackendError::Gone(_))), Expected::Gone) => self.lost(),
            other => panic!("{frame:x?}: {other:?}"),
        }
        self.under_way = false;
    }

    fn poll(&mut self) -> Option<Result<Done, BackendError>> {
        let mut response = vec![];
        let outcome = self.backend.poll(&mut response);
        self.look();
        assert!(response.len() <= BUFFER_SIZE);
        outcome
    }

    fn kill(&mut self) {
        self.backend.kill();
        self.lost();
    }

    /// The backend has killed the process; waits until it is gone.
    fn lost(&mut self) {
        self.look();
        self.runs = false;
        self.under_way = false;
        while !self.backend.is_gone() {
            self.wait();
            assert!(self.poll().is_none());
        }
        self.descriptor = None;
        self.open_pipe();
    }

    fn look(&mut self) {
        while let Some(descriptor) = self.backend.take_new_descriptor() {
            self.descriptor = Some(descriptor.try_clone_to_owned().expect("a copy"));
        }
    }

    /// Waits as an event loop would.
    fn wait(&mut self) {
        let descriptor = self.descriptor.as_ref().expect("there is something to wait for");
        let ready = loop {
            match poll(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], PATIENCE) {
                // A fuzzer has timers.
                Err(Errno::EINTR) => {}
                result => break result.expect("it can be waited for"),
            }
        };
        assert_eq!(ready, 1, "nothing has come");
    }
}

#[derive(Debug)]
enum Expected {
    Control(bool),
    Response,
    Refused,
    Gone,
}

/// What a frame is, read once more.
fn expect(frame: &[u8], asked: u32) -> Expected {
    let (Some(header), payload) = (frame.first_chunk::<8>(), frame.get(8..).unwrap_or_default()) else {
        return Expected::Gone;
    };
    let [kind, detail, 0, 0, sequence @ ..] = *header else { return Expected::Gone };
    if u32::from_ne_bytes(sequence) != asked || payload.len() > BUFFER_SIZE {
        return Expected::Gone;
    }
    match (kind, detail, payload) {
        (0x81, 0 | 1, []) => Expected::Control(detail == 1),
        (0x82, 0, [_, ..]) => Expected::Response,
        (0x83, 0, text) if std::str::from_utf8(text).is_ok() => Expected::Refused,
        _ => Expected::Gone,
    }
}
