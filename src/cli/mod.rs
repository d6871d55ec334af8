//! The command line: what it accepts, and what it makes of it. One file a subcommand.

mod describe;
mod device_args;
mod serve;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use log::LevelFilter;

/// A virtual TPM in a process of its own, served to a virtual machine over vfio-user.
///
/// Without a subcommand, serves the TPM in the foreground until it gets SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Describe(describe::DescribeArgs),
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve::run(cli.serve),
        Some(Command::Describe(args)) => describe::run(args),
        Some(Command::Worker(args)) => worker::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be of no use, and there is nobody else to tell.
            let _ = writeln!(std::io::stderr(), "vfio-user-tpm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Parses a log level, with a message that lists them.
fn log_level() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .try_map(|level| level.parse::<LevelFilter>())
}

/// Log lines go to standard error.
fn start_log(level: LevelFilter) {
    env_logger::Builder::new().filter_level(level).format_target(false).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving_needs_a_socket() {
        let error = Cli::try_parse_from(["vfio-user-tpm"]).unwrap_err().to_string();
        assert!(error.contains("--socket-path"), "{error}");
        assert!(Cli::try_parse_from(["vfio-user-tpm", "--socket-path=/s", "--fd=3"]).is_err());
        assert!(Cli::try_parse_from(["vfio-user-tpm", "--fd=3"]).is_ok());
    }

    #[test]
    fn subcommands_need_no_socket_to_serve_on() {
        assert!(Cli::try_parse_from(["vfio-user-tpm", "worker"]).is_ok());
    }
}
