//! `state verify`: whether stored state is whole.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::exported;
use crate::cli::key_args::KeyArgs;
use crate::state::{StateFile, StateFolder, check_together};

/// Read all of a state and check that it is whole and undamaged
///
/// Every change by accident is found. With the key, so is every change on purpose to a sealed state; with the rollback
/// anchor, an older state in the place of the newest. The exit status is 0 if all is well.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    what: What,

    #[command(flatten)]
    keys: KeyArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Folder with the TPM's state
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Exported state
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let (files, folder, key) = match (&args.what.state_dir, &args.what.file) {
        (Some(path), _) => {
            let folder = args.keys.protect(StateFolder::open_existing(path)?)?;
            (folder.files()?, Some(folder), None)
        }
        (None, Some(_)) if args.keys.has_anchor() => bail!(
            "--rollback-anchor goes with --state-dir: an exported state may be older than the one that runs, and is held \
             against the anchor when it is imported"
        ),
        (None, Some(path)) => (exported::read(path)?, None, args.keys.key()?),
        (None, None) => (Vec::new(), None, None),
    };
    let key = folder.as_ref().map_or(key.as_ref(), StateFolder::key);
    let mut good = true;
    for file in &files {
        // Without a key a seal cannot be tried, and all else can be found out.
        let sealed = file.inspect().is_ok_and(|undamaged| undamaged.is_sealed());
        let checked = if sealed && key.is_none() { file.inspect().map(drop) } else { file.open(key).map(drop) };
        match checked {
            Ok(()) => print(
                file,
                if sealed && key.is_none() { "undamaged; no key was given to try its seal" } else { "good" },
            )?,
            Err(error) => {
                good = false;
                log::error!("{error}");
            }
        }
    }
    if good {
        check_together(&files)?;
        folder.map_or(Ok(()), |folder| folder.check_anchor(&files))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(file: &StateFile, found: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{}: {found}", file.name()).context("cannot print")
}
