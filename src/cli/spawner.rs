//! The hidden subcommand `spawner`: the process that starts others for the server.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;

use super::log_args::LogArgs;
use crate::launch::{Program, Remover, run_spawner};
use crate::sandbox::close_inherited;
use crate::vfio_user::remove_socket;

/// Starts processes for a server; not for people.
#[derive(Debug, Args)]
pub(super) struct SpawnerArgs {
    #[command(flatten)]
    log: LogArgs,

    /// A socket of the server's, whose file it may remove
    #[arg(long)]
    socket_path: Vec<PathBuf>,

    /// The program that it may start, and its arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: SpawnerArgs) -> anyhow::Result<()> {
    // A socket for clients, a key: none of it is for the processes that are started here. The log's socket comes after.
    close_inherited()?;
    args.log.start()?;
    let mut command = args.command.into_iter();
    let program = command.next().map(|path| Program { path: path.into(), arguments: command.collect() });
    let paths = args.socket_path;
    let remove = |device, inode| paths.iter().try_for_each(|path| remove_socket(path, (device, inode)));
    let remover = (!paths.is_empty()).then_some(&remove as Remover<'_>);
    Ok(run_spawner(std::io::stdin().as_fd(), program.as_ref(), remover)?)
}
