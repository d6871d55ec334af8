//! `log replay`: the PCR values that a log implies.

use std::process::ExitCode;

use clap::Args;

use super::values::ValueArgs;
use super::{FileArgs, print};
use crate::measure::replay::replay;

/// Compute the PCR values that an event log implies
///
/// Those are values that a TPM would have if the log told everything, and the truth. By itself it proves nothing: whoever
/// passes a log on can have written it. It is worth as much as the quote, signed by a TPM that you trust, whose PCR values
/// are the same. PCRs that the log does not extend are not printed.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    file: FileArgs,

    #[command(flatten)]
    values: ValueArgs,
}

pub(super) fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let replayed = replay(&args.file.read()?)?;
    print(&args.values.text(&replayed)?)?;
    log::warn!(
        "a log without a quote proves nothing: compare these values with those of a quote by a TPM that you trust"
    );
    Ok(ExitCode::SUCCESS)
}
