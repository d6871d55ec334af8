//! seccomp: the lists as filters that the kernel runs.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::calls::{Call, Only};
use super::{InForce, OnViolation, SandboxError};

/// See [`super::Confinement::restrict_calls`].
pub(super) fn restrict(calls: &[&[Call]], on_violation: OnViolation) -> Result<InForce, SandboxError> {
    let calls = || calls.iter().copied().flatten();
    let mismatch = match on_violation {
        OnViolation::None => return Ok(InForce::Unwanted),
        OnViolation::Kill => SeccompAction::KillProcess,
        OnViolation::Errno => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        OnViolation::Log => SeccompAction::Log,
    };
    // Those that are refused stand on the list too, so as not to be violations: of two filters the stricter one counts.
    let kills = on_violation == OnViolation::Kill;
    let allowed = calls().filter(|call| kills || !call.refused);
    let mut programs = vec![program(allowed, mismatch, SeccompAction::Allow)];
    if kills && calls().any(|call| call.refused) {
        let refusal = SeccompAction::Errno(libc::EACCES.unsigned_abs());
        programs.insert(0, program(calls().filter(|call| call.refused), SeccompAction::Allow, refusal));
    }
    for program in programs {
        match apply_filter_all_threads(&program.map_err(|error| SandboxError::Filter(error.into()))?) {
            Ok(()) => {}
            Err(Error::Seccomp(error)) if is_unsupported(&error) => return Ok(InForce::Unsupported),
            Err(error) => return Err(SandboxError::Filter(error)),
        }
    }
    Ok(InForce::Yes)
}

/// What a kernel without seccomp, or without its filters, answers (seccomp(2)).
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL))
}

/// Calls without conditions come out as a list that the kernel evaluates once, and not with each call (Linux 5.11).
fn program<'a>(
    calls: impl Iterator<Item = &'a Call>,
    mismatch: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut rules = BTreeMap::new();
    for call in calls {
        rules.insert(call.number, alternatives(call)?);
    }
    SeccompFilter::new(rules, mismatch, on_match, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// The arguments that a call may have; none for any.
fn alternatives(call: &Call) -> Result<Vec<SeccompRule>, BackendError> {
    let only = |argument, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
    };
    match call.only {
        Only::Anything => Ok(Vec::new()),
        Only::OneOf(argument, values) => {
            values.iter().map(|&value| only(argument, SeccompCmpOp::Eq, value.into())).collect()
        }
        Only::Without(argument, bits) => Ok(vec![only(argument, SeccompCmpOp::MaskedEq(bits.into()), 0)?]),
        Only::Ourselves(argument) => Ok(vec![only(argument, SeccompCmpOp::Eq, std::process::id().into())?]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{SERVER_CALLS, SERVER_CALLS_TO_ATTACH, WORKER_CALLS};
    use super::*;

    #[test]
    fn every_list_makes_a_filter_and_names_each_call_once() {
        for list in [SERVER_CALLS, SERVER_CALLS_TO_ATTACH, WORKER_CALLS] {
            program(list.iter(), SeccompAction::KillProcess, SeccompAction::Allow).unwrap();
            assert_eq!(list.iter().map(|call| call.number).collect::<BTreeSet<_>>().len(), list.len());
        }
    }

    #[test]
    fn nothing_on_a_list_starts_a_program_a_process_or_looks_into_one() {
        for call in SERVER_CALLS.iter().chain(SERVER_CALLS_TO_ATTACH).chain(WORKER_CALLS) {
            let forbidden =
                ["execve", "execveat", "fork", "vfork", "clone", "clone3", "ptrace", "bpf", "mount", "setuid", "kill"];
            assert!(!forbidden.contains(&call.name()), "{}", call.name());
        }
    }
}
