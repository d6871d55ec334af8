//! The flag that says what a guest may have done by physical presence.

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::platform::StartupPolicy;
use crate::ppi::Consent;
use crate::tpm::TpmVersion;

#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct PpiArgs {
    /// What a guest's root may have done to its TPM at the next reset (physical presence), without anybody being asked;
    /// repeatable, or with commas between. TPM 2.0 only [default: none]
    #[arg(long, value_enum, value_name = "OPERATIONS", value_delimiter = ',')]
    ppi_allow: Vec<Allowed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Allowed {
    /// Nothing, but to read what there is
    None,
    /// Clear it: TPM2_Clear, by which the owner's keys and NV indices are gone
    Clear,
    /// Choose its PCR banks
    PcrBanks,
    /// Give it another endorsement seed, by which its certificates are void
    ChangeEps,
    /// All of these
    All,
}

impl PpiArgs {
    /// What the host agrees to; `None` where there is no physical presence: the server has to be the firmware of a TPM 2.0.
    pub(super) fn consent(&self, startup: StartupPolicy, version: TpmVersion) -> anyhow::Result<Option<Consent>> {
        let agreed = self.ppi_allow.iter().fold(Consent::empty(), |sum, allowed| sum | allowed.consent());
        if self.ppi_allow.contains(&Allowed::None) && !agreed.is_empty() {
            bail!("--ppi-allow=none does not go with other operations: give either");
        }
        let why_not = match (startup, version) {
            (StartupPolicy::Clear, TpmVersion::V2_0) => return Ok(Some(agreed)),
            (StartupPolicy::Clear, TpmVersion::V1_2) => "a TPM 1.2 has no physical presence interface here",
            (StartupPolicy::None, _) => "with --startup=none, physical presence is the affair of the guest's firmware",
            (StartupPolicy::Host, _) => {
                "physical presence at the host's TPM is the host's: --backend=passthrough has no such interface"
            }
        };
        match self.ppi_allow.iter().find(|allowed| **allowed != Allowed::None) {
            Some(_) => bail!("--ppi-allow: {why_not}; leave the flag out"),
            None => Ok(None),
        }
    }
}

impl Allowed {
    const fn consent(self) -> Consent {
        match self {
            Self::None => Consent::empty(),
            Self::Clear => Consent::CLEAR,
            Self::PcrBanks => Consent::PCR_BANKS,
            Self::ChangeEps => Consent::CHANGE_EPS,
            Self::All => Consent::all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        ppi: PpiArgs,
    }

    fn consent(args: &[&str], startup: StartupPolicy, version: TpmVersion) -> Result<Option<Consent>, String> {
        let cli = Cli::try_parse_from([&["vfio-user-tpm"], args].concat()).map_err(|error| error.to_string())?;
        cli.ppi.consent(startup, version).map_err(|error| error.to_string())
    }

    #[test]
    fn the_host_agrees_to_nothing_without_being_asked() {
        let consent = |args: &[&str]| consent(args, StartupPolicy::Clear, TpmVersion::V2_0);
        assert_eq!(consent(&[]), Ok(Some(Consent::empty())));
        assert_eq!(consent(&["--ppi-allow=none"]), Ok(Some(Consent::empty())));
        let two = Consent::CLEAR | Consent::PCR_BANKS;
        assert_eq!(consent(&["--ppi-allow=clear,pcr-banks"]), Ok(Some(two)));
        assert_eq!(consent(&["--ppi-allow=clear", "--ppi-allow=pcr-banks"]), Ok(Some(two)));
        assert_eq!(consent(&["--ppi-allow=all"]), Ok(Some(Consent::all())));
        assert_eq!(consent(&["--ppi-allow=change-eps"]), Ok(Some(Consent::CHANGE_EPS)));
    }

    #[test]
    fn contradictions_and_unknown_operations_are_refused() {
        let consent = |args: &[&str]| consent(args, StartupPolicy::Clear, TpmVersion::V2_0).unwrap_err();
        assert!(consent(&["--ppi-allow=none,clear"]).contains("give either"));
        assert!(consent(&["--ppi-allow=5"]).contains("pcr-banks"));
    }

    #[test]
    fn where_there_is_no_physical_presence_nothing_can_be_allowed() {
        for (startup, version, reason) in [
            (StartupPolicy::Clear, TpmVersion::V1_2, "TPM 1.2"),
            (StartupPolicy::None, TpmVersion::V2_0, "--startup=none"),
            (StartupPolicy::Host, TpmVersion::V2_0, "--backend=passthrough"),
        ] {
            assert_eq!(consent(&[], startup, version), Ok(None));
            assert_eq!(consent(&["--ppi-allow=none"], startup, version), Ok(None));
            let error = consent(&["--ppi-allow=clear"], startup, version).unwrap_err();
            assert!(error.contains(reason) && error.contains("leave the flag out"), "{error}");
        }
    }
}
