//! Looking for the next event without sleeping, for a moment after an access.
//!
//! A driver works with its registers in bursts: the next access comes within microseconds, and to wake a CPU that sleeps
//! costs more than to serve it. So the event loop stays awake for that long, but only while that turns out to be worth it,
//! and never without an access before.

use std::time::{Duration, Instant};

/// How often in a row it may have been in vain before it rests.
const PATIENCE: u8 = 8;
/// How many accesses it rests then.
const REST: u8 = 64;

/// When to stay awake.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    /// How long to stay awake after an access; zero for never.
    limit: Duration,
    /// Until when to stay awake now.
    until: Option<Instant>,
    /// How often in a row nothing has come.
    misses: u8,
    /// Accesses for which it still rests.
    rest: u8,
}

impl BusyPoll {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, ..Self::default() }
    }

    /// An access was served.
    pub(super) fn note_access(&mut self) {
        if self.limit.is_zero() {
            return;
        }
        if self.rest > 0 {
            self.rest = self.rest.saturating_sub(1);
            return;
        }
        self.until = Instant::now().checked_add(self.limit);
    }

    /// Whether to look again without sleeping; asked after each look in vain.
    pub(super) fn is_awake(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let Some(until) = self.until else { return false };
        if now() < until {
            return true;
        }
        self.until = None;
        self.misses = self.misses.saturating_add(1);
        if self.misses >= PATIENCE {
            (self.misses, self.rest) = (0, REST);
        }
        false
    }

    /// Something came.
    pub(super) fn note_event(&mut self) {
        if self.until.take().is_some() {
            self.misses = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> BusyPoll {
        BusyPoll::new(Duration::from_secs(3600))
    }

    fn much_later() -> Instant {
        Instant::now() + Duration::from_secs(7200)
    }

    #[test]
    fn without_an_access_it_sleeps() {
        assert!(!busy().is_awake(Instant::now));
    }

    #[test]
    fn after_an_access_it_is_awake_until_something_comes_or_the_time_is_over() {
        let mut poll = busy();
        poll.note_access();
        assert!(poll.is_awake(Instant::now));
        poll.note_event();
        assert!(!poll.is_awake(Instant::now));
        poll.note_access();
        assert!(!poll.is_awake(much_later));
        assert!(!poll.is_awake(Instant::now));
    }

    #[test]
    fn it_rests_when_it_does_not_pay_and_tries_again() {
        let mut poll = busy();
        for _ in 0..PATIENCE {
            poll.note_access();
            assert!(!poll.is_awake(much_later));
        }
        for _ in 0..REST {
            poll.note_access();
            assert!(!poll.is_awake(Instant::now));
        }
        poll.note_access();
        assert!(poll.is_awake(Instant::now));
    }

    #[test]
    fn one_success_is_enough_to_go_on() {
        let mut poll = busy();
        for _ in 0..3 {
            for _ in 1..PATIENCE {
                poll.note_access();
                assert!(!poll.is_awake(much_later));
            }
            poll.note_access();
            poll.note_event();
        }
        poll.note_access();
        assert!(poll.is_awake(Instant::now));
    }

    #[test]
    fn a_limit_of_zero_switches_it_off() {
        let mut poll = BusyPoll::default();
        poll.note_access();
        assert!(!poll.is_awake(Instant::now));
    }
}
