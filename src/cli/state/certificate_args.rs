//! The arguments that say who issues a TPM's certificates and what is in them.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use nix::unistd::geteuid;

use crate::manufacture::ca::Authority;
use crate::manufacture::certificate::{Certifier, PlatformIdentity, Validity};

/// Most characters of a name in a certificate (`ub-common-name` of RFC 5280).
const MAX_NAME: usize = 64;

#[derive(Debug, Args)]
#[command(next_help_heading = "Certificates")]
pub(super) struct CertificateArgs {
    /// Make the endorsement keys, but no certificates for them
    #[arg(
        long,
        conflicts_with_all = ["ca_dir", "ca_key", "ca_cert", "ca_passphrase_file", "vm_name", "certificate_days",
            "platform_manufacturer", "platform_model", "platform_version"]
    )]
    no_certificates: bool,

    /// Private key of the CA that signs: RSA, EC or Ed25519, in PEM
    #[arg(long, value_name = "FILE", requires = "ca_cert", conflicts_with = "ca_dir")]
    ca_key: Option<PathBuf>,

    /// Certificate of that CA, in PEM
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_cert: Option<PathBuf>,

    /// File whose first line is the passphrase of the CA's private key
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_passphrase_file: Option<PathBuf>,

    /// Folder of a local CA, which is made when it is first needed: its key, its certificate for verifiers
    /// (ca-certificate.pem), and the list of what it has issued. Default: /var/lib/vfio-user-tpm/ca for root,
    /// else vfio-user-tpm/ca in $XDG_STATE_HOME or in ~/.local/state
    #[arg(long, value_name = "DIR")]
    ca_dir: Option<PathBuf>,

    /// Name of the virtual machine, for the subject of the certificates. Without one, the subject is empty
    #[arg(long, value_name = "NAME", value_parser = name)]
    vm_name: Option<String>,

    /// How many days the certificates are valid. Default: without end
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=365_000))]
    certificate_days: Option<u32>,

    /// Who makes the platform, for the platform certificate. Default: vfio-user-tpm
    #[arg(long, value_name = "TEXT", value_parser = name)]
    platform_manufacturer: Option<String>,

    /// What the platform is, for the platform certificate. Default: virtual machine
    #[arg(long, value_name = "TEXT", value_parser = name)]
    platform_model: Option<String>,

    /// The platform's version, for the platform certificate. Default: this program's
    #[arg(long, value_name = "TEXT", value_parser = name)]
    platform_version: Option<String>,
}

impl CertificateArgs {
    /// Whether any of them was given.
    pub(super) fn are_given(&self) -> bool {
        let Self {
            no_certificates,
            ca_key,
            ca_cert,
            ca_passphrase_file,
            ca_dir,
            vm_name,
            certificate_days,
            platform_manufacturer,
            platform_model,
            platform_version,
        } = self;
        let paths = [ca_key, ca_cert, ca_passphrase_file, ca_dir];
        let names = [vm_name, platform_manufacturer, platform_model, platform_version];
        *no_certificates
            || certificate_days.is_some()
            || paths.into_iter().any(Option::is_some)
            || names.into_iter().any(Option::is_some)
    }

    /// Who issues the certificates, ready to do so; `None` if there are to be none.
    pub(super) fn certifier(&self) -> anyhow::Result<Option<Certifier>> {
        if self.no_certificates {
            return Ok(None);
        }
        let authority = match (&self.ca_key, &self.ca_cert, &self.ca_dir) {
            (Some(key), Some(certificate), _) => {
                Authority::from_files(key, certificate, self.ca_passphrase_file.as_deref())?
            }
            (_, _, Some(folder)) => Authority::local(folder)?,
            (_, _, None) => Authority::local(&default_folder()?)?,
        };
        let text = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
        Ok(Some(Certifier {
            authority,
            subject: self.vm_name.clone(),
            platform: PlatformIdentity {
                manufacturer: text(&self.platform_manufacturer, env!("CARGO_PKG_NAME")),
                model: text(&self.platform_model, "virtual machine"),
                version: text(&self.platform_version, env!("CARGO_PKG_VERSION")),
            },
            validity: self.certificate_days.map_or(Validity::Unlimited, Validity::Days),
        }))
    }
}

fn default_folder() -> anyhow::Result<PathBuf> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib").join(env!("CARGO_PKG_NAME")).join("ca"));
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    match state {
        Some(state) => Ok(state.join(env!("CARGO_PKG_NAME")).join("ca")),
        None => bail!("neither XDG_STATE_HOME nor HOME says where the local CA is to be: give --ca-dir"),
    }
}

fn name(text: &str) -> Result<String, String> {
    let length = text.chars().count();
    if !(1..=MAX_NAME).contains(&length) || text.chars().any(char::is_control) {
        return Err(format!("expected 1 to {MAX_NAME} characters without control characters"));
    }
    Ok(text.to_owned())
}
