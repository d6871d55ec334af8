//! The arguments that say what is captured of the TPM's commands and responses.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap::builder::RangedU64ValueParser;

use crate::tpm::TpmVersion;
use crate::trace::{TraceFile, TraceOptions, Tracer};

/// 1 TiB.
const MAX_LIMIT: u64 = 1 << 20;

#[derive(Clone, Debug, Args)]
pub(super) struct TraceArgs {
    /// Write the TPM's commands and responses into this file, for Wireshark, with zeros for what may be secret. One that is
    /// there has to be empty, or a FIFO with a reader; else the TPM starts without a trace
    #[arg(long = "trace-pcap", value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Largest size of that file, in MiB. The trace ends there
    #[arg(long = "trace-limit", default_value_t = 64, value_name = "MIB",
          value_parser = RangedU64ValueParser::<u64>::new().range(1..=MAX_LIMIT))]
    limit: u64,

    /// Write the guest's secrets into that file, too: passwords, keys that leave the TPM, what is sealed or stored in it
    #[arg(long = "trace-secrets", requires = "pcap")]
    secrets: bool,
}

impl TraceArgs {
    /// Opens the file, if there is to be one. A service that is started again finds the last trace there: that must not cost the
    /// guest its TPM.
    pub(super) fn open(&self) -> anyhow::Result<Option<TraceFile>> {
        match self.pcap.as_deref().map(TraceFile::open).transpose() {
            Err(error) if error.is_of_the_moment() => {
                log::error!("there is no trace this time, and the TPM starts without: {error}");
                Ok(None)
            }
            opened => Ok(opened?),
        }
    }

    /// Begins the trace; without a file, there is none.
    pub(super) fn start(&self, file: Option<TraceFile>, version: TpmVersion) -> anyhow::Result<Tracer> {
        let (Some(file), Some(path)) = (file, &self.pcap) else { return Ok(Tracer::default()) };
        let options = TraceOptions { limit: self.limit << 20, with_secrets: self.secrets };
        let tracer = Tracer::start(file, version, options).context("cannot start a thread for the trace")?;
        if self.secrets {
            log::warn!(
                "commands and responses are written to {} WITH THE GUEST'S SECRETS (--trace-secrets)",
                path.display()
            );
        } else {
            log::info!("commands and responses are written to {}, without what may be secret in them", path.display());
        }
        Ok(tracer)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        trace: TraceArgs,
    }

    fn parse(args: &[&str]) -> Result<TraceArgs, clap::Error> {
        Cli::try_parse_from(["vfio-user-tpm"].iter().chain(args)).map(|cli| cli.trace)
    }

    #[test]
    fn by_default_nothing_is_traced() {
        let args = parse(&[]).unwrap();
        assert!(args.open().unwrap().is_none());
    }

    #[test]
    fn secrets_are_for_a_trace_and_its_limit_has_limits() {
        let error = parse(&["--trace-secrets"]).unwrap_err().to_string();
        assert!(error.contains("--trace-pcap <FILE>"), "{error}");
        assert!(parse(&["--trace-secrets", "--trace-pcap=f"]).is_ok());
        // As in a configuration file, for the day on which a trace is taken.
        assert!(parse(&["--trace-limit=1"]).is_ok());
        for limit in ["0", "-1", "1048577", "1G"] {
            assert!(parse(&["--trace-pcap=f", &format!("--trace-limit={limit}")]).is_err(), "{limit}");
        }
    }
}
