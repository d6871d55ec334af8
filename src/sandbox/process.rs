//! What a process gives up for ever, and whose process it is.

use std::io;

use nix::errno::Errno;
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
