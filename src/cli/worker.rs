//! The hidden subcommand `worker`: the process in which the TPM runs, started by the server.

use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;
use log::LevelFilter;

use super::log_args::LogArgs;
use super::sandbox_args::SandboxArgs;
use crate::backend::worker::worker_program;
use crate::launch::Program;
use crate::sandbox::close_inherited;
use crate::worker::Holding;

/// Runs the TPM for a server; not for people.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    #[command(flatten)]
    log: LogArgs,

    #[command(flatten)]
    sandbox: SandboxArgs,

    /// What it may be given to hold, whatever the server says that is confined then
    #[arg(long)]
    holds: Option<Holding>,
}

/// This program as a worker that confines itself so.
pub(super) fn program(log_level: LevelFilter, sandbox: &SandboxArgs) -> Program {
    let mut program = worker_program(PathBuf::from("/proc/self/exe"), log_level);
    program.arguments.extend(sandbox.to_args());
    program
}

pub(super) fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    // Whatever the server was started with: it is none of the TPM's business. The log's socket comes after.
    close_inherited()?;
    args.log.start()?;
    crate::worker::run(std::io::stdin().as_fd(), args.sandbox.confinement(), args.holds)?;
    Ok(())
}
