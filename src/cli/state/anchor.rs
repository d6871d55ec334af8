//! `state anchor`: what a rollback anchor is to believe.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::FolderArgs;
use crate::cli::key_args::KeyArgs;
use crate::state::check_together;

/// Let a rollback anchor accept the state that is there
///
/// Without --force, only what a server would accept: the anchor is created, or brought up to a newer state.
#[derive(Debug, Args)]
pub(super) struct AnchorArgs {
    #[command(flatten)]
    folder: FolderArgs,

    #[command(flatten)]
    keys: KeyArgs,

    /// Accept an older state, another one, or an anchor that is damaged or has another key
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &AnchorArgs) -> anyhow::Result<ExitCode> {
    if !args.keys.has_anchor() {
        bail!("say with --rollback-anchor where the anchor is to be");
    }
    let folder = args.folder.open()?;
    if args.force {
        args.keys.protect_with_any_anchor(folder)?.anchor_anew()?;
    } else {
        let folder = args.keys.protect(folder)?;
        check_together(&folder.files()?)?;
        // What is newer is taken up by reading it.
        folder.contents()?;
    }
    Ok(ExitCode::SUCCESS)
}
