//! A histogram with fixed bounds.

/// The upper bounds of all buckets but the last, in nanoseconds, each bound included. The first hold what needs no key,
/// the middle signatures, the last primary keys; drivers give up after some minutes.
pub const BOUNDS: [u64; 16] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    5_000_000_000,
    30_000_000_000,
];

/// How long commands took.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    below: [u64; BOUNDS.len()],
    above: u64,
    sum: u64,
}

impl Latency {
    /// Counts one, in nanoseconds.
    pub(super) fn count(&mut self, nanoseconds: u64) {
        let bucket = BOUNDS.partition_point(|&bound| bound < nanoseconds);
        let count = self.below.get_mut(bucket).unwrap_or(&mut self.above);
        *count = count.saturating_add(1);
        self.sum = self.sum.saturating_add(nanoseconds);
    }

    /// How many there were in each bucket that has a bound, with that.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        BOUNDS.into_iter().zip(self.below)
    }

    /// How many were above all bounds.
    #[must_use]
    pub fn above(&self) -> u64 {
        self.above
    }

    /// How many there were.
    #[must_use]
    pub fn count_of_all(&self) -> u64 {
        self.below.iter().fold(self.above, |sum, &count| sum.saturating_add(count))
    }

    /// What they took in all, in nanoseconds.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_in_the_first_bucket_whose_bound_it_does_not_pass() {
        let mut latency = Latency::default();
        for nanoseconds in [0, 50_000, 50_001, 30_000_000_000, 30_000_000_001, u64::MAX] {
            latency.count(nanoseconds);
        }
        let filled: Vec<_> = latency.buckets().filter(|&(_, count)| count > 0).collect();
        assert_eq!(filled, [(50_000, 2), (100_000, 1), (30_000_000_000, 1)]);
        assert_eq!((latency.above(), latency.count_of_all(), latency.sum()), (2, 6, u64::MAX));
    }

    #[test]
    fn the_bounds_grow() {
        assert!(BOUNDS.is_sorted_by(|a, b| a < b));
    }
}
