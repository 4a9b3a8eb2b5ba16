//! A histogram of durations that any thread may add to: fixed bounds, relaxed counters, no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds in nanoseconds, and the same in seconds as Prometheus' `le` says them. Half a decade apart: wide enough for
/// a fork's microseconds and a timeout's minutes in few lines a function.
pub const BOUNDS: [(u64, &str); 14] = [
    (10_000, "0.00001"),
    (30_000, "0.00003"),
    (100_000, "0.0001"),
    (300_000, "0.0003"),
    (1_000_000, "0.001"),
    (3_000_000, "0.003"),
    (10_000_000, "0.01"),
    (30_000_000, "0.03"),
    (100_000_000, "0.1"),
    (300_000_000, "0.3"),
    (1_000_000_000, "1"),
    (3_000_000_000, "3"),
    (10_000_000_000, "10"),
    (30_000_000_000, "30"),
];

/// See the module.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One a bound, and one for what is above the last.
    counts: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram at one moment, more or less: counters are read one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How many were at most as long as each bound; the last is how many there were.
    pub cumulative: [u64; BOUNDS.len() + 1],
    /// All durations together.
    pub sum_ns: u64,
}

impl Histogram {
    /// Adds one duration.
    pub fn observe(&self, ns: u64) {
        let at = BOUNDS.partition_point(|(bound, _)| *bound < ns);
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What there is by now.
    pub fn snapshot(&self) -> Snapshot {
        let mut sum = 0;
        let cumulative = std::array::from_fn(|at| {
            sum += self.counts[at].load(Ordering::Relaxed);
            sum
        });
        Snapshot { cumulative, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

impl Snapshot {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.cumulative[BOUNDS.len()]
    }

    /// The bound that this part of them (0 to 1) does not pass, in nanoseconds; what lies above all bounds counts as
    /// the last. `None`: there were none.
    pub fn quantile_ns(&self, part: f64) -> Option<u64> {
        let count = self.count();
        let rank = (part * count as f64).ceil().max(1.0) as u64;
        let at = self.cumulative.iter().position(|sum| *sum >= rank).unwrap_or(BOUNDS.len() - 1);
        (count > 0).then(|| BOUNDS[at.min(BOUNDS.len() - 1)].0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_their_bucket_and_the_words_say_the_same() {
        let histogram = Histogram::default();
        for (bound, _) in BOUNDS {
            histogram.observe(bound);
        }
        histogram.observe(u64::MAX >> 1);
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.cumulative.to_vec(), (1..=BOUNDS.len() as u64 + 1).collect::<Vec<_>>());
        for (ns, seconds) in BOUNDS {
            let said: f64 = seconds.parse().expect("a number");
            assert_eq!((said * 1e9).round() as u64, ns, "{seconds}");
        }
    }

    #[test]
    fn quantiles_are_bounds() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile_ns(0.5), None);
        for _ in 0..99 {
            histogram.observe(50_000);
        }
        histogram.observe(2_000_000);
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.quantile_ns(0.5), Some(100_000));
        assert_eq!(snapshot.quantile_ns(0.99), Some(100_000));
        assert_eq!(snapshot.quantile_ns(1.0), Some(3_000_000));
        assert_eq!(snapshot.sum_ns, 99 * 50_000 + 2_000_000);
    }
}
