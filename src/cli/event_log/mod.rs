//! `log`: TCG event logs. One file a command.

mod expect;
mod replay;
mod show;
mod values;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use log::LevelFilter;

use super::start_log;
use crate::measure::event_log::{self, EventLog, MAX_LOG};

/// Look at TCG event logs, and compute the PCR values to expect
///
/// Nothing is started and no TPM is asked.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(show::ShowArgs),
    Replay(replay::ReplayArgs),
    Expect(expect::ExpectArgs),
}

/// The log to look at.
#[derive(Debug, Args)]
struct FileArgs {
    /// File with the event log, of TPM 2.0 or 1.2, as Linux has it in
    /// /sys/kernel/security/tpm0/binary_bios_measurements; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl FileArgs {
    fn read(&self) -> anyhow::Result<EventLog> {
        let name = self.file.display();
        let bytes = if self.file == Path::new("-") {
            read_all(io::stdin().lock())
        } else {
            File::open(&self.file).and_then(read_all)
        };
        let bytes = bytes.with_context(|| format!("cannot read {name}"))?;
        if bytes.len() > MAX_LOG {
            bail!("{name} is larger than any event log: {MAX_LOG} bytes");
        }
        event_log::parse(&bytes).with_context(|| format!("{name} is refused"))
    }
}

/// All, or one byte more than a log may have.
fn read_all(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take((MAX_LOG as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn run(args: &LogArgs) -> anyhow::Result<ExitCode> {
    start_log(LevelFilter::Info);
    match &args.command {
        Command::Show(args) => show::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Expect(args) => expect::run(args),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Who has seen enough, as `head` has, is told no more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print"),
    }
}
