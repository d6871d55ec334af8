//! PCR values, for people and programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::bail;
use clap::Args;

use crate::measure::Hex;
use crate::measure::replay::Replayed;
use crate::pcr_bank::PcrBank;

/// How PCR values are printed.
#[derive(Debug, Args)]
pub(super) struct ValueArgs {
    /// The PCR banks to print, as in sha256,sha384. Default: all
    #[arg(long, value_name = "BANKS", value_delimiter = ',')]
    pub(super) bank: Option<Vec<PcrBank>>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ValueArgs {
    /// The values as they are to be printed: like `tpm2_pcrread`, or an object of objects.
    pub(super) fn text(&self, replayed: &[Replayed]) -> anyhow::Result<String> {
        let there: Vec<_> = replayed.iter().map(|one| one.bank.to_string()).collect();
        if let Some(missing) = self.bank.iter().flatten().find(|bank| replayed.iter().all(|one| one.bank != **bank)) {
            bail!("there is no PCR bank {missing}: expected some of {}", there.join(", "));
        }
        let wanted = |one: &&Replayed| self.bank.as_ref().is_none_or(|banks| banks.contains(&one.bank));
        let replayed: Vec<_> = replayed.iter().filter(wanted).collect();
        if self.json { json(&replayed) } else { Ok(lines(&replayed)) }
    }
}

fn lines(replayed: &[&Replayed]) -> String {
    let mut text = String::new();
    for Replayed { bank, pcrs } in replayed {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{bank}:");
        match pcrs {
            Ok(pcrs) => {
                for (pcr, value) in pcrs {
                    let _ = writeln!(text, "  {pcr:<2}: 0x{}", Hex(value));
                }
            }
            Err(error) => {
                let _ = writeln!(text, "  not known: {error}");
            }
        }
    }
    text
}

/// A bank whose values are not known is null: it must not look like one without any.
fn json(replayed: &[&Replayed]) -> anyhow::Result<String> {
    let values = |one: &&Replayed| {
        let pcrs = one.pcrs.as_ref().ok()?;
        Some(pcrs.iter().map(|(pcr, value)| (*pcr, Hex(value).to_string())).collect::<BTreeMap<_, _>>())
    };
    let banks: BTreeMap<_, _> = replayed.iter().map(|one| (one.bank.to_string(), values(one))).collect();
    Ok(serde_json::to_string_pretty(&banks)? + "\n")
}
