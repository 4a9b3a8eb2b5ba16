//! Where a function's instances run: on the core where the request landed, or wherever there is room.
//!
//! Waking a process on another core costs some 20 µs, on the same core less than 4 (FACTS in the design
//! notes; `cargo xtask bench ipc` measures it again). A function that runs for less than what it costs to
//! reach the other core is best run at home: the gateway has nothing to do meanwhile. A longer one should
//! not: it would keep the gateway's core from the next request while another core may be idle. SRPT says the
//! same: a job that is nearly done goes first, and moving it costs more than it has left.
//!
//! The decision follows an exponentially weighted mean of the time from a descriptor's leaving to its
//! answer's coming. Two thresholds keep it from flapping, and a function has to prove itself short.

/// Time on the wall, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallNs(pub u64);

/// Where instances should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// On the core of the gateway worker that they serve.
    Home,
    /// On any core.
    Free,
}

/// At home below this mean.
pub const HOME_BELOW: WallNs = WallNs(250_000);
/// Free above this mean.
pub const FREE_ABOVE: WallNs = WallNs(600_000);
/// Observations before the first decision.
const PROVING: u32 = 8;
/// One observation weighs 1/16.
const WEIGHT_SHIFT: u32 = 4;
/// One observation counts as at most this, so that a single stall isn't remembered for minutes.
const OBSERVATION_MAX: WallNs = WallNs(10_000_000);

/// What is known of one function.
#[derive(Clone, Debug)]
pub struct Placement {
    mean_ns: u64,
    seen: u32,
    advice: Advice,
}

impl Default for Placement {
    fn default() -> Self {
        Self { mean_ns: 0, seen: 0, advice: Advice::Free }
    }
}

impl Placement {
    /// Takes in one finished invocation; returns the advice when it has changed.
    pub fn observe(&mut self, took: WallNs) -> Option<Advice> {
        let took_ns = took.min(OBSERVATION_MAX).0;
        if self.seen == 0 {
            self.mean_ns = took_ns;
        } else {
            self.mean_ns = self.mean_ns - (self.mean_ns >> WEIGHT_SHIFT) + (took_ns >> WEIGHT_SHIFT);
        }
        self.seen = self.seen.saturating_add(1);
        if self.seen < PROVING {
            return None;
        }
        let advice = match self.advice {
            Advice::Free if self.mean_ns < HOME_BELOW.0 => Advice::Home,
            Advice::Home if self.mean_ns > FREE_ABOVE.0 => Advice::Free,
            same => same,
        };
        (advice != self.advice).then(|| {
            self.advice = advice;
            advice
        })
    }

    /// The advice now.
    pub fn advice(&self) -> Advice {
        self.advice
    }

    /// The mean that it rests on.
    pub fn mean(&self) -> WallNs {
        WallNs(self.mean_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(observations: impl IntoIterator<Item = u64>) -> Placement {
        let mut placement = Placement::default();
        for ns in observations {
            placement.observe(WallNs(ns));
        }
        placement
    }

    #[test]
    fn a_function_proves_itself_short_first() {
        assert_eq!(after([10_000; 7]).advice(), Advice::Free);
        assert_eq!(after([10_000; 8]).advice(), Advice::Home);
    }

    #[test]
    fn a_long_function_never_goes_home() {
        assert_eq!(after([5_000_000; 1000]).advice(), Advice::Free);
    }

    #[test]
    fn one_stall_sends_a_short_function_out_and_it_comes_back() {
        let mut placement = after([10_000; 100]);
        assert_eq!(placement.observe(WallNs(60_000_000_000)), Some(Advice::Free));
        let back = (0..200).find(|_| placement.observe(WallNs(10_000)) == Some(Advice::Home));
        assert!(back.is_some());
    }

    #[test]
    fn between_the_thresholds_nothing_changes() {
        let mut home = after([10_000; 100]);
        let mut free = after([5_000_000; 100]);
        for _ in 0..1000 {
            assert_eq!(home.observe(WallNs(400_000)), None);
        }
        let changes = (0..1000).filter(|_| free.observe(WallNs(400_000)).is_some()).count();
        assert_eq!((home.advice(), free.advice(), changes), (Advice::Home, Advice::Free, 0));
    }
}
