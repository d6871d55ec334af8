//! Landlock: which files can be reached by their paths.
//!
//! Source: Linux, Documentation/userspace-api/landlock.rst. Rights that a kernel does not know yet are left out.

use std::os::fd::BorrowedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{InForce, SandboxError};

/// The newest set of rights there is; all of them are taken away.
const NEWEST: ABI = ABI::V10;

/// What stays reachable.
#[derive(Clone, Copy, Debug)]
pub enum Grant<'a> {
    /// The files of this folder, which the worker makes, reads, writes, renames and removes there.
    StateFolder(BorrowedFd<'a>),
    /// This device, which the worker opens again and again for a resource manager's sake.
    Device(BorrowedFd<'a>),
    /// Whoever listens in this folder: an swtpm that may be started anew there, on another socket of the same name.
    SocketsIn(&'a Path),
}

/// What this kernel's Landlock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// The kernel does not know it, or the system call is forbidden.
    Missing,
    /// The kernel has it and does not use it.
    SwitchedOff,
    /// The version of its interface, from 1.
    Version(i32),
}

/// Finds out what Landlock does here, by a thread that confines itself and ends. `None` if it cannot be had to.
#[must_use]
pub fn landlock() -> Option<Landlock> {
    let status = std::thread::spawn(|| confine(&[])).join().ok()?.ok()?;
    Some(match status.landlock {
        LandlockStatus::NotImplemented => Landlock::Missing,
        LandlockStatus::NotEnabled => Landlock::SwitchedOff,
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            Landlock::Version(kernel_abi.unwrap_or(effective_abi as i32))
        }
    })
}

/// See [`super::Confinement::restrict_files`].
pub(super) fn restrict(granted: &[Grant<'_>]) -> Result<InForce, SandboxError> {
    let status = confine(granted)?;
    log::debug!("Landlock: {:?}, {:?}", status.ruleset, status.landlock);
    Ok(if status.ruleset == RulesetStatus::NotEnforced { InForce::Unsupported } else { InForce::Yes })
}

fn confine(granted: &[Grant<'_>]) -> Result<RestrictionStatus, SandboxError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    Ok(granted.iter().try_fold(rules, allow)?.restrict_self()?)
}

fn allow(rules: RulesetCreated, grant: &Grant<'_>) -> Result<RulesetCreated, SandboxError> {
    let files = AccessFs::ReadFile | AccessFs::WriteFile;
    Ok(match *grant {
        // A rename within a folder is a removal and a making. No folders are made here, and nothing is linked.
        Grant::StateFolder(folder) => {
            rules.add_rule(PathBeneath::new(folder, files | AccessFs::MakeReg | AccessFs::RemoveFile))?
        }
        Grant::Device(device) => rules.add_rule(PathBeneath::new(device, files))?,
        Grant::SocketsIn(folder) => rules.add_rule(PathBeneath::new(PathFd::new(folder)?, AccessFs::ResolveUnix))?,
    })
}
