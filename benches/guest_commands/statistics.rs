//! Medians and their like.

use std::time::Duration;

/// What is said of many times: by nearest rank, so that each is one that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) median: Duration,
    /// 99 of 100 are not longer.
    pub(crate) p99: Duration,
}

impl Summary {
    /// `None` of no times.
    pub(crate) fn of(times: &[Duration]) -> Option<Self> {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        Some(Self { median: percentile(&sorted, 50)?, p99: percentile(&sorted, 99)? })
    }
}

/// The smallest value that is not exceeded by this many in a hundred.
fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The median; `None` of no values.
pub(crate) fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(|a, b| a.partial_cmp(b).expect("comparable values"));
    percentile(&sorted, 50)
}

pub(crate) fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_times_the_median_is_the_fiftieth_and_p99_the_last_but_one() {
        let times: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        let summary = Summary { median: Duration::from_micros(50), p99: Duration::from_micros(99) };
        assert_eq!(Summary::of(&times), Some(summary));
    }

    #[test]
    fn of_few_times_each_is_one_of_them() {
        let time = Duration::from_millis(3);
        assert_eq!(Summary::of(&[time]), Some(Summary { median: time, p99: time }));
        assert_eq!(Summary::of(&[time, 2 * time]), Some(Summary { median: time, p99: 2 * time }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_median_is_found_in_any_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4, 3, 2, 1]), Some(2));
        assert_eq!(median::<u32>(&[]), None);
    }
}
