//! `state`: looking at stored state, checking and moving it. One file a command.

mod show;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use log::LevelFilter;

use super::start_log;
use crate::state::{StateError, StateFolder};

/// Look at a TPM's stored state, check it, move it
///
/// The folder is locked while a command works on it: the TPM's server has to be stopped.
#[derive(Debug, Args)]
pub(super) struct StateArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(show::ShowArgs),
    Verify(verify::VerifyArgs),
}

/// The state to work on.
#[derive(Debug, Args)]
struct FolderArgs {
    /// Folder with the TPM's state
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
}

impl FolderArgs {
    /// The folder, which has to be there.
    fn open(&self) -> Result<StateFolder, StateError> {
        StateFolder::open_existing(&self.state_dir)
    }
}

pub(super) fn run(args: StateArgs) -> anyhow::Result<ExitCode> {
    start_log(LevelFilter::Info);
    match args.command {
        Command::Show(args) => show::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}
