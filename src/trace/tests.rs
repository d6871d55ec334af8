//! Traces to files and to a FIFO that nobody reads for a while.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

const LIMIT: u64 = 64 << 20;

/// `TPM2_HierarchyChangeAuth` of the platform, with a new value.
const CHANGE_AUTH: &[u8] = b"\x80\x02\0\0\0\x23\0\0\x01\x29\x40\0\0\x0c\0\0\0\x09\x40\0\0\x09\0\0\0\0\0\0\x06secret";
const GET_RANDOM: &[u8] = b"\x80\x01\0\0\0\x0c\0\0\x01\x7b\0\x06";
const RANDOM: &[u8] = b"\x80\x01\0\0\0\x12\0\0\0\0\0\x06random";

fn tracer(path: &Path, limit: u64, with_secrets: bool) -> Tracer {
    let options = TraceOptions { limit, with_secrets };
    Tracer::start(TraceFile::open(path).unwrap(), TpmVersion::V2_0, options).unwrap()
}

fn count(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).filter(|window| *window == part).count()
}

/// Whether the file has whole blocks only.
fn is_whole(mut file: &[u8]) -> bool {
    while !file.is_empty() {
        let length = file.get(4..8).map(|length| u32::from_le_bytes(length.try_into().unwrap()) as usize);
        let Some(rest) = length.and_then(|length| file.get(length..)) else { return false };
        file = rest;
    }
    true
}

#[test]
fn secrets_of_the_guest_are_shown_if_asked_for_and_those_of_the_platform_never() {
    for with_secrets in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let mut tracer = tracer(&path, LIMIT, with_secrets);
        tracer.command(Sender::Platform, Locality::ZERO, CHANGE_AUTH);
        tracer.response(b"\x80\x02\0\0\0\x13\0\0\0\0\0\0\0\0\0\0\0\0\0");
        for sender in [Sender::Guest, Sender::Platform] {
            tracer.command(sender, Locality::ZERO, GET_RANDOM);
            tracer.response(RANDOM);
        }
        drop(tracer);
        let file = fs::read(path).unwrap();
        assert!(is_whole(&file));
        assert_eq!(count(&file, b"secret"), usize::from(!with_secrets), "the comment has it");
        assert_eq!(count(&file, b"random"), usize::from(with_secrets));
        assert_eq!(count(&file, GET_RANDOM), 2);
        assert_eq!(count(&file, b"SECRETS OF THE GUEST"), usize::from(with_secrets));
    }
}

#[test]
fn a_response_to_nothing_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let mut tracer = tracer(&path, LIMIT, true);
    tracer.response(RANDOM);
    tracer.command(Sender::Guest, Locality::ZERO, GET_RANDOM);
    tracer.response(RANDOM);
    tracer.response(RANDOM);
    drop(tracer);
    assert_eq!(count(&fs::read(path).unwrap(), RANDOM), 1);
}

#[test]
fn a_trace_ends_at_its_limit_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let limit = 20_000;
    let mut tracer = tracer(&path, limit, true);
    for _ in 0..500 {
        tracer.command(Sender::Guest, Locality::ZERO, GET_RANDOM);
        tracer.response(RANDOM);
    }
    drop(tracer);
    let file = fs::read(path).unwrap();
    assert!(is_whole(&file));
    assert!((limit - 5000..=limit).contains(&(file.len() as u64)), "{}", file.len());
    assert_eq!(count(&file, b"The trace ends here"), 1);
}

#[test]
fn more_than_a_tpm_may_say_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let mut tracer = tracer(&path, LIMIT, true);
    tracer.command(Sender::Guest, Locality::ZERO, &[7; BUFFER_SIZE + 1]);
    tracer.response(&vec![8; 1 << 20]);
    drop(tracer);
    let file = fs::read(path).unwrap();
    assert!(is_whole(&file));
    assert_eq!((count(&file, &[7; BUFFER_SIZE]), count(&file, &[8; BUFFER_SIZE])), (1, 1));
}

#[test]
fn a_reader_that_takes_its_time_makes_a_gap_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let mut reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
    let mut tracer = tracer(&path, LIMIT, true);
    // More than pipe and queue hold, and then none is on the way any more.
    for _ in 0..10_000 {
        tracer.command(Sender::Guest, Locality::ZERO, GET_RANDOM);
        tracer.response(RANDOM);
    }
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let reading = std::thread::spawn(move || {
        let mut read = Vec::new();
        reader.read_to_end(&mut read).map(|_| read).unwrap()
    });
    // Until one is taken again.
    let missing = |tracer: &Tracer| tracer.0.as_ref().map_or(0, |running| running.missing);
    while missing(&tracer) != 0 {
        tracer.command(Sender::Guest, Locality::ZERO, GET_RANDOM);
        std::thread::yield_now();
    }
    drop(tracer);
    let file = reading.join().unwrap();
    assert!(is_whole(&file));
    let (commands, responses) = (count(&file, GET_RANDOM), count(&file, RANDOM));
    assert!(responses <= commands && commands < 10_000, "{commands}, {responses}");
    assert!(count(&file, b"commands and responses before this one are missing") > 0);
}

#[test]
fn a_reader_that_goes_ends_the_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
    let mut tracer = tracer(&path, LIMIT, false);
    drop(reader);
    while tracer.0.is_some() {
        tracer.command(Sender::Guest, Locality::ZERO, GET_RANDOM);
        std::thread::yield_now();
    }
}
