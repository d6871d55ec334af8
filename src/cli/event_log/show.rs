//! `log show`: the events of a log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{FileArgs, print};
use crate::measure::Hex;
use crate::measure::event_log::{EventLog, Format, describe};

/// Print the events of an event log
///
/// What the log says is printed as it says it, and may be wrong: see `log replay`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    file: FileArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    format: &'static str,
    /// The specification's version, of a crypto-agile log.
    specification: Option<String>,
    banks: Vec<String>,
    events: Vec<ShownEvent>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownEvent {
    number: usize,
    pcr: u32,
    r#type: String,
    type_number: u32,
    /// Whether the PCR was extended.
    extends: bool,
    digests: BTreeMap<String, String>,
    description: String,
    data: String,
    #[serde(skip)]
    data_bytes: usize,
}

pub(super) fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let shown = Shown::new(&args.file.read()?);
    print(&if args.json { serde_json::to_string_pretty(&shown)? + "\n" } else { shown.text() })?;
    Ok(ExitCode::SUCCESS)
}

impl Shown {
    fn new(log: &EventLog) -> Self {
        let (format, specification) = match &log.format {
            Format::Sha1 => ("sha1", None),
            Format::CryptoAgile(id) => {
                let version = format!("{}.{} errata {}", id.version_major, id.version_minor, id.errata);
                ("crypto-agile", Some(version))
            }
        };
        let events = log.events.iter().enumerate().map(|(index, event)| ShownEvent {
            number: log.number(index),
            pcr: event.pcr,
            r#type: event.event_type.to_string(),
            type_number: event.event_type.0,
            extends: event.extends(),
            digests: event.digests.iter().map(|one| (one.bank.to_string(), Hex(&one.value).to_string())).collect(),
            description: describe(event),
            data: Hex(&event.data).to_string(),
            data_bytes: event.data.len(),
        });
        let banks = log.banks().iter().map(ToString::to_string).collect();
        Self { format, specification, banks, events: events.collect() }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let specification = self.specification.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "format {}{specification}, banks {}", self.format, self.banks.join(", "));
        for event in &self.events {
            let _ = write!(text, "event {}: PCR {}, {}", event.number, event.pcr, event.r#type);
            let _ = match event.data_bytes {
                0 => writeln!(text),
                bytes => writeln!(text, ", {bytes} bytes: {}", event.description),
            };
            for (bank, digest) in event.digests.iter().filter(|_| event.extends) {
                let _ = writeln!(text, "  {bank:<8} {digest}");
            }
        }
        text
    }
}
