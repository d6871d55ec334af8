//! Where log lines go: standard error, in the journal's form if it is the journal's, or the system's log.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Context;
use clap::Args;
use log::{LevelFilter, Log};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::fstat;

use super::log_level;
use crate::log_limit::LimitedLog;
use crate::syslog::{Syslog, severity};

/// Names the journal's socket by the numbers of its device and inode, where a process was started with it as its standard
/// output or error (systemd.exec(5)).
const JOURNAL: &str = "JOURNAL_STREAM";

#[derive(Clone, Debug, Args)]
pub(super) struct LogArgs {
    /// What to log
    #[arg(long, default_value = "info", value_name = "LEVEL", value_parser = log_level())]
    pub(super) log_level: LevelFilter,

    /// Log to the system's log instead of standard error, by its socket
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, require_equals = true, default_missing_value = "/dev/log")]
    syslog: Option<PathBuf>,
}

/// Where the lines of this process go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    /// Standard error, which may be a terminal that other programs write to as well.
    Stream,
    /// Standard error, which is the journal's.
    Journal,
    /// The system's log.
    Syslog,
}

static DESTINATION: OnceLock<Destination> = OnceLock::new();

impl LogArgs {
    /// Starts the log. To be called before this process is confined.
    pub(super) fn start(&self) -> anyhow::Result<()> {
        match &self.syslog {
            None => start_log(self.log_level),
            Some(socket) => {
                let syslog = Syslog::connect(socket, self.log_level);
                let syslog = syslog.with_context(|| {
                    format!("cannot reach the system's log at {}; leave --syslog out", socket.display())
                })?;
                start(Destination::Syslog, syslog, self.log_level);
            }
        }
        Ok(())
    }

    /// The same destination, for another process of this program.
    pub(super) fn destination_args(&self) -> Vec<OsString> {
        let argument = |socket: &PathBuf| {
            let mut argument = OsString::from("--syslog=");
            argument.push(socket);
            argument
        };
        self.syslog.iter().map(argument).collect()
    }
}

/// Starts a log on standard error.
pub(super) fn start_log(level: LevelFilter) {
    // A process in the background of a terminal with `tostop` would be stopped by its first line, and a VM would wait
    // for its TPM. Where the signal is blocked, the line is written.
    let _ = SigSet::from_iter([Signal::SIGTTOU]).thread_block();
    let destination = of_standard_error();
    let mut log = env_logger::Builder::new();
    log.filter_level(level);
    match destination {
        Destination::Journal => log.format(|out, record| {
            let priority = severity(record.level());
            record.args().to_string().lines().try_for_each(|line| writeln!(out, "<{priority}>{line}"))
        }),
        // The program's name is in front of each line.
        _ => log.format(|out, record| {
            let time = out.timestamp();
            writeln!(out, "vfio-user-tpm: [{time} {:5}] {}", record.level(), record.args())
        }),
    };
    start(destination, log.build(), level);
}

fn start(destination: Destination, log: impl Log + 'static, level: LevelFilter) {
    // It fails only where there is a logger already.
    if log::set_boxed_logger(Box::new(LimitedLog::new(log))).is_ok() {
        log::set_max_level(level);
        let _ = DESTINATION.set(destination);
    }
}

fn of_standard_error() -> Destination {
    let named = std::env::var(JOURNAL).unwrap_or_default();
    // It may have been another stream before somebody sent it elsewhere.
    let is_journal = fstat(io::stderr().as_fd()).is_ok_and(|it| format!("{}:{}", it.st_dev, it.st_ino) == named);
    if is_journal { Destination::Journal } else { Destination::Stream }
}

/// Says why the program ends, whatever is to be logged.
pub(super) fn tell_failure(error: &anyhow::Error) {
    let destination = DESTINATION.get().copied().unwrap_or_else(of_standard_error);
    if destination == Destination::Syslog {
        log::error!("{error:#}");
    }
    let text = format!("{error:#}");
    let told = match destination {
        Destination::Journal => text.lines().try_for_each(|line| writeln!(io::stderr(), "<3>{line}")),
        Destination::Stream | Destination::Syslog => writeln!(io::stderr(), "vfio-user-tpm: {text}"),
    };
    // Standard error may be of no use, and there is nobody else to tell.
    let _ = told;
}
