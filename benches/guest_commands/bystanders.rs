//! What a busy TPM costs the rest of the machine: QEMU answers a trapped access with its big lock held, on which disks and
//! the monitor wait as well.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::dialogue::Done;
use super::setups::Setup;
use super::subject::{Board, Subject};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Boots of each guest.
    pub(crate) boots: usize,
    /// How long its disk is used in each boot while nobody uses the TPM, in milliseconds.
    pub(crate) idle: u32,
    /// The same while the TPM works all the time.
    pub(crate) busy: u32,
}

/// What was seen with one setup.
pub(crate) struct Observed {
    pub(crate) setup: Setup,
    /// While nobody used the TPM.
    pub(crate) idle: Load,
    /// While it worked all the time.
    pub(crate) busy: Load,
}

#[derive(Debug, Default)]
pub(crate) struct Load {
    done: Done,
    milliseconds: u32,
    /// How long QEMU's monitor took for each answer.
    pub(crate) answers: Vec<Duration>,
}

impl Load {
    /// Reads and writes of the disk in a second.
    pub(crate) fn disk_rate(&self) -> f64 {
        self.rate(self.done.disk)
    }

    /// TPM commands in a second.
    pub(crate) fn tpm_rate(&self) -> f64 {
        self.rate(self.done.tpm)
    }

    fn rate(&self, count: u32) -> f64 {
        f64::from(count) * 1e3 / f64::from(self.milliseconds)
    }

    fn add(&mut self, milliseconds: u32, (done, answers): (Done, Vec<Duration>)) {
        self.done.disk += done.disk;
        self.done.tpm += done.tpm;
        self.milliseconds += milliseconds;
        self.answers.extend(answers);
    }
}

/// Boots a guest with two CPUs with each setup in turn, again and again.
#[track_caller]
pub(crate) fn observe(setups: &[Setup], accel: &'static str, plan: Plan, archive: &Path) -> Vec<Observed> {
    let mut all: Vec<Observed> = setups.iter().map(Observed::new).collect();
    for boot in 0..plan.boots {
        for observed in &mut all {
            let tpm = observed.setup.start();
            let mut subject = Subject::boot(&tpm, Board { accel, cpus: 2, append: "" }, archive);
            observed.observe(&mut subject, plan);
            subject.quit();
            println!("bench: {accel}, bystanders, boot {} of {}: {observed}", boot + 1, plan.boots);
        }
    }
    all
}

impl Observed {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self { setup: setup.clone(), idle: Load::default(), busy: Load::default() }
    }

    /// Looks at one boot.
    #[track_caller]
    pub(crate) fn observe(&mut self, subject: &mut Subject, plan: Plan) {
        self.idle.add(plan.idle, subject.load(plan.idle, false));
        self.busy.add(plan.busy, subject.load(plan.busy, true));
    }
}

impl fmt::Display for Observed {
    /// What was seen so far.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (idle, busy) = (self.idle.disk_rate(), self.busy.disk_rate());
        write!(f, "{}: disk {idle:.0}/s, with a busy TPM {busy:.0}/s", self.setup.title())
    }
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_all_boots() {
        let mut load = Load::default();
        load.add(500, (Done { disk: 100, tpm: 7 }, vec![Duration::from_micros(1)]));
        load.add(1500, (Done { disk: 200, tpm: 3 }, vec![Duration::from_micros(2)]));
        assert_eq!((load.disk_rate(), load.tpm_rate(), load.answers.len()), (150.0, 5.0, 2));
    }
}
