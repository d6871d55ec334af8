//! Landlock: which files can be reached by their paths.
//!
//! Source: Linux, Documentation/userspace-api/landlock.rst. Rights that a kernel does not know yet are left out.

use std::os::fd::BorrowedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetStatus, Scope,
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

/// See [`super::Confinement::restrict_files`].
pub(super) fn restrict(granted: &[Grant<'_>]) -> Result<InForce, SandboxError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let status = granted.iter().try_fold(rules, allow)?.restrict_self()?;
    log::debug!("Landlock: {:?}, {:?}", status.ruleset, status.landlock);
    Ok(if status.ruleset == RulesetStatus::NotEnforced { InForce::Unsupported } else { InForce::Yes })
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
