//! What a TPM command takes in the guest, and what it costs the host.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::dialogue::Work;
use super::processes::CpuTime;
use super::setups::Setup;
use super::statistics::{Summary, microseconds};
use super::subject::{Board, Subject};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Boots of each guest.
    pub(crate) boots: usize,
    /// Measurements of each command in each boot.
    pub(crate) commands: u32,
    /// Commands of each kind in the pass that counts accesses, which is not timed.
    pub(crate) counted: u32,
}

/// Commands of each kind before those that are measured.
const WARM_UP: u32 = 5;

/// What was measured with one setup.
pub(crate) struct Measured {
    pub(crate) setup: Setup,
    pub(crate) works: BTreeMap<Work, Figures>,
    /// Memory of the TPM's processes after each boot's commands, in KiB.
    pub(crate) memory: Vec<u32>,
}

/// What was measured of one command.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) times: Vec<Duration>,
    sleeps: u32,
    cpu: CpuTime,
    /// Bytes of its response.
    pub(crate) response: u32,
    /// Traps, and the commands that caused them.
    traps: Option<(usize, u32)>,
}

impl Figures {
    pub(crate) fn summary(&self) -> Option<Summary> {
        Summary::of(&self.times)
    }

    /// Sleeps a command.
    pub(crate) fn sleeps(&self) -> f64 {
        f64::from(self.sleeps) / self.count()
    }

    /// CPU time a command in microseconds: QEMU's, and that of the TPM's processes.
    pub(crate) fn cpu(&self) -> (f64, f64) {
        (microseconds(self.cpu.qemu) / self.count(), microseconds(self.cpu.tpm) / self.count())
    }

    /// Traps a command; `None` if QEMU traces nothing, as one that is built without that does.
    pub(crate) fn traps(&self) -> Option<f64> {
        let (traps, commands) = self.traps.filter(|(traps, _)| *traps > 0)?;
        Some(f64::from(u32::try_from(traps).ok()?) / f64::from(commands))
    }

    fn count(&self) -> f64 {
        u32::try_from(self.times.len()).map_or(f64::INFINITY, f64::from)
    }
}

/// Boots a guest with each setup in turn, again and again, so that a noisy machine disturbs all alike.
#[track_caller]
pub(crate) fn measure(setups: &[Setup], accel: &'static str, plan: Plan, archive: &Path) -> Vec<Measured> {
    let mut all: Vec<Measured> = setups.iter().map(Measured::new).collect();
    for boot in 0..plan.boots {
        for measured in &mut all {
            let tpm = measured.setup.start();
            let mut subject = Subject::boot(&tpm, Board { accel, cpus: 1, append: measured.setup.append() }, archive);
            measured.time(&mut subject, plan.commands);
            if boot == 0 {
                measured.count_traps(&mut subject, plan.counted);
            }
            subject.quit();
            println!("bench: {accel}, boot {} of {}: {measured}", boot + 1, plan.boots);
        }
    }
    all
}

impl Measured {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self { setup: setup.clone(), works: BTreeMap::new(), memory: Vec::new() }
    }

    /// Measures this many of each command.
    #[track_caller]
    pub(crate) fn time(&mut self, subject: &mut Subject, commands: u32) {
        for work in Work::ALL {
            subject.time(work, WARM_UP);
            let (timed, cpu) = subject.time(work, commands);
            let figures = self.works.entry(work).or_default();
            figures.times.extend(timed.times);
            figures.sleeps += timed.sleeps;
            figures.response = timed.response;
            figures.cpu += cpu;
        }
        self.memory.extend(subject.tpm_memory());
    }

    /// Counts the traps of this many of each command, which costs too much time to measure that as well.
    #[track_caller]
    pub(crate) fn count_traps(&mut self, subject: &mut Subject, commands: u32) {
        for work in Work::ALL {
            let traps = subject.count_traps(work, commands);
            self.works.entry(work).or_default().traps = Some((traps, commands));
        }
    }
}

impl fmt::Display for Measured {
    /// The medians so far, in microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.setup.title())?;
        let mut summaries = self.works.values().filter_map(Figures::summary);
        summaries.try_for_each(|summary| write!(f, " {:.0}", microseconds(summary.median)))
    }
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn figures_are_per_command() {
        let figures = Figures {
            times: vec![Duration::from_micros(10); 4],
            sleeps: 2,
            cpu: CpuTime { qemu: Duration::from_micros(20), tpm: Duration::from_micros(4) },
            response: 44,
            traps: Some((120, 10)),
        };
        assert_eq!(figures.summary().map(|summary| summary.median), Some(Duration::from_micros(10)));
        assert_eq!((figures.sleeps(), figures.cpu(), figures.traps()), (0.5, (5.0, 1.0), Some(12.0)));
        assert_eq!(Figures { traps: Some((0, 10)), ..figures }.traps(), None);
    }
}
