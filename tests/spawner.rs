//! The spawner: the built program, asked for processes by the server's side of its protocol.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vfio_user_tpm::launch::{Launcher, Process, Program, SPAWNER, Spawner, SpawnerConfig};

fn spawner(command: &[&str]) -> Spawner {
    let (path, arguments) = command.split_first().unwrap();
    Spawner::start(SpawnerConfig {
        spawner: Program::ourselves(env!("CARGO_BIN_EXE_vfio-user-tpm").into(), SPAWNER, log::LevelFilter::Warn),
        program: Some(Program { path: path.into(), arguments: arguments.iter().map(Into::into).collect() }),
        sockets: Vec::new(),
    })
    .unwrap()
}

fn spawn(spawner: &Spawner) -> (Process, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (spawner.launch(theirs.into()).unwrap(), ours)
}

fn end_of(process: &mut Process) -> String {
    loop {
        if let Some(end) = process.end() {
            return end.to_owned();
        }
        let mut source = [PollFd::new(process.descriptor(), PollFlags::POLLIN)];
        assert_ne!(poll(&mut source, PollTimeout::from(60_000_u16)).unwrap(), 0, "nothing comes");
    }
}

#[test]
fn a_process_gets_its_standard_input_and_its_end_is_told() {
    let spawner = spawner(&["sh", "-c", "read line; echo \"$line\" >&0; exit 3"]);
    let (mut process, mut stdin) = spawn(&spawner);
    assert_eq!(process.end(), None);
    stdin.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    stdin.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello\n");
    assert_eq!(end_of(&mut process), "exit status: 3");
}

#[test]
fn a_process_can_be_killed() {
    let spawner = spawner(&["cat"]);
    let (mut process, mut stdin) = spawn(&spawner);
    process.kill();
    assert_eq!(end_of(&mut process), "signal: 9 (SIGKILL)");
    assert_eq!(stdin.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_process_ends_with_its_handle_and_with_the_spawner() {
    let spawner = spawner(&["cat"]);
    let (process, mut stdin) = spawn(&spawner);
    drop(process);
    assert_eq!(stdin.read(&mut [0; 1]).unwrap(), 0);
    let (_process, mut stdin) = spawn(&spawner);
    drop(spawner);
    assert_eq!(stdin.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn what_cannot_be_started_is_told() {
    let spawner = spawner(&["/nonexistent/program"]);
    let (mut process, _stdin) = spawn(&spawner);
    let end = end_of(&mut process);
    assert!(end.contains("/nonexistent/program: No such file"), "{end}");
}

#[test]
fn whoever_finds_a_process_gone_by_its_input_knows_how_it_ended() {
    for (command, expected) in [(&["sh", "-c", "kill -ABRT $$"][..], "SIGABRT"), (&["/nonexistent"], "No such file")] {
        let spawner = spawner(command);
        let (mut process, mut stdin) = spawn(&spawner);
        assert_eq!(stdin.read(&mut [0; 1]).unwrap(), 0);
        let end = process.end().map(str::to_owned);
        assert!(end.as_ref().is_some_and(|end| end.contains(expected)), "{end:?}");
    }
}

#[test]
fn a_spawner_that_is_gone_is_told_with_what_to_do() {
    let spawner = spawner(&["cat"]);
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    let pid: i32 = children.trim().parse().expect("the spawner is this thread's only child");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    // Gone as soon as what it has started is.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let error = loop {
        match spawner.launch(theirs.try_clone().unwrap().into()) {
            Ok(mut process) => drop(end_of(&mut process)),
            Err(error) => break error.to_string(),
        }
    };
    drop(ours);
    assert!(error.contains("start this program again"), "{error}");
}

#[test]
fn a_server_gets_a_few_processes_and_no_more_until_one_has_ended() {
    let spawner = spawner(&["cat"]);
    let mut running: Vec<_> = (0..4).map(|_| spawn(&spawner)).collect();
    let (mut refused, _stdin) = spawn(&spawner);
    assert!(end_of(&mut refused).contains("too many"));
    let (mut process, stdin) = running.pop().unwrap();
    drop(stdin);
    assert_eq!(end_of(&mut process), "exit status: 0");
    let (mut another, _stdin) = spawn(&spawner);
    another.kill();
    assert!(end_of(&mut another).contains("SIGKILL"));
}

fn remover(sockets: &[&std::path::Path]) -> Spawner {
    Spawner::start(SpawnerConfig {
        spawner: Program::ourselves(env!("CARGO_BIN_EXE_vfio-user-tpm").into(), SPAWNER, log::LevelFilter::Warn),
        program: None,
        sockets: sockets.iter().map(|&socket| socket.to_owned()).collect(),
    })
    .unwrap()
}

#[test]
fn the_servers_socket_is_removed_and_no_other_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    let numbers = std::fs::metadata(&path).unwrap();
    let other = folder.path().join("other");
    let _other = UnixListener::bind(&other).unwrap();
    let spawner = remover(&[&other, &path]);
    spawner.remove_socket(numbers.dev(), u64::MAX).unwrap();
    assert!(path.exists());
    spawner.remove_socket(numbers.dev(), numbers.ino()).unwrap();
    assert!(!path.exists());
    // Gone already.
    spawner.remove_socket(numbers.dev(), numbers.ino()).unwrap();
    let numbers = std::fs::metadata(&other).unwrap();
    spawner.remove_socket(numbers.dev(), numbers.ino()).unwrap();
    assert!(!other.exists());
}

#[test]
fn a_socket_that_cannot_be_removed_is_told() {
    // A folder in its place.
    let folder = tempfile::tempdir().unwrap();
    let numbers = std::fs::metadata(folder.path()).unwrap();
    let error = remover(&[folder.path()]).remove_socket(numbers.dev(), numbers.ino()).unwrap_err();
    assert!(error.to_string().contains("directory"), "{error}");
}

#[test]
fn a_spawner_does_only_what_its_command_line_says() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, _stdin) = spawn(&remover(&[&folder.path().join("socket")]));
    assert!(end_of(&mut process).contains("spawner is gone"));
    assert!(spawner(&["cat"]).remove_socket(0, 0).is_err());
}
