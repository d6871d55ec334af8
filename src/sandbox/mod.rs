//! What the processes cannot do any more once something untrusted can reach them.
//!
//! | process | sees | may still |
//! |---|---|---|
//! | server | the bytes of clients, the responses of the TPM | use the descriptors that it has, get more from its clients, and ask the spawner for a process |
//! | worker | the commands of the guest | do so with its socket, and make, read, write, rename and remove files in its state folder, or open its device |
//! | spawner | requests of the server, which carry nothing but a standard input | start the one program of its command line, remove the server's socket |
//!
//! Two mechanisms of Linux, one behind the other: Landlock says which files may be reached (`files`), seccomp which system
//! calls may be made (`filter`; the lists are `server_calls` and `worker_calls`). Neither can be taken back, and what a
//! process starts has them too. Before both, a process gives up what it will never need (`process`), and one that was
//! started by another of ours closes what it was started with (`inherited`).

mod calls;
mod files;
mod filter;
mod inherited;
mod process;
mod server_calls;
mod worker_calls;

pub use calls::Call;
pub use files::{Grant, Landlock, landlock};
pub use inherited::close_inherited;
pub use process::{NewUser, UserError, forbid_inspection};
pub use server_calls::{CALLS as SERVER_CALLS, TO_ATTACH as SERVER_CALLS_TO_ATTACH};
pub use worker_calls::CALLS as WORKER_CALLS;

use std::io;

use thiserror::Error;

/// How far a process is confined (`--sandbox`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Not at all. The worker is not to be looked into all the same: it has the TPM's secrets.
    None,
    /// Landlock, without seccomp.
    Landlock,
    /// Landlock and seccomp.
    #[default]
    Full,
}

/// What comes of a system call that is not on the list (`--seccomp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnViolation {
    /// The process is killed: whoever has it makes no second attempt.
    #[default]
    Kill,
    /// It fails with `EPERM`.
    Errno,
    /// It is made, and the kernel's log tells of it: to find out what a list lacks.
    Log,
    /// There is no list.
    None,
}

/// Whether a restriction is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum InForce {
    /// It is.
    Yes,
    /// Nobody asked for it.
    Unwanted,
    /// This kernel does not know it, or whoever started this program forbids it.
    Unsupported,
}

/// Why a process cannot be confined. It must not go on then.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// What it is to give up stays.
    #[error("cannot give up {0}; --sandbox=none does without confinement")]
    Process(&'static str, #[source] io::Error),
    /// The kernel knows Landlock, and refuses.
    #[error("cannot restrict files by Landlock; --sandbox=none does without confinement")]
    Files(#[from] landlock::RulesetError),
    /// A file to be granted cannot be opened.
    #[error("cannot grant a folder by Landlock: {0}; it has to be there, and this user has to be allowed to enter it")]
    Grant(#[from] landlock::PathFdError),
    /// The filter cannot be made.
    #[error("cannot make the filter of system calls; --seccomp=none does without it")]
    Filter(#[source] seccompiler::Error),
}

/// How a process is to be confined. The steps are to be taken in the order in which they stand here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// How far.
    pub level: Level,
    /// What comes of a system call that is not on the list, with [`Level::Full`].
    pub on_violation: OnViolation,
}

impl Confinement {
    /// Gives up what this process will never need: new privileges (`no_new_privs`), being looked into by other processes
    /// of its user, core dumps, and more than `descriptors` open at a time. What it starts has given them up too, except
    /// that it can be looked into.
    ///
    /// # Errors
    /// [`SandboxError::Process`].
    pub fn give_up_privileges(&self, descriptors: u64) -> Result<(), SandboxError> {
        if self.level == Level::None { Ok(()) } else { process::give_up_privileges(descriptors) }
    }

    /// Closes the descriptors that this process was started with, besides the standard streams, and has not taken over.
    ///
    /// # Errors
    /// [`SandboxError::Process`].
    pub fn give_up_descriptors(&self) -> Result<(), SandboxError> {
        if self.level == Level::None { Ok(()) } else { inherited::give_up_descriptors() }
    }

    /// From now on this thread, and those that it starts, reach no file by its path but what is granted, no TCP port, no
    /// abstract UNIX socket and no process outside. Open descriptors stay usable.
    ///
    /// # Errors
    /// [`SandboxError::Files`], [`SandboxError::Grant`].
    pub fn restrict_files(&self, granted: &[Grant<'_>]) -> Result<InForce, SandboxError> {
        if self.level == Level::None { Ok(InForce::Unwanted) } else { files::restrict(granted) }
    }

    /// From now on this process makes only these system calls. Its threads have to be running: what a new thread does
    /// before it comes to its work is not on the list.
    ///
    /// # Errors
    /// [`SandboxError::Filter`].
    pub fn restrict_calls(&self, calls: &[&[Call]]) -> Result<InForce, SandboxError> {
        if self.level == Level::Full { filter::restrict(calls, self.on_violation) } else { Ok(InForce::Unwanted) }
    }
}

/// Says in one line what is not in force although it was wanted.
pub fn warn_of_missing(files: InForce, calls: InForce) {
    let missing: Vec<_> = [("Landlock", files), ("seccomp filters", calls)]
        .into_iter()
        .filter_map(|(name, in_force)| (in_force == InForce::Unsupported).then_some(name))
        .collect();
    if !missing.is_empty() {
        log::warn!(
            "this kernel has no {}, or a container's seccomp profile forbids it: this program is confined by the rest only. \
             With --sandbox this can be chosen, and is no warning then",
            missing.join(" and no ")
        );
    }
}
