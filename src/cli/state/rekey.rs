//! `state rekey`: another key, or the first, or none.

use std::process::ExitCode;

use clap::Args;

use super::FolderArgs;
use crate::cli::key_args::{KeyArgs, NewKeyArgs};

/// Seal a TPM's state with another key
///
/// The flags --key-file and --key-fd give the key that it has now; a state that is not sealed yet has none. The rollback
/// anchor moves to the new key too. After an interruption the state is under one of the two keys as a whole: run the same
/// again. What was written before may still be found on the disk, and copies of the state keep their old key.
#[derive(Debug, Args)]
pub(super) struct RekeyArgs {
    #[command(flatten)]
    folder: FolderArgs,

    #[command(flatten)]
    keys: KeyArgs,

    #[command(flatten)]
    new: NewKeyArgs,
}

pub(super) fn run(args: &RekeyArgs) -> anyhow::Result<ExitCode> {
    let new = args.new.key(&args.keys)?;
    // The anchor may be under either key.
    args.keys.protect_with_any_anchor(args.folder.open()?)?.rekey(new.as_ref())?;
    Ok(ExitCode::SUCCESS)
}
