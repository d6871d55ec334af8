//! What a process gives up for ever, and whose process it is.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setgroups, setuid};
use thiserror::Error;

use super::SandboxError;

/// See [`super::Confinement::give_up_privileges`].
pub(super) fn give_up_privileges(descriptors: u64) -> Result<(), SandboxError> {
    let failed = |what| move |errno: Errno| SandboxError::Process(what, errno.into());
    // No set-user-ID program, no file capabilities; and Landlock and seccomp want it.
    prctl::set_no_new_privs().map_err(failed("new privileges"))?;
    forbid_inspection().map_err(|error| SandboxError::Process("being dumped", error))?;
    let limit = || {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(descriptors), hard.min(descriptors))
    };
    limit().map_err(failed("descriptors"))
}

/// See [`super::Confinement::give_up_descriptors`]. What this process has opened or taken over is closed on exec; what it was
/// started with and does not know of is not, or it would not be here.
pub(super) fn give_up_descriptors() -> Result<(), SandboxError> {
    let failed = |error| SandboxError::Process("what it was started with", error);
    let open = fs::read_dir("/proc/self/fd").map_err(failed)?;
    let numbers: Vec<RawFd> = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // SAFETY: for this one call. One that is closed by now, the folder's own, is an error of it.
        #[expect(unsafe_code, reason = "a descriptor that is known by its number only")]
        let flags = fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD);
        if flags.is_ok_and(|flags| !FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC)) {
            // SAFETY: whatever this process owns is closed on exec.
            #[expect(unsafe_code, reason = "a descriptor that nobody in this process owns")]
            drop(unsafe { OwnedFd::from_raw_fd(number) });
        }
    }
    Ok(())
}

/// No dump of this process's memory, and no debugger of the same user.
///
/// # Errors
/// Those of the system calls.
pub fn forbid_inspection() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(prctl::set_dumpable(false)?)
}

/// A user to become (`--user`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewUser {
    user: Uid,
    group: Gid,
    /// Whose further groups it gets; without one, none.
    name: Option<String>,
}

/// Why a process cannot become another user's.
#[derive(Debug, Error)]
pub enum UserError {
    /// It is not root's.
    #[error("--user is for a program that is started by root, and this one was started by user {0}: leave it out")]
    NotRoot(Uid),
    /// The system refuses.
    #[error("cannot become user {0}; in a user namespace, only users that are mapped into it can be")]
    Refused(Uid, #[source] Errno),
    /// Root can be had back.
    #[error("root's rights would not be gone as user {0}: give another user than root")]
    Kept(Uid),
}

impl NewUser {
    /// A user by name or number, with its own group or another.
    ///
    /// # Errors
    /// What was expected, for the user.
    pub fn new(user: &str, group: Option<Gid>) -> Result<Self, String> {
        // The last number stands for "none" in system calls.
        let number = user.parse().ok().filter(|&number| number != u32::MAX).map(Uid::from_raw);
        let known = number.map_or_else(|| User::from_name(user), User::from_uid);
        let known = known.map_err(|errno| format!("the users cannot be looked up: {errno}"))?;
        match (known, number, group) {
            (Some(known), _, group) => {
                Ok(Self { user: known.uid, group: group.unwrap_or(known.gid), name: Some(known.name) })
            }
            (None, Some(user), Some(group)) => Ok(Self { user, group, name: None }),
            (None, Some(_), None) => Err("the group of this user is not known: give USER:GROUP".to_owned()),
            (None, None, _) => Err("there is no such user".to_owned()),
        }
    }

    /// Becomes this user, for good: with its groups, and without any of root's capabilities.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn assume(&self) -> Result<(), UserError> {
        if !geteuid().is_root() {
            return Err(UserError::NotRoot(geteuid()));
        }
        let change = || {
            match self.name.as_deref().and_then(|name| std::ffi::CString::new(name).ok()) {
                Some(name) => initgroups(&name, self.group)?,
                None => setgroups(&[self.group])?,
            }
            setgid(self.group)?;
            setuid(self.user)
        };
        change().map_err(|errno| UserError::Refused(self.user, errno))?;
        // A user who may become root again is root.
        if setuid(Uid::from_raw(0)).is_ok() { Err(UserError::Kept(self.user)) } else { Ok(()) }
    }
}
