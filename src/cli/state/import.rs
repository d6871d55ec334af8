//! `state import`: an exported state, or one of swtpm's, into a folder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{exported, swtpm};
use crate::cli::key_args::KeyArgs;
use crate::state::StateFolder;
use crate::state::swtpm::KeySource;

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
    #[arg(value_name = "FILE", required_unless_present = "from_swtpm")]
    file: Option<PathBuf>,

    /// Take the state from this folder of an swtpm instead. Shut its VM down before: of a suspended one, only what a
    /// TPM keeps over a reset is moved. The folder is left as it is
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    from_swtpm: Option<PathBuf>,

    /// Key with which swtpm has encrypted its state, in the words of its option --key: file=PATH or fd=N
    /// [,format=hex|binary], or pwdfile=PATH or pwdfd=N[,kdf=pbkdf2|sha512], and [,mode=aes-128-cbc|aes-256-cbc]
    #[arg(long, value_name = "OPTIONS", requires = "from_swtpm")]
    swtpm_key: Option<KeySource>,

    /// Replace the state that is there; accept it even if the rollback anchor knows a newer one or another
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let open = || {
        let folder = StateFolder::open(&args.state_dir)?;
        if args.force { args.keys.protect_with_any_anchor(folder) } else { args.keys.protect(folder) }
    };
    if let Some(from) = &args.from_swtpm {
        swtpm::import(from, args.swtpm_key.as_ref(), |contents| {
            let folder = open()?;
            folder.replace_contents(contents, args.force)?;
            Ok(folder)
        })?;
    } else if let Some(file) = &args.file {
        let files = exported::read(file)?;
        open()?.replace_all(&files, args.force)?;
    }
    Ok(ExitCode::SUCCESS)
}
