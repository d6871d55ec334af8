//! `state show`: what is in a state folder.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::FolderArgs;
use crate::state::StateFile;

/// Print what is in a state folder; needs no key
///
/// What the files say of themselves is believed if they are undamaged. Only `verify` with the key finds out whether
/// sealed ones are what their owner wrote.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    folder: FolderArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    /// The TPMs' identity, if a file says one.
    identity: Option<String>,
    blobs: Vec<ShownBlob>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShownBlob {
    file: String,
    tpm_version: String,
    blob: String,
    file_bytes: usize,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case", untagged)]
enum Content {
    #[serde(rename_all = "kebab-case")]
    Undamaged {
        format: u32,
        sealed: bool,
        payload_bytes: usize,
        generation: u64,
        identity: Option<String>,
        /// RFC 3339, UTC.
        written: Option<String>,
    },
    Refused {
        refused: String,
    },
}

pub(super) fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let files = args.folder.open()?.files()?;
    let blobs: Vec<_> = files.iter().map(ShownBlob::new).collect();
    let identity = blobs.iter().find_map(|blob| match &blob.content {
        Content::Undamaged { identity, .. } => identity.clone(),
        Content::Refused { .. } => None,
    });
    let shown = Shown { identity, blobs };
    let text = if args.json { serde_json::to_string_pretty(&shown)? + "\n" } else { shown.text() };
    io::stdout().write_all(text.as_bytes()).context("cannot print")?;
    Ok(ExitCode::SUCCESS)
}

impl ShownBlob {
    fn new(file: &StateFile) -> Self {
        let content = match file.inspect() {
            Ok(undamaged) => Content::Undamaged {
                format: undamaged.format,
                sealed: undamaged.is_sealed(),
                payload_bytes: undamaged.payload_length(),
                generation: undamaged.label.generation,
                identity: undamaged.label.identity.map(|identity| identity.to_string()),
                written: undamaged.label.written.and_then(rfc_3339),
            },
            Err(error) => Content::Refused { refused: error.to_string() },
        };
        Self {
            file: file.name(),
            tpm_version: file.version.to_string(),
            blob: file.blob.to_string(),
            file_bytes: file.bytes.len(),
            content,
        }
    }
}

impl Shown {
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = match &self.identity {
            Some(identity) => writeln!(text, "identity {identity}"),
            None if self.blobs.is_empty() => writeln!(text, "no TPM: the next server makes a new one"),
            None => writeln!(text, "no identity yet: the next write gives it one"),
        };
        for ShownBlob { file, tpm_version, blob, content, .. } in &self.blobs {
            let _ = match content {
                Content::Undamaged { sealed, payload_bytes, generation, written, .. } => writeln!(
                    text,
                    "TPM {tpm_version} {blob}: {payload_bytes} bytes, generation {generation}, {}, written {}",
                    if *sealed { "sealed" } else { "not sealed" },
                    written.as_deref().unwrap_or("at an unknown time"),
                ),
                Content::Refused { refused } => writeln!(text, "{file}: {refused}"),
            };
        }
        text
    }
}

fn rfc_3339(time: SystemTime) -> Option<String> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let time = jiff::Timestamp::from_second(i64::try_from(since.as_secs()).ok()?).ok()?;
    Some(time.to_string())
}
