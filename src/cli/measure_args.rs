//! The flags that say what is measured of a launch.

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::measure::launch::{Launch, LaunchError, Source};

/// What is measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct MeasureArgs {
    /// What to measure of what is launched; repeatable: kernel=PATH, cmdline=STRING and initrd=PATH (into PCR 11, as
    /// systemd-measure calculates it), firmware=PATH (into PCR 0), file:PCR=PATH (PCR 0 to 6, 8 to 15)
    #[arg(long, value_name = "WHAT", value_parser = OsStringValueParser::new().try_map(|text| Source::parse(&text)))]
    measure: Vec<Source>,

    /// Measure the firmware as an H-CRTM does, before TPM2_Startup: PCR 0 then says that it was measured from outside
    #[arg(long, requires = "measure")]
    measure_hcrtm: bool,
}

impl MeasureArgs {
    /// Reads and measures what was named; `None` if nothing was.
    pub(super) fn launch(&self) -> Result<Option<Launch>, LaunchError> {
        if self.measure.is_empty() {
            return Ok(None);
        }
        Launch::measure(&self.measure, self.measure_hcrtm).map(Some)
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
        assert_eq!(args.measure, [cmdline, Source::Section(Section::Kernel, Content::Path("/k".into()))]);
        assert_eq!(parse(&[]).unwrap().launch().unwrap(), None);
    }

    #[test]
    fn nonsense_is_answered_with_what_is_expected() {
        let error = parse(&["--measure=kernle=/k"]).unwrap_err().to_string();
        assert!(error.contains("expected kernel=PATH"), "{error}");
        let error = parse(&["--measure-hcrtm"]).unwrap_err().to_string();
        assert!(error.contains("--measure"), "{error}");
    }
}
