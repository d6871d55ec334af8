//! The arguments that say what is done for a quick answer.

use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

/// Longest hold. The VMM waits meanwhile with all of its CPUs that want something of it.
const MAX_COMPLETION_HOLD: u64 = 5_000;
/// More than this is no moment any more.
const MAX_BUSY_POLL: u64 = 1_000;

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct LatencyArgs {
    /// How long the answer "still busy" is held back in all for each command, in microseconds, since a driver that
    /// reads it sleeps for a millisecond. At most 5000; 0 for not at all
    #[arg(long, default_value_t = 1_000, value_name = "MICROSECONDS",
          value_parser = RangedU64ValueParser::<u64>::new().range(..=MAX_COMPLETION_HOLD))]
    completion_hold: u64,

    /// How long to stay awake after each register access, in microseconds, for the next one to come. At most 1000; 0 for
    /// not at all
    #[arg(long, default_value_t = 50, value_name = "MICROSECONDS",
          value_parser = RangedU64ValueParser::<u64>::new().range(..=MAX_BUSY_POLL))]
    busy_poll: u64,
}

impl LatencyArgs {
    pub(super) fn completion_hold(self) -> Duration {
        Duration::from_micros(self.completion_hold)
    }

    pub(super) fn busy_poll(self) -> Duration {
        Duration::from_micros(self.busy_poll)
    }
}
