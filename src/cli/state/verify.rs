//! `state verify`: whether stored state is whole.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::FolderArgs;

/// Read all of a state and check that it is whole and undamaged
///
/// The exit status is 0 if it is.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    folder: FolderArgs,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let files = args.folder.open()?.files()?;
    let mut good = true;
    for file in &files {
        match file.inspect() {
            Ok(_) => writeln!(io::stdout(), "{}: undamaged", file.name()).context("cannot print")?,
            Err(error) => {
                good = false;
                log::error!("{error}");
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
