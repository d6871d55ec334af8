//! Arguments that are right one by one, and not together.

use std::process::ExitCode;

/// The exit status of a wrong command line, as clap has it. A service manager that is told not to start a program with this
/// status again (`RestartPreventExitStatus=2`) does not try what cannot go better.
const STATUS: u8 = 2;

/// What contradicts what. Nothing has been opened or changed because of it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Misuse(#[from] anyhow::Error);

/// The exit status of a program that ends with this error.
pub(super) fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Misuse>() { ExitCode::from(STATUS) } else { ExitCode::FAILURE }
}
