//! `state export`: a state into one file, or into a folder of swtpm's.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::{FolderArgs, swtpm};
use crate::cli::key_args::KeyArgs;
use crate::state::swtpm::KeySource;
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
    #[arg(value_name = "FILE", required_unless_present = "to_swtpm")]
    file: Option<PathBuf>,

    /// Write the state for swtpm into this folder instead, which is created if it is missing. A sealed state needs its
    /// key for that. The files get the folder's owner
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    to_swtpm: Option<PathBuf>,

    /// Key with which swtpm is to find its state encrypted, in the words of its option --key (see `state import`)
    #[arg(long, value_name = "OPTIONS", requires = "to_swtpm")]
    swtpm_key: Option<KeySource>,

    /// Replace the file, or the TPM in the folder, if it is there
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
    if let Some(to) = &args.to_swtpm {
        swtpm::export(&folder, to, args.swtpm_key.as_ref(), args.force)?;
    }
    let Some(file) = &args.file else { return Ok(ExitCode::SUCCESS) };
    new_file::warn_of_unfinished(file);
    let path = file.display();
    match new_file::write(file, &archive::encode(&files), args.force) {
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
