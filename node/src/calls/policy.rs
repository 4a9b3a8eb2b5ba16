//! When a call that failed is tried again, and when it is given up: a pure decision.
//!
//! Exponential backoff with full jitter (Marc Brooker, "Exponential Backoff And Jitter", 2015): the n-th wait is drawn
//! from `[0, min(cap, base * 2^n))`. Drawing from the whole range spreads calls that failed together over all of it,
//! which gets a server that is down back on its feet soonest. A floor of a tenth keeps a draw near 0 from being no wait.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::Period;

/// `[async]` of a manifest, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// How often a failed call is tried again.
    pub retries: u32,
    /// Bounds the wait before the first of these; every further bound is twice the one before.
    pub backoff: Period,
    /// No bound grows beyond this.
    pub backoff_max: Period,
    /// A call that was first due longer ago is given up.
    pub age: Period,
    /// Calls of this function that run at once; 0: as many as it may have instances (a chain: 8).
    pub in_flight: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retries: 3,
            backoff: Period::seconds(1),
            backoff_max: Period::minutes(5),
            age: Period::minutes(24 * 60),
            in_flight: 0,
        }
    }
}

/// What is to be done with a call that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try it again after so long.
    Again(Duration),
    /// It has had its chances.
    GiveUp,
}

impl Policy {
    /// Decides on a call that has failed `failures` times (this one included) and is `age` old. `draw` is uniform in
    /// `[0, 1)`.
    pub fn verdict(&self, failures: u32, age: Duration, draw: f64) -> Verdict {
        if failures > self.retries {
            return Verdict::GiveUp;
        }
        self.unless_too_old(age, self.wait(failures, draw))
    }

    /// The same for a call that found the node overloaded: it had no chance yet, so only its age counts.
    pub fn verdict_on_overload(&self, refusals: u32, age: Duration, draw: f64) -> Verdict {
        self.unless_too_old(age, self.wait(refusals, draw))
    }

    fn unless_too_old(&self, age: Duration, wait: Duration) -> Verdict {
        if age.saturating_add(wait) > self.age.as_duration() { Verdict::GiveUp } else { Verdict::Again(wait) }
    }

    fn wait(&self, nth: u32, draw: f64) -> Duration {
        let doublings = nth.saturating_sub(1).min(40);
        let bound = self.backoff.as_millis().saturating_mul(1 << doublings).min(self.backoff_max.as_millis());
        Duration::from_millis((bound as f64 * (0.1 + 0.9 * draw)).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bounds_double_up_to_the_cap() {
        let policy = Policy { retries: 100, backoff_max: Period::seconds(10), ..Policy::default() };
        let longest = |failures| policy.verdict(failures, Duration::ZERO, 1.0);
        let seconds = |s| Verdict::Again(Duration::from_secs(s));
        assert_eq!([1, 2, 3, 4, 5, 60].map(longest), [1, 2, 4, 8, 10, 10].map(seconds));
    }

    #[test]
    fn it_ends_by_count_and_by_age() {
        let (age, backoff_max) = (Period::seconds(5), Period::seconds(2));
        let policy = Policy { retries: 2, age, backoff_max, ..Policy::default() };
        assert!(matches!(policy.verdict(2, Duration::ZERO, 0.5), Verdict::Again(_)));
        assert_eq!(policy.verdict(3, Duration::ZERO, 0.5), Verdict::GiveUp);
        assert_eq!(policy.verdict(1, Duration::from_secs(6), 0.5), Verdict::GiveUp);
        assert!(matches!(policy.verdict_on_overload(99, Duration::ZERO, 0.0), Verdict::Again(_)));
        assert_eq!(policy.verdict_on_overload(99, Duration::from_secs(6), 0.0), Verdict::GiveUp);
    }

    proptest! {
        #[test]
        fn no_wait_is_zero_or_over_the_cap(nth in 1u32.., draw in 0.0..1.0f64, base in 1u64..1 << 40, cap in 1u64..1 << 40) {
            let policy = Policy {
                retries: u32::MAX,
                backoff: Period::millis(base),
                backoff_max: Period::millis(cap),
                age: Period::millis(u64::MAX),
                in_flight: 0,
            };
            let Verdict::Again(wait) = policy.verdict(nth, Duration::ZERO, draw) else { panic!("given up") };
            prop_assert!(!wait.is_zero() && wait.as_millis() as u64 <= cap);
        }
    }
}
