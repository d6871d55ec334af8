//! The hidden subcommand `spawner`: the process that starts others for the server.

use std::ffi::OsString;
use std::os::fd::AsFd;

use anyhow::Context;
use clap::Args;

use super::{log_level, start_log};
use crate::launch::{Program, run_spawner};

/// Starts processes for a server; not for people.
#[derive(Debug, Args)]
pub(super) struct SpawnerArgs {
    /// What to log to standard error
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level())]
    log_level: log::LevelFilter,

    /// The program that it may start, and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: SpawnerArgs) -> anyhow::Result<()> {
    start_log(args.log_level);
    let mut command = args.command.into_iter();
    let path = command.next().context("give the program that the spawner may start")?.into();
    let program = Program { path, arguments: command.collect() };
    Ok(run_spawner(std::io::stdin().as_fd(), &program)?)
}
