//! The hidden subcommand `spawner`: the process that starts others for the server.

use std::ffi::OsString;
use std::os::fd::AsFd;

use clap::Args;

use super::{log_level, start_log};

/// Starts processes for a server; not for people.
#[derive(Debug, Args)]
pub(super) struct SpawnerArgs {
    /// What to log to standard error, and what workers log
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level())]
    log_level: log::LevelFilter,

    /// The command that may be started besides workers
    #[arg(last = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: &SpawnerArgs) -> anyhow::Result<()> {
    start_log(args.log_level);
    let worker = ["--log-level".to_owned(), args.log_level.as_str().to_ascii_lowercase()].map(OsString::from);
    Ok(crate::spawner::run(std::io::stdin().as_fd(), &worker, &args.command)?)
}
