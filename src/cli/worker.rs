//! The hidden subcommand `worker`: the process in which the TPM runs, started by the server.

use std::os::fd::AsFd;

use clap::Args;

use super::sandbox_args::SandboxArgs;
use super::{log_level, start_log};
use crate::worker::Holding;

/// Runs the TPM for a server; not for people.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// What to log to standard error
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level())]
    log_level: log::LevelFilter,

    #[command(flatten)]
    sandbox: SandboxArgs,

    /// What it may be given to hold, whatever the server says that is confined then
    #[arg(long)]
    holds: Option<Holding>,
}

pub(super) fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    start_log(args.log_level);
    crate::worker::run(std::io::stdin().as_fd(), args.sandbox.confinement(), args.holds)?;
    Ok(())
}
