//! `state init`: making a TPM.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use log::LevelFilter;

use super::certificate_args::CertificateArgs;
use crate::cli::device_args::tpm_version;
use crate::cli::key_args::KeyArgs;
use crate::cli::sandbox_args::SandboxArgs;
use crate::cli::worker;
use crate::launch::Program;
use crate::manufacture::aside::Aside;
use crate::manufacture::{Order, Workbench};
use crate::pcr_bank::PcrBank;
use crate::tpm::TpmVersion;
use crate::worker::profile::Profile;

/// Make a TPM with endorsement keys, their certificates, and the PCR banks of choice
///
/// The state folder is made if it is missing, and must not hold a TPM. A TPM that is served without having been made like
/// this has no certificates.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Folder for the TPM's state
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,

    /// Version of the TPM: 2.0 or 1.2
    #[arg(long, default_value = "2.0", value_name = "VERSION", value_parser = tpm_version)]
    tpm_version: TpmVersion,

    /// The PCR banks that the TPM is to have, as in sha256,sha384. Default: all
    #[arg(long, value_name = "BANKS", value_delimiter = ',')]
    pcr_banks: Option<Vec<PcrBank>>,

    /// What of libtpms the TPM is to have: the name of a profile, or a profile in JSON. Needs libtpms 0.10
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,

    #[command(flatten)]
    keys: KeyArgs,

    #[command(flatten)]
    certificates: CertificateArgs,

    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: InitArgs) -> anyhow::Result<ExitCode> {
    if args.tpm_version == TpmVersion::V1_2 {
        let only_2_0 = [("--pcr-banks", args.pcr_banks.is_some()), ("--profile", args.profile.is_some())];
        if let Some((flag, _)) = only_2_0.into_iter().find(|(_, given)| *given) {
            bail!("{flag} is for TPM 2.0: a TPM 1.2 has one bank of PCRs and no profiles");
        }
    }
    // What cannot work comes to light before a CA is made, and nothing of it stays when anything fails.
    let aside = Aside::open(&args.state_dir, |folder| {
        let folder = args.keys.protect(folder)?;
        folder.refuse_taken_anchor()?;
        Ok::<_, anyhow::Error>(folder)
    })?;
    let certifier = args.certificates.certifier()?;
    let order = Order { pcr_banks: args.pcr_banks.as_deref(), certifier: certifier.as_ref() };
    let bench = Workbench { worker: worker(&args.sandbox), version: args.tpm_version, profile: args.profile };
    bench.make(aside.folder()?, &order)?;
    aside.finish()?;
    writeln!(
        io::stdout(),
        "made a TPM {} in {}, {}",
        args.tpm_version,
        args.state_dir.display(),
        super::issuer(certifier.as_ref())
    )
    .context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

/// How the TPM is run that is worked on: by this program.
pub(super) fn worker(sandbox: &SandboxArgs) -> Program {
    worker::program(LevelFilter::Warn, sandbox)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        init: InitArgs,
    }

    #[test]
    fn the_process_of_the_tpm_is_confined_fully_unless_told_otherwise() {
        for (given, expected) in [
            (&[][..], ["--sandbox=full", "--seccomp=kill"]),
            (&["--sandbox=landlock"], ["--sandbox=landlock", "--seccomp=kill"]),
            (&["--sandbox=none", "--seccomp=log"], ["--sandbox=none", "--seccomp=log"]),
        ] {
            let args = [&["init", "--state-dir=/s"], given].concat();
            let program = worker(&Cli::try_parse_from(args).unwrap().init.sandbox);
            assert!(program.arguments.ends_with(&expected.map(Into::into)), "{program:?}");
        }
    }
}
