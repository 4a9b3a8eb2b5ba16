//! When requests are due. Pure: time is an argument, in nanoseconds since the run's start.
//!
//! In a closed loop a request is due whenever a connection is free. In an open loop it is due at its
//! arrival time, and from then on it waits in the backlog, oldest first, however late a connection comes free.

use std::collections::VecDeque;
use std::time::Duration;

use crate::random::SplitMix64;

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As fast as the answers come.
    Closed,
    /// At a constant rate, whatever the answers do.
    Constant {
        /// Requests per second.
        per_second: f64,
    },
    /// At random, independent times (exponential gaps), whatever the answers do.
    Poisson {
        /// Requests per second, on average.
        per_second: f64,
        /// The same seed gives the same times.
        seed: u64,
    },
}

/// When a run stops sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    Elapsed(Duration),
    /// After this many requests.
    Requests(u64),
}

/// Hands out requests as they get due.
#[derive(Debug)]
pub struct Pacer {
    open: Option<Arrivals>,
    backlog: VecDeque<u64>,
    backlog_max: usize,
    issued: u64,
    end_ns: u64,
    requests_max: u64,
}

#[derive(Debug)]
struct Arrivals {
    next_ns: f64,
    gap_ns: f64,
    random: Option<SplitMix64>,
    arrived: u64,
}

impl Arrivals {
    fn gap(&mut self) -> f64 {
        self.random.as_mut().map_or(self.gap_ns, |random| random.exponential(self.gap_ns))
    }
}

impl Pacer {
    /// Nothing is due before time 0.
    pub fn new(pace: Pace, until: Until) -> Self {
        let arrivals = |per_second: f64, random| {
            let gap_ns = 1e9 / per_second.max(1e-3);
            let mut arrivals = Arrivals { next_ns: 0.0, gap_ns, random, arrived: 0 };
            arrivals.next_ns = arrivals.gap();
            Some(arrivals)
        };
        let (end_ns, requests_max) = match until {
            Until::Elapsed(time) => (time.as_nanos().min(u128::from(u64::MAX)) as u64, u64::MAX),
            Until::Requests(count) => (u64::MAX, count),
        };
        let open = match pace {
            Pace::Closed => None,
            Pace::Constant { per_second } => arrivals(per_second, None),
            Pace::Poisson { per_second, seed } => arrivals(per_second, Some(SplitMix64::new(seed))),
        };
        Self { open, backlog: VecDeque::new(), backlog_max: 0, issued: 0, end_ns, requests_max }
    }

    /// Moves everything that is due by `now_ns` into the backlog.
    pub fn advance(&mut self, now_ns: u64) {
        while self.next_due().is_some_and(|due| due <= now_ns) {
            let arrivals = self.open.as_mut().expect("only an open loop has a next arrival");
            self.backlog.push_back(arrivals.next_ns as u64);
            arrivals.arrived += 1;
            let gap = arrivals.gap();
            arrivals.next_ns += gap;
        }
        self.backlog_max = self.backlog_max.max(self.backlog.len());
    }

    /// A request that may be sent at `now_ns`: the time from which its latency counts.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due = if self.open.is_some() {
            self.backlog.pop_front()?
        } else if self.issued < self.requests_max && now_ns < self.end_ns {
            now_ns
        } else {
            return None;
        };
        self.issued += 1;
        Some(due)
    }

    /// When the next request gets due that is not in the backlog yet; `None` in a closed loop and at the end.
    pub fn next_due(&self) -> Option<u64> {
        let arrivals = self.open.as_ref()?;
        let due = arrivals.next_ns as u64;
        (due < self.end_ns && arrivals.arrived < self.requests_max).then_some(due)
    }

    /// No request will ever be handed out again.
    pub fn is_over(&self, now_ns: u64) -> bool {
        match self.open {
            Some(_) => self.next_due().is_none() && self.backlog.is_empty(),
            None => self.issued >= self.requests_max || now_ns >= self.end_ns,
        }
    }

    /// The backlog at its longest.
    pub fn backlog_max(&self) -> usize {
        self.backlog_max
    }

    /// What is due and was not handed out.
    pub fn unsent(&self) -> usize {
        self.backlog.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A server with one connection that answers in 1 ms, but stalls for one second at `stall_ns`: runs the
    /// pacer against it on an imagined clock and returns every request's latency in ms.
    fn latencies(pace: Pace, stall_ns: u64) -> Vec<u64> {
        let mut pacer = Pacer::new(pace, Until::Elapsed(Duration::from_secs(2)));
        let (mut now, mut latencies) = (0, Vec::new());
        let mut stalled = false;
        loop {
            pacer.advance(now);
            if let Some(due) = pacer.take(now) {
                now += MS;
                if now >= stall_ns && !stalled {
                    stalled = true;
                    now += 1000 * MS;
                }
                latencies.push((now - due) / MS);
            } else if let Some(next) = pacer.next_due() {
                now = next;
            } else {
                assert!(pacer.is_over(now));
                latencies.sort_unstable();
                return latencies;
            }
        }
    }

    #[test]
    fn an_open_loop_charges_a_stall_to_all_who_came_in_it() {
        // 100 a second for 2 s, of which the server is deaf for 1 s: half of all callers waited, on average
        // half a second.
        let open = latencies(Pace::Constant { per_second: 100.0 }, 500 * MS);
        assert_eq!(open.len(), 199);
        let late = open.iter().filter(|latency| **latency > 2).count();
        assert!((100..=112).contains(&late), "{late}");
        assert!((980..=1001).contains(open.last().unwrap()));
        assert!((400..600).contains(&open[open.len() - late / 2]));
        // The closed loop, for contrast, sees one slow request.
        let closed = latencies(Pace::Closed, 500 * MS);
        assert_eq!(closed.iter().filter(|latency| **latency > 2).count(), 1);
    }

    #[test]
    fn the_backlog_is_counted_and_handed_out_oldest_first() {
        let mut pacer = Pacer::new(Pace::Constant { per_second: 1000.0 }, Until::Requests(5));
        pacer.advance(3 * MS + 1);
        assert_eq!((pacer.unsent(), pacer.backlog_max(), pacer.next_due()), (3, 3, Some(4 * MS)));
        assert_eq!((pacer.take(3 * MS + 1), pacer.take(3 * MS + 1)), (Some(MS), Some(2 * MS)));
        pacer.advance(100 * MS);
        assert_eq!((pacer.unsent(), pacer.next_due(), pacer.is_over(100 * MS)), (3, None, false));
        assert_eq!([pacer.take(0), pacer.take(0), pacer.take(0)], [Some(3 * MS), Some(4 * MS), Some(5 * MS)]);
        assert_eq!((pacer.take(0), pacer.is_over(100 * MS)), (None, true));
    }

    #[test]
    fn poisson_arrivals_repeat_with_their_seed_and_keep_their_rate() {
        let arrivals = |seed| {
            let until = Until::Elapsed(Duration::from_secs(10));
            let mut pacer = Pacer::new(Pace::Poisson { per_second: 1000.0, seed }, until);
            pacer.advance(u64::MAX);
            std::iter::from_fn(|| pacer.take(u64::MAX)).collect::<Vec<_>>()
        };
        assert_eq!(arrivals(1), arrivals(1));
        assert_ne!(arrivals(1), arrivals(2));
        assert!((9_500..10_500).contains(&arrivals(1).len()));
        assert!(arrivals(1).is_sorted());
    }

    #[test]
    fn a_closed_loop_ends_by_time_or_count() {
        let mut pacer = Pacer::new(Pace::Closed, Until::Elapsed(Duration::from_millis(2)));
        assert_eq!((pacer.take(7), pacer.next_due()), (Some(7), None));
        assert_eq!((pacer.is_over(2 * MS - 1), pacer.is_over(2 * MS)), (false, true));
        assert_eq!(pacer.take(2 * MS), None);
        let mut pacer = Pacer::new(Pace::Closed, Until::Requests(1));
        assert_eq!((pacer.take(0), pacer.is_over(0), pacer.take(0)), (Some(0), true, None));
    }
}
