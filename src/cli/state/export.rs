//! `state export`: a state in one file.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::FolderArgs;
use crate::cli::key_args::KeyArgs;
use crate::state::{archive, check_together, new_file};

/// Write a TPM's whole state into one file
///
/// What is sealed stays sealed, under the same key; what is not is not in the file either, and its secrets are then in
/// the file as they are in the folder. The key is not needed; with it the seals are tried first.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    folder: FolderArgs,

    #[command(flatten)]
    keys: KeyArgs,

    /// File to write
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let folder = args.keys.protect(args.folder.open()?)?;
    let files = folder.files()?;
    let sealed = check_together(&files)?;
    if folder.key().is_some() {
        files.iter().try_for_each(|file| file.open(folder.key()).map(drop))?;
    }
    folder.check_anchor(&files)?;
    let path = args.file.display();
    match new_file::write(&args.file, &archive::encode(&files), args.force) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            bail!("{path} is there already, and was left as it is: choose another name, or --force to replace it")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {path}")),
    }
    if !sealed {
        log::warn!("the state is not sealed: {path} holds the TPM's secrets for whoever can read it");
    }
    Ok(ExitCode::SUCCESS)
}
