//! Where clients come from: a socket path, or a descriptor that was handed down.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, connect, getpeername,
    getsockname, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::fchmod;
use nix::unistd::Uid;
use thiserror::Error;

use super::rights::{AllowedUsers, SocketRights};

/// Clients that may wait to be accepted; more than one is refused anyway.
const BACKLOG: i32 = 16;

/// Why there is no socket to serve on.
#[derive(Debug, Error)]
pub enum ListenerError {
    /// Another process listens on the socket.
    #[error("{} is in use: another server listens there. Stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// The path names something else than a socket.
    #[error("{} exists and is no socket. Remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The path does not fit into a socket address.
    #[error("{} is too long for a socket path ({} bytes, at most 107). Choose a shorter one", .0.display(), .0.as_os_str().len())]
    PathTooLong(PathBuf),
    /// The socket cannot be created or looked at.
    #[error("cannot {action} {}; its folder has to be there, and this user has to be allowed to write to it", path.display())]
    Path {
        /// What was attempted.
        action: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The descriptor is something else than a UNIX stream socket that listens or is connected.
    #[error("descriptor {0} was expected to be a UNIX stream socket that listens or is connected, and is not: {1}")]
    Descriptor(i32, &'static str),
    /// The descriptor cannot be looked at or prepared.
    #[error("descriptor {0} cannot be used; hand down a UNIX stream socket that listens or is connected")]
    BadDescriptor(i32, #[source] Errno),
    /// The socket's group or mode cannot be what they are to be.
    #[error(
        "cannot give {} its group and mode: this user has to be a member of the group, and the folder has to be one in \
         which nobody else can replace the socket",
        path.display()
    )]
    Rights {
        /// The socket's path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The client that is there already is none of those that may be served.
    #[error("the client that is connected already is refused: {0}. Allow its user, or connect as another")]
    Stranger(String),
}

/// A source of clients.
#[derive(Debug)]
pub struct Listener {
    pub(super) source: Source,
    pub(super) allowed: AllowedUsers,
}

#[derive(Debug)]
pub(super) enum Source {
    /// Clients one after another.
    Listening(ListeningSocket),
    /// One client that is there already.
    Connected(UnixStream),
}

/// A socket on which clients arrive. Its file, if it made one, is removed when this goes.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    socket: UnixListener,
    file: Option<SocketFile>,
}

impl Listener {
    fn new(source: Source) -> Self {
        Self { source, allowed: AllowedUsers::default() }
    }

    /// From now on only processes of these users are served; another is disconnected before anything is received from it.
    ///
    /// The kernel notes whose process it is when it connects (`SO_PEERCRED`).
    ///
    /// # Errors
    /// [`ListenerError::Stranger`] if a client is there already and is a process of none of them.
    pub fn allow_only(mut self, users: Vec<Uid>) -> Result<Self, ListenerError> {
        self.allowed = AllowedUsers::Only(users);
        if let Source::Connected(client) = &self.source {
            self.allowed.admit(client).map_err(|stranger| ListenerError::Stranger(stranger.to_string()))?;
        }
        Ok(self)
    }

    /// From now on it is `remover` that removes the socket's file: for a server that cannot reach files any more. It gets the
    /// file's device's and inode's numbers. Without effect if there is no file of ours.
    #[must_use]
    pub fn removed_by(mut self, remover: impl FnOnce(u64, u64) -> io::Result<()> + Send + 'static) -> Self {
        if let Source::Listening(ListeningSocket { file: Some(file), .. }) = &mut self.source {
            file.remover = Some(Remover(Box::new(remover)));
        }
        self
    }

    /// Listens on a new socket at `path`: [`SocketClaim::new`] and [`SocketClaim::listen`] in one.
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        SocketClaim::new(path)?.listen()
    }

    /// Serves on a descriptor that was handed down: clients one after another if it listens, or the one that it is
    /// connected to.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, ListenerError> {
        let number = descriptor.as_raw_fd();
        let bad = |errno| match errno {
            Errno::ENOTSOCK => ListenerError::Descriptor(number, "it is no socket"),
            other => ListenerError::BadDescriptor(number, other),
        };
        let address: SockaddrStorage = getsockname(number).map_err(bad)?;
        if address.family() != Some(AddressFamily::Unix) {
            return Err(ListenerError::Descriptor(number, "it is no UNIX socket"));
        }
        if getsockopt(&descriptor, sockopt::SockType).map_err(bad)? != SockType::Stream {
            return Err(ListenerError::Descriptor(number, "it is no stream socket"));
        }
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(bad)?;
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL).map_err(bad)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(bad)?;
        if getsockopt(&descriptor, sockopt::AcceptConn).map_err(bad)? {
            return Ok(Self::new(Source::Listening(ListeningSocket { socket: descriptor.into(), file: None })));
        }
        match getpeername::<SockaddrStorage>(number) {
            Ok(_) => Ok(Self::new(Source::Connected(descriptor.into()))),
            Err(Errno::ENOTCONN) => Err(ListenerError::Descriptor(number, "it is neither")),
            Err(other) => Err(bad(other)),
        }
    }
}

/// A socket that is there, so that no other server can have its path, and on which nobody can connect yet.
#[derive(Debug)]
pub struct SocketClaim {
    socket: OwnedFd,
    file: SocketFile,
}

impl SocketClaim {
    /// As [`with_rights`](Self::with_rights), for processes of this user.
    pub fn new(path: &Path) -> Result<Self, ListenerError> {
        Self::with_rights(path, &SocketRights::default())
    }

    /// Makes a new socket at `path`. At no moment are its rights wider than `rights`, and they are what they are to be
    /// before anybody can connect.
    ///
    /// A socket on which nobody listens is replaced; anything else at `path` is left alone and an error. The file is
    /// removed when the claim, or the listener made of it, is dropped, if it is still this one. Two servers that replace
    /// the same abandoned socket in the same moment are not kept apart, nor is a claim from a server that comes before it
    /// listens.
    pub fn with_rights(path: &Path, rights: &SocketRights) -> Result<Self, ListenerError> {
        let failed = |action| move |source| ListenerError::Path { action, path: path.into(), source };
        let address = UnixAddr::new(path).map_err(|errno| match errno {
            Errno::ENAMETOOLONG => ListenerError::PathTooLong(path.into()),
            other => failed("use")(other.into()),
        })?;
        remove_abandoned(path, &address)?;

        let socket = stream_socket().map_err(failed("create a socket for"))?;
        // Before it is bound, the mode of the socket is what its file will be created with, less the umask.
        fchmod(&socket, rights.at_first()).map_err(|errno| failed("restrict")(errno.into()))?;
        bind(socket.as_raw_fd(), &address).map_err(|errno| match errno {
            Errno::EADDRINUSE => ListenerError::InUse(path.into()),
            other => failed("create")(other.into()),
        })?;
        let file = SocketFile::at(path).map_err(failed("look at"))?;
        rights
            .grant(path, |identity| identity == file.identity)
            .map_err(|source| ListenerError::Rights { path: path.into(), source })?;
        Ok(Self { socket, file })
    }

    /// Lets clients connect.
    pub fn listen(self) -> Result<Listener, ListenerError> {
        let Self { socket, file } = self;
        Backlog::new(BACKLOG).and_then(|backlog| listen(&socket, backlog)).map_err(|errno| ListenerError::Path {
            action: "listen on",
            path: file.path.clone(),
            source: errno.into(),
        })?;
        Ok(Listener::new(Source::Listening(ListeningSocket { socket: socket.into(), file: Some(file) })))
    }
}

impl ListeningSocket {
    /// The next client, if one has come.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(client, _)| client)
    }

    /// Removes the file, if it made one, and gives the socket to be closed.
    pub(super) fn close(self) -> OwnedFd {
        self.socket.into()
    }
}

impl AsRawFd for ListeningSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The file of a socket, known by its device and inode numbers.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    remover: Option<Remover>,
}

/// Removes a socket's file in this process's place.
struct Remover(Box<dyn FnOnce(u64, u64) -> io::Result<()> + Send>);

impl fmt::Debug for Remover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remover")
    }
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), identity: identity(path)?, remover: None })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let removed = match self.remover.take() {
            Some(Remover(remove)) => remove(self.identity.0, self.identity.1),
            None => remove_socket(&self.path, self.identity),
        };
        if let Err(error) = removed {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes the file of a socket, if the path still leads to the one with these device's and inode's numbers.
///
/// # Errors
/// Those of `unlink(2)`.
pub fn remove_socket(path: &Path, numbers: (u64, u64)) -> io::Result<()> {
    let is_there = identity(path).is_ok_and(|identity| identity == numbers);
    if is_there { fs::remove_file(path) } else { Ok(()) }
}

/// Removes a socket on which nobody listens.
fn remove_abandoned(path: &Path, address: &UnixAddr) -> Result<(), ListenerError> {
    let failed = |action| move |source| ListenerError::Path { action, path: path.into(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenerError::NotASocket(path.into())),
        Ok(_) => {}
    }
    let before = identity(path).map_err(failed("look at"))?;
    let probe = stream_socket().map_err(failed("create a socket for"))?;
    match connect(probe.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) if identity(path).is_ok_and(|now| now == before) => {
            log::info!("{} was left by a server that is gone; it is replaced", path.display());
            fs::remove_file(path).map_err(failed("remove"))
        }
        // Somebody answers, is too busy to, listens with another type of socket, or has just replaced the file.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE | Errno::ECONNREFUSED) => Err(ListenerError::InUse(path.into())),
        Err(errno) => Err(failed("see whether a server listens on")(errno.into())),
    }
}

/// A new UNIX stream socket that neither blocks nor outlives an exec.
fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn socket_is_private_and_goes_with_its_listener() {
        let folder = folder();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn abandoned_socket_is_replaced() {
        let folder = folder();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn socket_in_use_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let first = UnixListener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, ListenerError::InUse(_)), "{error}");
        first.accept().unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn datagram_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let _first = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenerError::InUse(_))));
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenerError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let link = folder.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(Listener::bind(&link), Err(ListenerError::NotASocket(_))));
        assert!(matches!(Listener::bind(folder.path()), Err(ListenerError::NotASocket(_))));
    }

    #[test]
    fn long_path_and_missing_folder_are_told() {
        let folder = folder();
        let error = Listener::bind(&folder.path().join("x".repeat(200))).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        let error = Listener::bind(&folder.path().join("missing/s")).unwrap_err();
        assert!(matches!(error, ListenerError::Path { .. }), "{error}");
    }

    #[test]
    fn socket_that_another_server_put_in_our_place_stays() {
        let folder = folder();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        // Renaming keeps the first inode in use, so the second socket cannot get the same number.
        fs::rename(&path, folder.path().join("t")).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn listening_descriptor_serves_many_and_keeps_its_file() {
        let folder = folder();
        let path = folder.path().join("s");
        let socket = UnixListener::bind(&path).unwrap();
        let listener = Listener::from_fd(socket.into()).unwrap();
        assert!(matches!(listener.source, Source::Listening(_)));
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn connected_descriptor_is_the_client() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let listener = Listener::from_fd(ours.into()).unwrap();
        assert!(matches!(listener.source, Source::Connected(_)));
    }

    #[test]
    fn other_descriptors_are_refused() {
        let file: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let inet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for (descriptor, says) in [
            (file, "no socket"),
            (datagram.into(), "no stream"),
            (inet.into(), "no UNIX"),
            (stream_socket().unwrap(), "neither"),
        ] {
            let error = Listener::from_fd(descriptor).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
