//! The hidden subcommand `launch`: becomes the program that `run` is to start.
//!
//! `run` takes its signals from a descriptor and has them blocked for that, and a new process inherits what is blocked.
//! With this step in between, QEMU begins with no signal blocked, and a signal that comes too early waits for it.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Args;
use nix::sys::signal::SigSet;

/// Its name.
pub(super) const SUBCOMMAND: &str = "launch";

/// No such program, and one that cannot be started, as shells say it.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Becomes another program; not for people.
#[derive(Debug, Args)]
pub(in crate::cli) struct LaunchArgs {
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Returns only if the program cannot be started.
pub(in crate::cli) fn launch(args: &LaunchArgs) -> anyhow::Result<ExitCode> {
    let [program, arguments @ ..] = &*args.command else { return Ok(ExitCode::FAILURE) };
    SigSet::empty().thread_set_mask()?;
    let error = Command::new(program).args(arguments).exec();
    let _ = writeln!(io::stderr(), "vfio-user-tpm: cannot start {program:?}: {error}");
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }))
}
