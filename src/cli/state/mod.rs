//! `state`: looking at stored state, checking and moving it. One file a command.

mod anchor;
mod certificate_args;
mod clone;
mod export;
mod exported;
mod import;
mod init;
mod rekey;
mod show;
mod swtpm;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use log::LevelFilter;

use super::start_log;
use crate::manufacture::certificate::Certifier;
use crate::sandbox::forbid_inspection;
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
    Init(init::InitArgs),
    Clone(clone::CloneArgs),
    Show(show::ShowArgs),
    Verify(verify::VerifyArgs),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    Rekey(rekey::RekeyArgs),
    Anchor(anchor::AnchorArgs),
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
    // Keys and secrets are in this process too, for a moment.
    forbid_inspection().context("cannot keep other processes from looking into this one")?;
    match args.command {
        Command::Init(args) => init::run(args),
        Command::Clone(args) => clone::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Rekey(args) => rekey::run(&args),
        Command::Anchor(args) => anchor::run(&args),
    }
}

/// Who has issued a TPM's certificates, for people.
fn issuer(certifier: Option<&Certifier>) -> String {
    certifier.map_or_else(
        || "without certificates".to_owned(),
        |certifier| format!("its certificates issued by {}", certifier.authority.name()),
    )
}
