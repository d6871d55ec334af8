//! The flags that say what is measured of a launch.

use std::ffi::OsStr;

use anyhow::bail;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::measure::launch::{Launch, Source, SourceError};

/// What is measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct MeasureArgs {
    /// What to measure of what is launched; repeatable: kernel=PATH, cmdline=STRING and initrd=PATH (into PCR 11, as
    /// systemd-measure calculates it), firmware=PATH (into PCR 0), file:PCR=PATH (PCR 0 to 6, 8 to 15); auto with `run`:
    /// what QEMU's command line names
    #[arg(long, value_name = "WHAT", value_parser = OsStringValueParser::new().try_map(|text| Measured::parse(&text)))]
    measure: Vec<Measured>,

    /// Measure the firmware as an H-CRTM does, before TPM2_Startup: PCR 0 then says that it was measured from outside
    #[arg(long, requires = "measure")]
    measure_hcrtm: bool,
}

/// One value of `--measure`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Measured {
    /// What QEMU's command line names.
    Auto,
    Source(Source),
}

impl Measured {
    fn parse(text: &OsStr) -> Result<Self, SourceError> {
        if text == "auto" { Ok(Self::Auto) } else { Source::parse(text).map(Self::Source) }
    }
}

impl MeasureArgs {
    /// Whether anything is to be measured.
    pub(super) fn any(&self) -> bool {
        !self.measure.is_empty()
    }

    /// Reads and measures what was named; `None` if nothing was.
    ///
    /// # Errors
    /// If that cannot be measured, or is `auto`.
    pub(super) fn launch(&self) -> anyhow::Result<Option<Launch>> {
        if !self.any() {
            return Ok(None);
        }
        let source = |measured: &Measured| match measured {
            Measured::Source(source) => Ok(source.clone()),
            Measured::Auto => bail!(
                "--measure auto is for `run`, which knows QEMU's command line; name here what is launched, as in --measure \
                 kernel=PATH"
            ),
        };
        let sources = self.measure.iter().map(source).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Some(Launch::measure(&sources, self.measure_hcrtm)?))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::measure::launch::{Content, Section};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        measure: MeasureArgs,
    }

    fn parse(args: &[&str]) -> Result<MeasureArgs, clap::Error> {
        Cli::try_parse_from([&["vfio-user-tpm"], args].concat()).map(|cli| cli.measure)
    }

    #[test]
    fn each_use_of_the_flag_names_one_thing() {
        let args = parse(&["--measure=cmdline=quiet, ro=1", "--measure", "kernel=/k"]).unwrap();
        let cmdline = Source::Section(Section::CommandLine, Content::Bytes(b"quiet, ro=1".to_vec()));
        let kernel = Source::Section(Section::Kernel, Content::Path("/k".into()));
        assert_eq!(args.measure, [cmdline, kernel].map(Measured::Source));
        assert_eq!(parse(&[]).unwrap().launch().unwrap(), None);
    }

    #[test]
    fn automatic_is_for_who_knows_what_is_launched() {
        let args = parse(&["--measure=auto"]).unwrap();
        assert!(args.any());
        assert!(args.launch().unwrap_err().to_string().contains("for `run`"));
    }

    #[test]
    fn nonsense_is_answered_with_what_is_expected() {
        let error = parse(&["--measure=kernle=/k"]).unwrap_err().to_string();
        assert!(error.contains("expected kernel=PATH"), "{error}");
        let error = parse(&["--measure-hcrtm"]).unwrap_err().to_string();
        assert!(error.contains("--measure"), "{error}");
    }
}
