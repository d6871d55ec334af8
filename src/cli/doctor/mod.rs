//! `doctor`: what a new user gets wrong, and what to do about it.
//!
//! A check is a file: `gather` looks, `judge` says what that means, from the facts alone. What is looked at is not changed,
//! not connected to and not kept; and what it says of itself is not believed.

mod host_tpm;
mod kernel;
mod libraries;
mod limits;
mod mount;
mod program;
mod qemu;
mod report;
mod socket;
mod state;
mod surroundings;
mod tpm;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::backend_args::{BackendArgs, BackendConfig};
use super::sandbox_args::SandboxArgs;
use crate::sandbox::forbid_inspection;
use crate::tpm::TpmVersion;
use report::{Finding, Report};
use state::Tenant;

/// What a shell gives for a command line that makes no sense, and clap as well.
const BAD_USAGE: u8 = 2;

/// Check this machine: QEMU, libraries, kernel, limits, state, socket
///
/// Give it the flags that you give the server, and it looks at those things too. Each line says how it is, what was found,
/// and what to do. Nothing is changed: no state, no socket, no TPM of the host; a folder that a server uses can be looked at.
///
/// The exit status is 0 if there is no problem, whatever the warnings; 1 if there is one; 2 if the flags make no sense.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The QEMU to look at [default: qemu-system-x86_64, qemu-kvm or qemu-system-aarch64, where it is found]
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,

    /// The socket that a server is to listen on, or listens on
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    #[command(flatten)]
    backend: BackendArgs,

    #[command(flatten)]
    sandbox: SandboxArgs,

    /// How long another program, or a TPM, may take to answer
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = clap::value_parser!(u16).range(1..=600))]
    patience: u16,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let backend = match args.backend.config() {
        Ok(backend) => backend,
        Err(error) => {
            // Standard error may be of no use, and there is nobody else to tell.
            let _ = writeln!(io::stderr(), "vfio-user-tpm: {error:#}");
            return Ok(ExitCode::from(BAD_USAGE));
        }
    };
    // The key is in this process too, for a moment.
    forbid_inspection().context("cannot keep other processes from looking into this one")?;
    let report = Report::new(examine(args, &backend)?);
    let text = if args.json { report.json() } else { report.text() };
    io::stdout().write_all(text.as_bytes()).context("cannot print")?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All checks, from the machine to the TPM that is to be served.
fn examine(args: &DoctorArgs, backend: &BackendConfig) -> anyhow::Result<Vec<Finding>> {
    let patience = Duration::from_secs(args.patience.into());
    let mut findings = vec![qemu::judge(&qemu::gather(args.qemu.as_deref(), patience))];
    findings.extend(surroundings::judge(&surroundings::gather()));
    findings.extend(kernel::judge(&kernel::gather()));
    findings.push(limits::judge(&limits::gather()));
    findings.push(libraries::judge_libtpms(&libraries::gather_libtpms()));
    for version in [TpmVersion::V2_0, TpmVersion::V1_2] {
        findings.push(tpm::judge(&tpm::gather(version, &args.sandbox, patience)));
    }
    findings.push(match backend {
        BackendConfig::SwtpmAttached { control } => socket::judge_control(&socket::gather_control(control)),
        BackendConfig::SwtpmOwned { program, .. } => {
            libraries::judge_swtpm(&libraries::gather_swtpm(Some(program), patience))
        }
        _ => libraries::judge_swtpm(&libraries::gather_swtpm(None, patience)),
    });
    let host = match backend {
        BackendConfig::Host { tpm_path, .. } => Some(tpm_path.as_path()),
        _ => None,
    };
    findings.extend(host_tpm::judge(&host_tpm::gather(host)));
    let keys = args.backend.keys();
    match backend {
        BackendConfig::Embedded { state_dir: Some(folder), .. } => {
            findings.extend(state::judge(&state::gather(folder, Tenant::Embedded, keys)?));
        }
        BackendConfig::SwtpmOwned { state_dir, .. } => {
            findings.extend(state::judge(&state::gather(state_dir, Tenant::Swtpm, keys)?));
        }
        BackendConfig::Embedded { state_dir: None, .. } => findings
            .push(Finding::ok("state folder", "not given: without --state-dir a TPM is gone when its server ends")),
        BackendConfig::SwtpmAttached { .. } | BackendConfig::Host { .. } => {}
    }
    findings.extend(args.socket_path.as_ref().map(|path| socket::judge(&socket::gather(path))));
    Ok(findings)
}
