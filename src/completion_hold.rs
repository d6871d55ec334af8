//! How long the word "still busy" is held back from a guest.
//!
//! A driver that reads it sleeps, Linux's for a millisecond, while most commands are done in a tenth of that. So the answer
//! waits until the command has ended, or until the time for that is used up: once for each command, since a VMM may have all
//! of the guest's CPUs wait for one access.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// The time that the answers to one command may be held back, and how much of it is left.
#[derive(Debug)]
pub struct CompletionHold {
    budget: Duration,
    /// When it is used up; `None` if no command runs or it is used up already.
    until: Option<Instant>,
    /// Something is held back.
    holds: bool,
}

impl CompletionHold {
    /// With this much time for each command, from its start on; zero for not at all.
    #[must_use]
    pub fn new(budget: Duration) -> Self {
        Self { budget, until: None, holds: false }
    }

    /// A command begins to run.
    pub fn begin(&mut self, now: Instant) {
        self.until = if self.budget.is_zero() { None } else { now.checked_add(self.budget) };
        self.holds = false;
    }

    /// No command runs any more.
    pub fn end(&mut self) {
        self.until = None;
        self.holds = false;
    }

    /// Whether an answer is to be held back now. If so, [`deadline`](Self::deadline) says until when.
    pub fn holds(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.holds = self.until.is_some();
        self.holds
    }

    /// Takes note of the time: once it is used up, nothing is held back any more.
    pub fn expire(&mut self, now: Instant) {
        if self.until.is_some_and(|until| until <= now) {
            self.end();
        }
    }

    /// When what is held back is to be answered at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.until.filter(|_| self.holds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_held_back_without_a_command() {
        let mut hold = CompletionHold::new(BUDGET);
        assert!(!hold.holds(Instant::now()));
        assert_eq!(hold.deadline(), None);
    }

    #[test]
    fn a_command_has_one_budget_however_often_it_is_asked_for() {
        let (mut hold, start) = (CompletionHold::new(BUDGET), Instant::now());
        hold.begin(start);
        assert_eq!(hold.deadline(), None, "nobody has asked yet");
        assert!(hold.holds(start));
        assert_eq!(hold.deadline(), Some(start + BUDGET));
        assert!(hold.holds(start + BUDGET / 2));
        assert_eq!(hold.deadline(), Some(start + BUDGET));
        assert!(!hold.holds(start + BUDGET));
        assert_eq!(hold.deadline(), None);
        assert!(!hold.holds(start), "what is used up does not come back");
    }

    #[test]
    fn the_next_command_has_a_budget_of_its_own() {
        let (mut hold, start) = (CompletionHold::new(BUDGET), Instant::now());
        hold.begin(start);
        hold.end();
        assert!(!hold.holds(start));
        hold.begin(start + BUDGET);
        assert!(hold.holds(start + BUDGET));
    }

    #[test]
    fn a_budget_of_zero_holds_nothing_back() {
        let (mut hold, start) = (CompletionHold::new(Duration::ZERO), Instant::now());
        hold.begin(start);
        assert!(!hold.holds(start));
    }
}
