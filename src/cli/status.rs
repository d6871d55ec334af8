//! `status`: asks a server how its TPM is.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;

use crate::control::{Asked, ask};
use crate::status::{FORMAT, Report, legible};

/// Ask a server how its TPM is
///
/// The server has to be started with --control; only its user and root are answered. The exit status is 0 if the TPM works,
/// 1 if it has failed or does not run yet, and 2 if nothing answers.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The server's control socket
    #[arg(long, value_name = "PATH")]
    control: PathBuf,

    /// Print JSON; with --watch, a line each time
    #[arg(long, group = "form")]
    json: bool,

    /// Print Prometheus' text format
    #[arg(long, group = "form")]
    prometheus: bool,

    /// Print nothing: only the exit status tells
    #[arg(long, group = "form", conflicts_with = "watch")]
    quiet: bool,

    /// Ask again and again, after as many seconds, until it is interrupted or nothing answers
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
        value_parser = seconds)]
    watch: Option<Duration>,
}

/// The TPM has failed, or does not run yet.
const FAILED: u8 = 1;
/// Nothing answers.
const NO_ANSWER: u8 = 2;

/// How a TPM is, as it was told.
struct Told {
    text: String,
    works: bool,
}

pub(super) fn run(args: &StatusArgs) -> ExitCode {
    loop {
        let told = match args.tell() {
            Ok(told) => told,
            Err(error) => {
                // It may name what another process has said.
                let _ = writeln!(io::stderr(), "vfio-user-tpm: {}", legible(&format!("{error:#}")));
                return ExitCode::from(NO_ANSWER);
            }
        };
        let code = if told.works { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
        // Who reads it has had enough.
        if args.print(&told.text).is_err() {
            return code;
        }
        match args.watch {
            Some(pause) => thread::sleep(pause),
            None => return code,
        }
    }
}

impl StatusArgs {
    fn tell(&self) -> anyhow::Result<Told> {
        if self.prometheus {
            let text = self.ask("/metrics")?.body;
            // Asked once, so that both are of one moment.
            let works = text.lines().any(|line| line == "vfio_user_tpm_works 1");
            return Ok(Told { text, works });
        }
        if self.quiet {
            return Ok(Told { text: String::new(), works: self.ask("/health")?.status == 200 });
        }
        let json = self.ask("/status")?.body;
        let report = report(&json)?;
        let text = match (self.json, self.watch) {
            (false, _) => report.to_string(),
            (true, Some(_)) => json,
            (true, None) => {
                // What this program does not know of it is printed, too.
                let value: serde_json::Value = serde_json::from_str(&json)?;
                format!("{value:#}\n")
            }
        };
        Ok(Told { text, works: report.tpm.works })
    }

    /// The answer of the server to what every server with a control socket can answer.
    fn ask(&self, resource: &str) -> anyhow::Result<Asked> {
        let asked = ask(&self.control, resource).with_context(|| self.control.display().to_string())?;
        match asked.status {
            // Of these, the second is only for a TPM that does not work.
            200 | 503 => Ok(asked),
            status => bail!(
                "{}: the server answers {status} to {resource}: is it another version of this program?",
                self.control.display()
            ),
        }
    }

    fn print(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let is_page = self.watch.is_some() && !self.json;
        if is_page && out.is_terminal() {
            // Home, and clear what is there.
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        out.write_all(legible(text).as_bytes())?;
        if is_page && !out.is_terminal() {
            out.write_all(b"\n")?;
        }
        out.flush()
    }
}

/// Reads a report, if it has the form that this program knows.
fn report(json: &str) -> anyhow::Result<Report> {
    #[derive(serde::Deserialize)]
    struct Form {
        format: u32,
    }
    let Form { format } = serde_json::from_str(json).context("the server's answer is no report")?;
    if format != FORMAT {
        bail!(
            "the server's report has format {format}, and this program knows {FORMAT}: use the program of the server's \
             version, or ask it over HTTP (docs/control.md)"
        );
    }
    serde_json::from_str(json).map_err(|error| anyhow!("the server's report lacks something: {error}"))
}

/// A pause that is none would keep the server busy.
fn seconds(text: &str) -> Result<Duration, String> {
    let pause = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let limits = Duration::from_millis(100)..=Duration::from_secs(86400);
    pause.filter(|pause| limits.contains(pause)).ok_or_else(|| "seconds were expected, 0.1 to 86400".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn args(more: &[&str]) -> Option<StatusArgs> {
        let all = ["vfio-user-tpm", "status", "--control=/c"].iter().chain(more);
        match Cli::try_parse_from(all).ok()?.command {
            Some(Command::Status(args)) => Some(args),
            _ => None,
        }
    }

    #[test]
    fn it_can_be_asked_for_again_in_sensible_intervals() {
        assert_eq!(args(&[]).unwrap().watch, None);
        assert_eq!(args(&["--watch"]).unwrap().watch, Some(Duration::from_secs(2)));
        assert_eq!(args(&["--watch=0.5", "--json"]).unwrap().watch, Some(Duration::from_millis(500)));
        for refused in [&["--watch=0"][..], &["--watch=-1"], &["--watch=NaN"], &["--watch=1e9"], &["--watch", "5"]] {
            assert!(args(refused).is_none(), "{refused:?}");
        }
    }

    #[test]
    fn it_has_one_form() {
        assert!(args(&["--json", "--prometheus"]).is_none());
        assert!(args(&["--quiet", "--watch"]).is_none());
        assert!(args(&["--prometheus", "--watch"]).is_some());
    }

    #[test]
    fn a_report_of_another_form_is_told_with_what_to_do() {
        for (json, says) in [("{\"format\": 2}", "format 2"), ("{\"format\": 1}", "lacks"), ("{}", "no report")] {
            let error = format!("{:#}", report(json).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
