//! Who can connect: the rights of a socket's file, and the users whose processes are let in.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, fchownat, geteuid};
use thiserror::Error;

/// The rights of a socket's file. Connecting takes the right to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRights {
    /// Permission bits, at most 0777. They hold as given: the umask takes nothing away.
    pub mode: u32,
    /// The file's group; `None` leaves the one that the system gives it.
    pub group: Option<Gid>,
}

impl Default for SocketRights {
    /// Only for processes of this user.
    fn default() -> Self {
        Self { mode: 0o600, group: None }
    }
}

impl SocketRights {
    /// What the file is created with: the rights of its owner alone, as long as its group is not the one that is wanted.
    pub(super) fn at_first(&self) -> Mode {
        Mode::from_bits_truncate(self.mode) & Mode::S_IRWXU
    }

    /// Gives the file of a new socket its group, and then what others may do with it. `is_ours` tells a file by its device
    /// and inode numbers.
    ///
    /// Whoever else can write to the folder could have put another file in its place: it has to be a socket of this user
    /// that has no second name, or nothing is done to it.
    pub(super) fn grant(&self, path: &Path, is_ours: impl FnOnce((u64, u64)) -> bool) -> io::Result<()> {
        let file = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        let found = fstat(&file)?;
        let has_mode = found.st_mode & 0o7777 == self.mode;
        let group = self.group.filter(|group| group.as_raw() != found.st_gid);
        if has_mode && group.is_none() {
            return Ok(());
        }
        let is_socket = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
        if !is_socket
            || found.st_uid != geteuid().as_raw()
            || found.st_nlink != 1
            || !is_ours((found.st_dev, found.st_ino))
        {
            return Err(io::Error::other("somebody has put another file in its place"));
        }
        if group.is_some() {
            fchownat(file.as_fd(), "", None, group, AtFlags::AT_EMPTY_PATH)?;
        }
        if !has_mode {
            // By way of the descriptor, so that it is still this file.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            fs::set_permissions(path, fs::Permissions::from_mode(self.mode))?;
        }
        Ok(())
    }
}

/// The users whose processes are let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum AllowedUsers {
    /// Whoever can connect.
    #[default]
    All,
    Only(Vec<Uid>),
}

impl AllowedUsers {
    /// Tells by the credentials that the kernel has noted when the other side connected or, of a pair, when the pair was
    /// made; what became of that process or its socket since then is not known. A user who has no number in this user
    /// namespace is the overflow user, 65534.
    pub(super) fn admit(&self, socket: &impl AsFd) -> Result<(), Stranger> {
        let Self::Only(users) = self else { return Ok(()) };
        let peer = getsockopt(socket, sockopt::PeerCredentials).map_err(Stranger::Unknown)?;
        let (user, process) = (Uid::from_raw(peer.uid()), peer.pid());
        if users.contains(&user) { Ok(()) } else { Err(Stranger::User { user, process }) }
    }
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Stranger {
    #[error("process {process} of user {user} is not among those that are let in")]
    User { user: Uid, process: i32 },
    #[error("whose process it is cannot be found out: {0}")]
    Unknown(Errno),
}
