//! `log expect`: the PCR values to be expected of a launch.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::print;
use super::values::ValueArgs;
use crate::cli::measure_args::MeasureArgs;
use crate::measure::digests::BANKS;
use crate::measure::event_log::DEFAULT_ROOM;
use crate::measure::replay::replay;
use crate::state::new_file;

/// Compute the PCR values that a verifier should accept of a launch
///
/// Nothing is started. Give the same --measure as to the server. The values are those before the guest has run: what it
/// extends itself comes on top. PCR 0 has this program's version in it. PCRs that nothing is measured into are not printed:
/// they hold zeros.
#[derive(Debug, Args)]
pub(super) struct ExpectArgs {
    #[command(flatten)]
    measure: MeasureArgs,

    #[command(flatten)]
    values: ValueArgs,

    /// Also write the event log to be expected, with the banks that are printed
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// Replace that file if it is there
    #[arg(long, requires = "log")]
    force: bool,
}

pub(super) fn run(args: &ExpectArgs) -> anyhow::Result<ExitCode> {
    let Some(launch) = args.measure.launch()? else {
        bail!("nothing is measured: say with --measure what is launched, as in --measure kernel=PATH")
    };
    let banks = args.values.bank.as_deref().unwrap_or(&BANKS);
    let log = launch.event_log(banks)?;
    let text = args.values.text(&replay(&log)?)?;
    if let Some(path) = &args.log {
        let bytes = log.to_bytes(DEFAULT_ROOM)?;
        match new_file::write(path, &bytes, args.force) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "{} is there already, and was left as it is: choose another name, or --force to replace it",
                path.display()
            ),
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
