//! The hidden subcommand `worker`: the process in which the TPM runs, started by the server.

use std::os::fd::AsFd;

use clap::Args;

use super::start_log;

/// Runs the TPM for a server; not for people.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// What to log: off, error, warn, info, debug, trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: log::LevelFilter,
}

pub(super) fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    start_log(args.log_level);
    crate::worker::run(std::io::stdin().as_fd())?;
    Ok(())
}
