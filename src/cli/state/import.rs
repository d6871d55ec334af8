//! `state import`: an exported state into a folder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::exported;
use crate::cli::key_args::KeyArgs;
use crate::state::StateFolder;

/// Put an exported state into a folder
///
/// All of it is checked before anything is written. The folder then holds this state and nothing else of a TPM, or, after
/// an error or a crash, what it held before. A sealed state needs its key. From then on there are two copies of one TPM:
/// never run both.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Folder for the TPM's state; it is created if it is missing
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,

    #[command(flatten)]
    keys: KeyArgs,

    /// Exported state
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Replace the state that is there; accept it even if the rollback anchor knows a newer one or another
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let files = exported::read(&args.file)?;
    let folder = StateFolder::open(&args.state_dir)?;
    let folder = if args.force { args.keys.protect_with_any_anchor(folder)? } else { args.keys.protect(folder)? };
    folder.replace_all(&files, args.force)?;
    Ok(ExitCode::SUCCESS)
}
