//! How many single-use instances are kept ready.
//!
//! With `isolation = "request"` each request uses an instance up. If none is ready, the request waits for a fork. How
//! many must be ready so that hardly any does? While one is being replaced, which takes from its request's
//! arrival until its successor is ready (its end and a fork: the *lead time*), others arrive. It is the shop's question
//! how much to keep on the shelf [the base-stock or newsvendor model: Arrow, Harris, Marschak: "Optimal Inventory
//! Policy", Econometrica 1951]. Arrivals during a lead time are about Poisson with mean
//!
//! ```text
//! m = rate x (fork time + end time)          ready = ⌈m + 3 √m⌉, at least 1
//! ```
//!
//! and of a Poisson number's cases less than one in two hundred lies above `m + 3 √m`. That is the headroom for bursts.
//!
//! - The *rate* is the larger of two exponentially weighted ones: over [`FAST_NS`], which follows a rise at once, and
//!   over [`SLOW_NS`], which remembers a burst until the next one may come.
//! - Fork time and end time are exponentially weighted means of what was measured.
//! - A pool without arrivals shrinks by itself: the rates decay, and [`Pool::ready`] falls to 1; whether that one
//!   stays is for [`crate::keepalive`] to say.
//! - How many may be born at the same time is [`Pool::births`]: a fork takes a core for as long as a short request does,
//!   so that refilling must not take more than the cores there are, or it delays the requests it is for.
//!
//! Pure: the caller brings the time. The bounds by `scale.max` and memory are the caller's.

/// Time constant of the rate that follows a rise.
pub const FAST_NS: u64 = 500_000_000;
/// Time constant of the rate that remembers a burst.
pub const SLOW_NS: u64 = 15_000_000_000;
/// What is kept beyond the mean, in standard deviations.
const DEVIATIONS: f64 = 3.0;
/// One measurement of a time weighs so much.
const WEIGHT: f64 = 1.0 / 16.0;
/// One measurement counts as at most this: a stalled fork isn't remembered for minutes.
const TIME_MAX_NS: u64 = 1_000_000_000;

/// What is known of one function's arrivals.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    fast: Rate,
    slow: Rate,
    birth_ns: Option<f64>,
    end_ns: Option<f64>,
}

/// An exponentially weighted rate of events that are told of in batches.
#[derive(Clone, Debug, Default)]
struct Rate {
    per_ns: f64,
    at_ns: Option<u64>,
}

impl Rate {
    /// `count` events since the last call.
    fn add(&mut self, count: u64, now_ns: u64, constant_ns: u64) {
        let faded = self.at(now_ns, constant_ns);
        self.per_ns = faded + count as f64 / constant_ns as f64;
        self.at_ns = Some(self.at_ns.map_or(now_ns, |at_ns| at_ns.max(now_ns)));
    }

    fn at(&self, now_ns: u64, constant_ns: u64) -> f64 {
        let age_ns = self.at_ns.map_or(0, |at_ns| now_ns.saturating_sub(at_ns));
        self.per_ns * (-(age_ns as f64) / constant_ns as f64).exp()
    }
}

fn learn(mean_ns: &mut Option<f64>, took_ns: u64) {
    let took_ns = took_ns.min(TIME_MAX_NS) as f64;
    *mean_ns = Some(mean_ns.map_or(took_ns, |mean_ns| mean_ns + (took_ns - mean_ns) * WEIGHT));
}

impl Pool {
    /// Takes in that `count` requests have come since the last call.
    pub fn arrived(&mut self, count: u64, now_ns: u64) {
        self.fast.add(count, now_ns, FAST_NS);
        self.slow.add(count, now_ns, SLOW_NS);
    }

    /// Takes in how long a birth took: from the wish to readiness.
    pub fn born(&mut self, took_ns: u64) {
        learn(&mut self.birth_ns, took_ns);
    }

    /// Takes in how long an end took: from the last answer until its place is free.
    pub fn ended(&mut self, took_ns: u64) {
        learn(&mut self.end_ns, took_ns);
    }

    /// Requests per second.
    pub fn per_second(&self, now_ns: u64) -> f64 {
        self.fast.at(now_ns, FAST_NS).max(self.slow.at(now_ns, SLOW_NS)) * 1e9
    }

    /// How long a birth takes.
    pub fn birth_ns(&self) -> u64 {
        self.birth_ns.unwrap_or(0.0) as u64
    }

    /// From a request until the instance that it used up has been replaced.
    pub fn lead_ns(&self) -> u64 {
        (self.birth_ns.unwrap_or(0.0) + self.end_ns.unwrap_or(0.0)) as u64
    }

    /// How many instances should be idle.
    pub fn ready(&self, now_ns: u64) -> u32 {
        let mean = self.per_second(now_ns) * self.lead_ns() as f64 / 1e9;
        let wanted = (mean + DEVIATIONS * mean.sqrt()).ceil();
        // (A float beyond the largest u32 becomes that.)
        (wanted as u32).max(1)
    }

    /// How many of `missing` births may begin while `under_way` others are, on so many `cores`. Those that requests
    /// wait for (`waiting`) aren't held back by those that are made ahead.
    pub fn births(missing: u32, waiting: u32, under_way: u32, cores: u32) -> u32 {
        let room = cores.max(1).max(waiting).saturating_sub(under_way);
        missing.min(room)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn after(per_second: u64, seconds: u64, lead_ns: u64) -> (Pool, u64) {
        let mut pool = Pool::default();
        pool.born(lead_ns / 2);
        pool.ended(lead_ns / 2);
        let count = per_second * seconds;
        let mut now_ns = 0;
        for n in 1..=count {
            now_ns = n * 1_000_000_000 / per_second;
            pool.arrived(1, now_ns);
        }
        (pool, now_ns)
    }

    #[test]
    fn the_rate_is_what_came() {
        let (pool, now_ns) = after(50, 120, 4 * MS);
        let rate = pool.per_second(now_ns);
        assert!((48.0..55.0).contains(&rate), "{rate}");
    }

    #[test]
    fn as_many_are_ready_as_come_in_a_lead_time_and_some_more() {
        // 0.2 in a lead time, and 3 x 0.45 more
        let (pool, now_ns) = after(50, 60, 4 * MS);
        assert_eq!(pool.ready(now_ns), 2);
        // 4, and 3 x 2 more
        let (pool, now_ns) = after(1000, 60, 4 * MS);
        assert!((10..=12).contains(&pool.ready(now_ns)), "{}", pool.ready(now_ns));
    }

    #[test]
    fn a_burst_is_remembered_and_forgotten() {
        let (pool, now_ns) = after(1000, 10, 4 * MS);
        let soon = pool.ready(now_ns + 5_000_000_000);
        let late = pool.ready(now_ns + 300_000_000_000);
        assert!(soon >= 4, "{soon}");
        assert_eq!(late, 1);
    }

    #[test]
    fn a_rise_is_followed_within_half_a_second() {
        let mut pool = Pool::default();
        pool.born(4 * MS);
        for n in 0..250 {
            pool.arrived(1, n * 2 * MS);
        }
        assert!(pool.per_second(500 * MS) > 250.0, "{}", pool.per_second(500 * MS));
    }

    #[test]
    fn births_are_held_back_unless_somebody_waits() {
        assert_eq!(Pool::births(10, 0, 0, 2), 2);
        assert_eq!(Pool::births(10, 0, 2, 2), 0);
        assert_eq!(Pool::births(10, 6, 2, 2), 4);
        assert_eq!(Pool::births(3, 6, 0, 2), 3);
    }

    proptest! {
        #[test]
        fn more_arrivals_never_make_a_smaller_pool(
            gaps in prop::collection::vec((0u64..5_000 * MS, 0u64..100), 1..100),
            lead_ns in 1u64..100 * MS,
        ) {
            let mut few = Pool::default();
            let mut many = Pool::default();
            for pool in [&mut few, &mut many] {
                pool.born(lead_ns);
            }
            let mut now_ns = 0;
            for (gap_ns, count) in gaps {
                now_ns += gap_ns;
                few.arrived(count, now_ns);
                many.arrived(count + 1, now_ns);
                prop_assert!(few.ready(now_ns) <= many.ready(now_ns));
                prop_assert!(few.ready(now_ns) >= 1);
                prop_assert!(few.per_second(now_ns).is_finite());
            }
        }

        #[test]
        fn without_arrivals_it_only_shrinks(
            count in 0u64..1 << 40, lead_ns in 0u64..u64::MAX, steps in prop::collection::vec(0u64..1 << 50, 1..50),
        ) {
            let mut pool = Pool::default();
            pool.born(lead_ns);
            pool.arrived(count, 0);
            let (mut now_ns, mut before) = (0, pool.ready(0));
            for step in steps {
                now_ns += step;
                let ready = pool.ready(now_ns);
                prop_assert!(ready <= before);
                before = ready;
            }
        }
    }
}
