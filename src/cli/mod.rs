//! The command line: what it accepts, and what it makes of it. One file a subcommand.

mod access_args;
mod activation;
mod backend_args;
mod capabilities;
mod config_file;
mod describe;
mod device_args;
mod doctor;
mod event_log;
mod inherited;
mod key_args;
mod latency_args;
mod log_args;
mod manual;
mod measure_args;
mod misuse;
mod ppi_args;
mod ready;
mod register_args;
mod run;
mod sandbox_args;
mod serve;
mod signals;
mod spawner;
mod state;
mod status;
mod trace_args;
mod worker;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;

use log_args::start_log;

/// A virtual TPM in a process of its own, served to a virtual machine over vfio-user.
///
/// Without a subcommand, serves the TPM in the foreground until it gets SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, max_term_width = 100)]
#[command(arg(capabilities::flag()))]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Describe(describe::DescribeArgs),
    State(state::StateArgs),
    Log(event_log::LogArgs),
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    #[command(hide = true)]
    Manual(manual::ManualArgs),
    #[command(hide = true)]
    Completions(manual::CompletionsArgs),
    #[command(flatten)]
    Inner(Inner),
}

/// What the program starts itself as.
#[derive(Debug, Subcommand)]
enum Inner {
    #[command(hide = true)]
    Launch(run::LaunchArgs),
    #[command(hide = true)]
    Spawner(spawner::SpawnerArgs),
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
}

/// The command line of these alone: what is built of the whole one stays in the memory of a process, and each server has
/// two of them.
#[derive(Debug, Parser)]
struct InnerCli {
    #[command(subcommand)]
    command: Inner,
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    if capabilities::are_asked_for(std::env::args_os()) {
        let printed = writeln!(std::io::stdout(), "{}", capabilities::json());
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.get(1).and_then(|first| first.to_str()).is_some_and(Inner::has_subcommand) {
        return end(InnerCli::parse().command.run());
    }
    let matches = config_file::parse(Cli::command(), &arguments);
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        None => serve::run(cli.serve).map(|()| ExitCode::SUCCESS),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Describe(args)) => describe::run(args).map(|()| ExitCode::SUCCESS),
        Some(Command::State(args)) => state::run(args),
        Some(Command::Log(args)) => event_log::run(&args),
        Some(Command::Status(args)) => Ok(status::run(&args)),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Manual(args)) => manual::manual(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Completions(args)) => manual::completions(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Inner(inner)) => inner.run(),
    };
    end(result)
}

impl Inner {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Launch(args) => run::launch(&args),
            Self::Spawner(args) => spawner::run(args).map(|()| ExitCode::SUCCESS),
            Self::Worker(args) => worker::run(&args).map(|()| ExitCode::SUCCESS),
        }
    }
}

/// Says what has failed.
fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    let code = result.unwrap_or_else(|error| {
        log_args::tell_failure(&error);
        misuse::exit_code(&error)
    });
    log::logger().flush();
    code
}

/// Whether the program takes these arguments, the first of which is its name. For fuzzing: nothing else needs to know
/// without acting upon it.
#[doc(hidden)]
pub fn check(arguments: impl IntoIterator<Item = OsString>) -> Result<(), clap::Error> {
    Cli::try_parse_from(arguments).map(drop)
}

/// Parses a log level, with a message that lists them.
fn log_level() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .try_map(|level| level.parse::<LevelFilter>())
}

#[cfg(test)]
mod tests {
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
    fn what_the_program_starts_itself_as_has_a_command_line_of_its_own() {
        for arguments in [&["worker", "--log-level", "warn"][..], &["launch", "--", "qemu"]] {
            assert!(Inner::has_subcommand(arguments[0]));
            assert!(InnerCli::try_parse_from([&["vfio-user-tpm"], arguments].concat()).is_ok(), "{arguments:?}");
        }
        assert!(!Inner::has_subcommand("run") && InnerCli::try_parse_from(["vfio-user-tpm", "run"]).is_err());
    }

    #[test]
    fn subcommands_need_no_socket_to_serve_on() {
        assert!(Cli::try_parse_from(["vfio-user-tpm", "worker"]).is_ok());
    }
}
