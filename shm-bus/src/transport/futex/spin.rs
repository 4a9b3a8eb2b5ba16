//! Whether to spin before sleeping, learned while running.
//!
//! Measured (FACTS.md, "Waking another process"): a wake-up across cores costs some 20 µs, so spinning that
//! long instead wins two orders of magnitude if the message comes in that time, and at worst doubles the
//! cost. On the same core spinning only keeps the sender from running, and costs its whole length.
//!
//! So: never when the sender was last seen on this core. Else for at most
//! [`SPIN`], and how often depends on how it went: each success makes the next attempts surer, each failure
//! rarer, down to one in 256 waits, so that an instance that gets work now and then doesn't burn a core.
//! (The rent-or-buy argument of Karlin et al., "Empirical studies of competitive spinning", 1991, with a
//! success counter instead of a distribution.)

use std::time::Duration;

/// How long at most: about what a wake-up costs.
pub(super) const SPIN: Duration = Duration::from_micros(25);
const CREDIT_MAX: i8 = 8;
const CREDIT_MIN: i8 = -8;

/// What was learned.
#[derive(Debug, Default)]
pub(super) struct Spin {
    /// Above 0: always. Below: once in 2^-credit waits.
    credit: i8,
    skipped: u32,
}

impl Spin {
    /// Whether to spin now.
    pub(super) fn should(&mut self, own_cpu: u32, sender_cpu: u32) -> bool {
        if own_cpu == sender_cpu {
            return false;
        }
        if self.credit < 0 {
            self.skipped += 1;
            if self.skipped < 1 << -self.credit {
                return false;
            }
            self.skipped = 0;
        }
        true
    }

    /// How it went.
    pub(super) fn learn(&mut self, arrived: bool) {
        let step = if arrived { 2 } else { -1 };
        self.credit = (self.credit + step).clamp(CREDIT_MIN, CREDIT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_on_one_core() {
        let mut spin = Spin::default();
        assert!(!spin.should(1, 1));
        assert!(spin.should(0, 1));
    }

    #[test]
    fn failures_make_it_rare_and_successes_bring_it_back() {
        let mut spin = Spin::default();
        let mut attempts = 0;
        for _ in 0..10_000 {
            if spin.should(0, 1) {
                spin.learn(false);
                attempts += 1;
            }
        }
        assert!((9..=60).contains(&attempts), "{attempts}");
        let waits = (0..).take_while(|_| !spin.should(0, 1)).count();
        assert!(waits < 256);
        (0..5).for_each(|_| spin.learn(true));
        assert!((0..3).all(|_| spin.should(0, 1)));
    }
}
