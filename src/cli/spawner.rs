//! The hidden subcommand `spawner`: the process that starts others for the server.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;

use super::{log_level, start_log};
use crate::launch::{Program, Remover, run_spawner};
use crate::vfio_user::remove_socket;

/// Starts processes for a server; not for people.
#[derive(Debug, Args)]
pub(super) struct SpawnerArgs {
    /// What to log to standard error
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level())]
    log_level: log::LevelFilter,

    /// The server's socket, whose file it may remove
    #[arg(long)]
    socket_path: Option<PathBuf>,

    /// The program that it may start, and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: SpawnerArgs) -> anyhow::Result<()> {
    start_log(args.log_level);
    let mut command = args.command.into_iter();
    let program = command.next().map(|path| Program { path: path.into(), arguments: command.collect() });
    let remove = args.socket_path.map(|path| move |device, inode| remove_socket(&path, (device, inode)));
    let remover = remove.as_ref().map(|remove| remove as Remover<'_>);
    Ok(run_spawner(std::io::stdin().as_fd(), program.as_ref(), remover)?)
}
