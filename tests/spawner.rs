//! The spawner: the built program, asked for processes by the server's side of its protocol.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vfio_user_tpm::spawner::{Kind, Spawned, Spawner};

fn spawner(command: &[&str]) -> Spawner {
    Spawner::start(Path::new(env!("CARGO_BIN_EXE_vfio-user-tpm")), |spawner| {
        spawner.arg("--").args(command);
    })
    .unwrap()
}

fn spawn(spawner: &Spawner, kind: Kind) -> (Spawned, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (spawner.spawn(kind, OwnedFd::from(theirs).as_fd()).unwrap(), ours)
}

fn end_of(process: &Spawned) -> String {
    loop {
        if let Some(end) = process.ended() {
            return end;
        }
        let mut source = [PollFd::new(process.descriptor(), PollFlags::POLLIN)];
        assert_ne!(poll(&mut source, PollTimeout::from(60_000_u16)).unwrap(), 0, "nothing comes");
    }
}

#[test]
fn a_process_gets_its_standard_input_and_its_end_is_told() {
    let spawner = spawner(&["sh", "-c", "read line; echo \"$line\" >&0; exit 3"]);
    let (process, mut stdin) = spawn(&spawner, Kind::Command);
    assert_eq!(process.ended(), None);
    stdin.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    stdin.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello\n");
    assert_eq!(end_of(&process), "exit status: 3");
}

#[test]
fn a_process_can_be_killed() {
    let spawner = spawner(&["cat"]);
    let (process, mut stdin) = spawn(&spawner, Kind::Command);
    process.kill();
    assert_eq!(end_of(&process), "signal: 9 (SIGKILL)");
    assert_eq!(stdin.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_process_ends_with_its_handle_and_with_the_spawner() {
    let spawner = spawner(&["cat"]);
    let (process, mut stdin) = spawn(&spawner, Kind::Command);
    drop(process);
    assert_eq!(stdin.read(&mut [0; 1]).unwrap(), 0);
    let (_process, mut stdin) = spawn(&spawner, Kind::Command);
    drop(spawner);
    assert_eq!(stdin.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn what_cannot_be_started_is_told() {
    for (command, expected) in [(&["/nonexistent/program"][..], "No such file"), (&[], "no such program")] {
        let spawner = spawner(command);
        let (process, _stdin) = spawn(&spawner, Kind::Command);
        let end = end_of(&process);
        assert!(end.contains(expected), "{end}");
    }
}

#[test]
fn a_server_gets_a_few_processes_and_no_more_until_one_has_ended() {
    let spawner = spawner(&["cat"]);
    let mut running: Vec<_> = (0..4).map(|_| spawn(&spawner, Kind::Command)).collect();
    let (refused, _stdin) = spawn(&spawner, Kind::Command);
    assert!(end_of(&refused).contains("too many"));
    let (process, stdin) = running.pop().unwrap();
    drop(stdin);
    assert_eq!(end_of(&process), "exit status: 0");
    let (another, _stdin) = spawn(&spawner, Kind::Command);
    another.kill();
    assert!(end_of(&another).contains("SIGKILL"));
}
