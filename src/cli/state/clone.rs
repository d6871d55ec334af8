//! `state clone`: copying a TPM, as the same or as another one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::FolderArgs;
use super::certificate_args::CertificateArgs;
use super::init::worker;
use crate::cli::key_args::KeyArgs;
use crate::cli::sandbox_args::SandboxArgs;
use crate::manufacture::aside::Aside;
use crate::manufacture::{ManufactureError, Order, Workbench};
use crate::state::{Blob, Contents, Key};
use crate::tpm::TpmVersion;

/// Copy a TPM's state into another folder, as for a copy of its virtual machine
///
/// A plain copy has the same seeds and so the same keys: to a verifier both are one TPM, and what is sealed to the one the
/// other unseals. Use it for moving or for a backup. With --new-identity the copy becomes a TPM of its own: new seeds and
/// endorsement keys with new certificates, no owner, no NV contents; PCR banks and profile stay. What was sealed to the
/// original is lost for it.
///
/// The copy is sealed with the key of the original, if that is; the rollback anchor stays with the original.
#[derive(Debug, Args)]
pub(super) struct CloneArgs {
    #[command(flatten)]
    from: FolderArgs,

    /// Folder for the copy; it is made if it is missing, and must not hold a TPM
    #[arg(value_name = "TO")]
    to: PathBuf,

    #[command(flatten)]
    keys: KeyArgs,

    /// Make the copy another TPM (2.0 only)
    #[arg(long)]
    new_identity: bool,

    #[command(flatten)]
    certificates: CertificateArgs,

    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &CloneArgs) -> anyhow::Result<ExitCode> {
    if !args.new_identity && args.certificates.are_given() {
        bail!("a plain copy keeps its certificates: the flags for certificates need --new-identity");
    }
    let from = args.from.state_dir.as_path();
    if is_same(from, &args.to) {
        bail!("{} cannot be copied into itself", from.display());
    }
    let folder = args.keys.protect(args.from.open()?)?;
    let contents = folder.contents()?;
    let aside = |key: Option<&Key>| Aside::open(&args.to, |to| Ok::<_, ManufactureError>(to.with_key(key.cloned())));
    if contents.iter().all(|stored| stored.blob != Blob::Permanent) {
        return Err(ManufactureError::Empty(from.to_owned()).into());
    }
    let kind = if args.new_identity {
        renew(&contents, || aside(folder.key()), args)?
    } else {
        aside(folder.key())?.fill(&contents)?;
        log::warn!(
            "the copy has the same seeds and keys as the original, the endorsement keys among them: to a verifier they are \
             one TPM. Do not let both run; --new-identity makes a TPM of its own"
        );
        "as the same TPM".to_owned()
    };
    writeln!(io::stdout(), "copied {} to {} {kind}", from.display(), args.to.display()).context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

fn renew(
    contents: &Contents,
    open: impl FnOnce() -> Result<Aside, ManufactureError>,
    args: &CloneArgs,
) -> anyhow::Result<String> {
    let permanent = contents.get(TpmVersion::V2_0, Blob::Permanent);
    let (Some(permanent), false) = (permanent, contents.iter().any(|stored| stored.version == TpmVersion::V1_2)) else {
        return Err(ManufactureError::SameForever.into());
    };
    let aside = open()?;
    let certifier = args.certificates.certifier()?;
    let place = aside.folder()?;
    place.store(TpmVersion::V2_0, Blob::Permanent, permanent)?;
    let order = Order { pcr_banks: None, certifier: certifier.as_ref() };
    let bench = Workbench { worker: worker(&args.sandbox), version: TpmVersion::V2_0, profile: None };
    bench.renew(place, &order)?;
    aside.finish()?;
    Ok(format!("as a new TPM, {}", super::issuer(certifier.as_ref())))
}

/// Whether both are the same folder, which then is there.
fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
