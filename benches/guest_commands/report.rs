//! The figures as a document.

use std::fmt::{self, Write};

use super::bystanders::{Load, Observed};
use super::dialogue::Work;
use super::latency::{Figures, Measured};
use super::plot::{Plot, Series};
use super::statistics::{Summary, median, microseconds};
use super::table::Table;

/// All that a run has measured.
pub(crate) struct Report {
    pub(crate) facts: Vec<(&'static str, String)>,
    pub(crate) has_kvm: bool,
    pub(crate) accelerators: Vec<Accelerator>,
}

/// What was measured under one of QEMU's accelerators.
pub(crate) struct Accelerator {
    /// As in `-accel`.
    pub(crate) name: &'static str,
    pub(crate) latency: Vec<Measured>,
    pub(crate) bystanders: Vec<Observed>,
}

/// Where there is no figure.
const NONE: &str = "–";

impl Accelerator {
    /// Name of the file with its plot.
    pub(crate) fn plot_file(&self) -> String {
        format!("benchmark-{}.svg", self.name)
    }

    /// The medians as bars.
    pub(crate) fn plot(&self) -> Plot {
        let median = |measured: &Measured, work| {
            let summary = measured.works.get(&work).and_then(Figures::summary);
            summary.map_or(0.0, |summary| microseconds(summary.median))
        };
        let series = |measured: &Measured| Series {
            name: measured.setup.title(),
            values: Work::ALL.iter().map(|work| median(measured, *work)).collect(),
        };
        Plot {
            title: format!("A TPM command in the guest under {}, median", self.name.to_uppercase()),
            unit: "microseconds, logarithmic".into(),
            groups: Work::ALL.map(|work| work.title().to_owned()).into(),
            series: self.latency.iter().map(series).collect(),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.to_uppercase();
        let title = self.plot().title;
        writeln!(f, "## Commands, under {name}\n\n![{title}]({})\n", self.plot_file())?;
        for work in Work::ALL {
            self.write_work(f, work)?;
        }
        self.write_memory(f)?;
        self.write_bystanders(f)
    }

    fn write_work(&self, f: &mut fmt::Formatter<'_>, work: Work) -> fmt::Result {
        let reference = self.latency.iter().find(|measured| measured.setup.is_reference());
        let reference = reference.and_then(|measured| measured.works[&work].summary());
        let mut table =
            Table::new(["TPM", "median, µs", "p99, µs", "ratio", "traps", "sleeps", "CPU, µs", "of it QEMU"]);
        for measured in &self.latency {
            let figures = &measured.works[&work];
            let Some(Summary { median, p99 }) = figures.summary() else { continue };
            let (qemu, tpm) = figures.cpu();
            table.row(vec![
                measured.setup.title(),
                format!("{:.0}", microseconds(median)),
                format!("{:.0}", microseconds(p99)),
                or_none(reference.map(|reference| median.as_secs_f64() / reference.median.as_secs_f64()), 2),
                or_none(figures.traps(), 1),
                format!("{:.2}", figures.sleeps()),
                format!("{:.0}", qemu + tpm),
                format!("{qemu:.0}"),
            ]);
        }
        let figures = self.latency.first().map(|measured| &measured.works[&work]);
        let (count, response) = figures.map_or((0, 0), |figures| (figures.times.len(), figures.response));
        writeln!(f, "{}: response of {response} bytes, {count} commands\n\n{table}", work.title())
    }

    fn write_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["TPM", "memory, KiB"]);
        for measured in &self.latency {
            let memory = median(&measured.memory).map_or(NONE.to_owned(), |memory| memory.to_string());
            table.row(vec![measured.setup.title(), memory]);
        }
        writeln!(f, "Memory of the TPM's processes\n\n{table}")
    }

    fn write_bystanders(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new([
            "TPM",
            "disk/s, TPM idle",
            "disk/s, busy",
            "query µs, TPM idle",
            "p99",
            "query µs, busy",
            "p99",
            "commands/s",
        ]);
        for Observed { setup, idle, busy } in &self.bystanders {
            let mut row = vec![setup.title(), format!("{:.0}", idle.disk_rate()), format!("{:.0}", busy.disk_rate())];
            let summaries = [idle, busy].map(|Load { answers, .. }| Summary::of(answers));
            let times = summaries.into_iter().flat_map(|summary| [summary.map(|s| s.median), summary.map(|s| s.p99)]);
            row.extend(times.map(|time| or_none(time.map(microseconds), 0)));
            row.push(format!("{:.0}", busy.tpm_rate()));
            table.row(row);
        }
        writeln!(f, "## Bystanders, under {}\n\n{BYSTANDERS}\n\n{table}", self.name.to_uppercase())
    }
}

const INTRODUCTION: &str = "\
# Benchmark

What a TPM command takes in a guest, with QEMU's own TPM devices and with ours. `./bench` measures and writes this page and
its plots anew; `./bench --quick` only tries that out, and writes to `target/bench`. Figures are from one run, in which
guests with each TPM were booted in turn, several times, so that a noisy machine disturbed all alike. Ratios carry over
to other machines better than times.

A program in the guest (one CPU, Linux) writes the command to `/dev/tpm0` and reads the response. `ratio` is to the
median of QEMU's tpm-crb with swtpm. `traps` are the register accesses that QEMU has traced for a command, counted apart.
`sleeps` is how often the program's thread gave up its CPU during a command: the driver polls, and sleeps between. `CPU` is
what QEMU and the TPM's processes of the host have spent on a command. Memory is that of the TPM's processes without QEMU,
shared pages in parts (Pss). swtpm is the same program everywhere, and has the libtpms with which ours is built; all have
their state on disk.
";

const BYSTANDERS: &str = "\
A guest with two CPUs. One writes to and reads from a virtio disk, 4 KiB at a time and past its cache: operations a second.
The other leaves the TPM alone, or runs all the commands above one after the other without a pause: commands a second.
Meanwhile the host asks QEMU's monitor for `query-status`, again and again: median and p99 in µs.";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{INTRODUCTION}")?;
        for (name, fact) in &self.facts {
            writeln!(f, "- {name}: {fact}")?;
        }
        writeln!(f, "- KVM: {}", if self.has_kvm { "yes" } else { "boots no guest here" })?;
        for accelerator in &self.accelerators {
            f.write_char('\n')?;
            accelerator.write(f)?;
        }
        Ok(())
    }
}

fn or_none(value: Option<f64>, decimals: usize) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.decimals$}"))
}
