//! The flags that say what is measured of a launch.

use std::ffi::OsString;

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
    #[arg(long, value_name = "WHAT", value_parser = OsStringValueParser::new().try_map(Measured::parse))]
    measure: Vec<Measured>,

    /// Measure the firmware as an H-CRTM does, before TPM2_Startup: PCR 0 then says that it was measured from outside
    #[arg(long, requires = "measure")]
    measure_hcrtm: bool,
}

/// One value of `--measure`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Measured {
    /// As it was given.
    text: OsString,
    /// None for what QEMU's command line names.
    source: Option<Source>,
}

impl Measured {
    fn parse(text: OsString) -> Result<Self, SourceError> {
        let source = if text == "auto" { None } else { Some(Source::parse(&text)?) };
        Ok(Self { text, source })
    }
}

impl MeasureArgs {
    /// Whether anything is to be measured.
    pub(super) fn any(&self) -> bool {
        !self.measure.is_empty()
    }

    /// If `auto` is among it: the flags for the rest.
    pub(super) fn besides_auto(&self) -> Option<Vec<OsString>> {
        let named = self.measure.iter().filter(|measured| measured.source.is_some());
        (self.measure.len() > named.clone().count()).then(|| {
            let flag = |measured: &Measured| {
                let mut flag = OsString::from("--measure=");
                flag.push(&measured.text);
                flag
            };
            named.map(flag).collect()
        })
    }

    /// Reads and measures what was named; `None` if nothing was.
    ///
    /// # Errors
    /// If that cannot be measured, or is `auto`.
    pub(super) fn launch(&self) -> anyhow::Result<Option<Launch>> {
        if !self.any() {
            return Ok(None);
        }
        let source = |measured: &Measured| match &measured.source {
            Some(source) => Ok(source.clone()),
            None => bail!(
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
        let sources: Vec<_> = args.measure.iter().filter_map(|measured| measured.source.clone()).collect();
        assert_eq!(sources, [cmdline, kernel]);
        assert_eq!(parse(&[]).unwrap().launch().unwrap(), None);
    }

    #[test]
    fn automatic_is_for_who_knows_what_is_launched() {
        let args = parse(&["--measure=auto"]).unwrap();
        assert_eq!(args.besides_auto(), Some(vec![]));
        let args = parse(&["--measure=cmdline=a", "--measure", "auto", "--measure=file:9=b"]).unwrap();
        assert_eq!(args.besides_auto().unwrap(), ["--measure=cmdline=a", "--measure=file:9=b"]);
        assert_eq!(parse(&["--measure=cmdline=auto"]).unwrap().besides_auto(), None);
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
