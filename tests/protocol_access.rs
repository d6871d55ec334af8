//! Who can connect to the socket, and whose clients are served.

mod common;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::process::until;
use common::raw_client::RawClient;
use common::server::Server as BuiltServer;
use common::{ToyServer, toy::ToyDevice};
use nix::libc;
use nix::unistd::{Gid, Uid, getegid, geteuid};
use vfio_user_tpm::vfio_user::{Listener, ListenerError, Server, SocketClaim, SocketRights};

/// Nothing that is expected takes this long; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user and a group that nobody needs to have.
const OTHER: u32 = 54_321;

/// Calls `action` in a thread that has become another user and group: in Linux each thread has its own. `None` if this
/// user cannot become another.
fn as_other<T: Send>(user: u32, group: u32, action: impl FnOnce() -> T + Send) -> Option<T> {
    if !geteuid().is_root() {
        return None;
    }
    thread::scope(|scope| {
        let other = scope.spawn(move || {
            // The library's own functions would change all threads.
            // SAFETY: it takes plain numbers, and a list of no groups.
            let left = unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) };
            // SAFETY: it takes plain numbers.
            let has_group = unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) };
            // SAFETY: it takes plain numbers.
            let has_user = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
            assert_eq!([left, has_group, has_user], [0; 3]);
            action()
        });
        Some(other.join().unwrap())
    })
}

/// A folder that others can look into.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

fn rights_of(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.gid())
}

fn claim(path: &Path, mode: u32, group: Option<u32>) -> SocketClaim {
    SocketClaim::with_rights(path, &SocketRights { mode, group: group.map(Gid::from_raw) }).unwrap()
}

/// A group that this user may give to a file: as root any, otherwise its own.
fn possible_group() -> u32 {
    if geteuid().is_root() { OTHER } else { getegid().as_raw() }
}

#[test]
fn mode_is_as_asked_whatever_the_umask_says() {
    let folder = folder();
    for mode in [0o600, 0o660, 0o666, 0o777, 0o060, 0] {
        let path = folder.path().join("socket");
        let _claim = claim(&path, mode, None);
        assert_eq!(rights_of(&path).0, mode, "{mode:o}");
    }
}

#[test]
fn group_and_mode_are_there_before_anybody_can_connect() {
    let folder = folder();
    let path = folder.path().join("socket");
    let claim = claim(&path, 0o660, Some(possible_group()));
    assert_eq!(rights_of(&path), (0o660, possible_group()));
    assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let _listener = claim.listen().unwrap();
    assert_eq!(rights_of(&path), (0o660, possible_group()));
    UnixStream::connect(&path).unwrap();
}

#[test]
fn rights_are_never_wider_than_asked() {
    let folder = folder();
    let path = folder.path().join("socket");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                let (mode, group) = (metadata.mode() & 0o777, metadata.gid());
                assert!(mode == 0o600 || (mode == 0o660 && group == possible_group()), "{mode:o} of group {group}");
            }
        });
        for _ in 0..200 {
            let _claim = claim(&path, 0o660, Some(possible_group()));
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn group_may_connect_and_others_may_not() {
    let folder = folder();
    let path = folder.path().join("socket");
    let _listener = claim(&path, 0o660, Some(possible_group())).listen().unwrap();
    for (group, allowed) in [(OTHER, true), (OTHER + 1, false)] {
        let connected = as_other(OTHER, group, || UnixStream::connect(&path).map_err(|error| error.kind()));
        match connected {
            Some(Ok(_)) => assert!(allowed),
            Some(Err(kind)) => assert_eq!((kind, allowed), (io::ErrorKind::PermissionDenied, false)),
            None => {}
        }
    }
}

#[test]
fn group_that_this_user_cannot_give_is_told_and_leaves_nothing() {
    let folder = folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let path = folder.path().join("socket");
    let rights = SocketRights { mode: 0o660, group: Some(Gid::from_raw(OTHER)) };
    let attempt = || SocketClaim::with_rights(&path, &rights).map(|_| ()).map_err(|error| error.to_string());
    let result = if geteuid().is_root() { as_other(OTHER + 1, OTHER + 1, attempt).unwrap() } else { attempt() };
    let error = result.unwrap_err();
    assert!(error.contains("member of the group"), "{error}");
    assert!(!path.exists());
}

#[test]
fn client_of_a_user_who_is_not_allowed_is_refused_and_the_next_one_served() {
    let folder = folder();
    let path = folder.path().join("socket");
    let listener =
        claim(&path, 0o666, None).listen().unwrap().allow_only(vec![geteuid(), Uid::from_raw(OTHER)]).unwrap();
    let server = ToyServer::start_on(folder, listener);
    // Both when the place is free and when it is not.
    as_other(OTHER + 1, OTHER, || RawClient::connect(&path).assert_closed());
    let mut client = server.client();
    as_other(OTHER + 1, OTHER, || RawClient::connect(&path).assert_closed());
    client.assert_in_step();
    drop(client);
    as_other(OTHER, OTHER, || {
        let mut client = RawClient::connect(&path);
        client.negotiate();
        client.assert_in_step();
    });
    server.stop();
}

#[test]
fn stranger_never_waits_in_the_place_of_a_client() {
    let folder = folder();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path).unwrap().allow_only(vec![Uid::from_raw(OTHER)]).unwrap();
    let server = ToyServer::start_on(folder, listener);
    let is_stranger = geteuid() != Uid::from_raw(OTHER);
    for _ in 0..if is_stranger { 50 } else { 0 } {
        server.connect().assert_closed();
    }
    assert_eq!(server.control.state().connected, 0);
    server.stop();
}

#[test]
fn inherited_listening_socket_lets_in_only_whom_it_is_told() {
    let folder = folder();
    let path = folder.path().join("socket");
    let socket = UnixListener::bind(&path).unwrap();
    let listener = Listener::from_fd(socket.into()).unwrap().allow_only(vec![Uid::from_raw(OTHER)]).unwrap();
    let server = ToyServer::start_on(folder, listener);
    if geteuid() != Uid::from_raw(OTHER) {
        server.connect().assert_closed();
    }
    server.stop();
}

#[test]
fn connected_descriptor_of_a_stranger_is_refused_at_the_start() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let listener = Listener::from_fd(ours.try_clone().unwrap().into()).unwrap();
    let listener = listener.allow_only(vec![geteuid()]).unwrap();
    let server = Server::new(listener).unwrap();
    let (_device, _control) = ToyDevice::new(&server.registry().unwrap());

    let other = if geteuid().as_raw() == OTHER { OTHER + 1 } else { OTHER };
    let listener = Listener::from_fd(ours.into()).unwrap();
    let error = listener.allow_only(vec![Uid::from_raw(other)]).unwrap_err();
    assert!(matches!(&error, ListenerError::Stranger(_)), "{error}");
    assert!(error.to_string().contains(&geteuid().to_string()), "{error}");
}

#[test]
fn program_takes_rights_and_users_from_its_flags() {
    let other = if geteuid().as_raw() == OTHER { OTHER + 1 } else { OTHER };
    let group = format!("--socket-group={}", possible_group());
    let allowed = format!("--allow-uid={other}");
    let flags = ["--socket-mode=0660", &group, &allowed].map(Into::into);
    let server = BuiltServer::with_args(&flags);
    assert_eq!(rights_of(&server.socket()), (0o660, possible_group()));
    RawClient::connect(&server.socket()).assert_closed();
    let refusal = format!("of user {} is not among those that are let in", geteuid());
    assert!(until(PATIENCE, || server.log().contains(&refusal).then_some(())).is_some(), "{}", server.log());
    assert!(server.terminate().success());

    let flags = ["--fd=3", "--socket-mode=0660"].map(Into::into);
    let (status, output) = BuiltServer::fail_without_socket(&flags);
    assert!(!status.success() && output.contains("--socket-path"), "{output}");
}
