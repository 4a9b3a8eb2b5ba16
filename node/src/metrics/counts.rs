//! What is counted where it happens: of each function and chain ([`Counts`]), and of the node ([`Totals`]).
//!
//! Relaxed counters that any thread adds to. A call costs a handful of additions and no lock; everything else that the
//! metrics page shows is found out when somebody asks for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::histogram::Histogram;
use super::rewinds::Rewinds;
use crate::activation::Start;
use crate::trace::export::Exported;

/// What became of a call, by whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered by the function, whatever status it chose.
    Ok,
    /// The request could not be used (4xx).
    Client,
    /// Refused because too much waits (429, 503).
    Overload,
    /// The function raised, or returned an error (500).
    Failed,
    /// Its process died or broke the protocol (502).
    Died,
    /// Its time ran out (504).
    TimedOut,
    /// Its memory ran out (507).
    OutOfMemory,
}

impl Outcome {
    /// All of them, in the order of [`Counts::outcomes`].
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Client, Self::Overload, Self::Failed, Self::Died, Self::TimedOut, Self::OutOfMemory];

    /// Of a call that ended with this status; `refused`: by spryd, not by the function.
    pub fn of(status: u16, refused: bool) -> Self {
        match status {
            _ if !refused => Self::Ok,
            429 | 503 => Self::Overload,
            400..=499 => Self::Client,
            502 => Self::Died,
            504 => Self::TimedOut,
            507 => Self::OutOfMemory,
            _ => Self::Failed,
        }
    }

    /// As on the metrics page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Client => "client_error",
            Self::Overload => "overload",
            Self::Failed => "function_failed",
            Self::Died => "process_died",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
        }
    }
}

/// Calls of one function or chain by how they ended and what served them, and what its processes used.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answered with a result.
    pub ok: AtomicU64,
    /// Failed, whoever's fault.
    pub failed: AtomicU64,
    /// Served after starting the zygote.
    pub cold: AtomicU64,
    /// Served by a fresh process.
    pub forked: AtomicU64,
    /// Served by a process that had served before.
    pub warm: AtomicU64,
    /// By [`Outcome`], in the order of [`Outcome::ALL`].
    pub outcomes: [AtomicU64; Outcome::ALL.len()],
    /// Waits for an idle instance, of calls that were served.
    pub queue: Histogram,
    /// Waits for an instance to start, of calls that had to wait for that.
    pub start: Histogram,
    /// Times in the function, of calls that were served.
    pub exec: Histogram,
    /// For how long processes could run and had no core, in nanoseconds, where that is noted.
    pub core_wait_ns: AtomicU64,
    /// What processes that have ended had used.
    pub used: Used,
    /// What became of instances that were to be rewound.
    pub rewinds: Rewinds,
}

/// What processes used.
#[derive(Debug, Default)]
pub struct Used {
    cpu_ns: AtomicU64,
    /// The most that was shown: a counter never goes back.
    shown_cpu_ns: AtomicU64,
    peak_bytes: AtomicU64,
}

impl Counts {
    /// Counts a call's end.
    pub fn ended(&self, outcome: Outcome) {
        let counter = if outcome == Outcome::Ok { &self.ok } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the time in which a call could run and had no core.
    pub fn waited_for_core(&self, wait_ns: u64) {
        if wait_ns > 0 {
            self.core_wait_ns.fetch_add(wait_ns, Ordering::Relaxed);
        }
    }

    /// Counts one that was served.
    pub fn served(&self, start: Start, queue_ns: u64, start_ns: u64, exec_ns: u64) {
        let kind = match start {
            Start::Cold => &self.cold,
            Start::Forked => &self.forked,
            Start::Warm => &self.warm,
        };
        kind.fetch_add(1, Ordering::Relaxed);
        self.queue.observe(queue_ns);
        if start_ns > 0 {
            self.start.observe(start_ns);
        }
        self.exec.observe(exec_ns);
    }
}

impl Used {
    /// Adds a process that has ended.
    pub fn add(&self, cpu: Duration, peak_bytes: u64) {
        self.cpu_ns.fetch_add(cpu.as_nanos() as u64, Ordering::Relaxed);
        self.peak_bytes.fetch_max(peak_bytes, Ordering::Relaxed);
    }

    /// CPU time, with that of processes that run. (One that ends meanwhile may be missing from `running`, and not be
    /// added yet: then what was shown before is shown again.)
    pub fn cpu(&self, running: Duration) -> Duration {
        let now = self.cpu_ns.load(Ordering::Relaxed) + running.as_nanos() as u64;
        Duration::from_nanos(self.shown_cpu_ns.fetch_max(now, Ordering::Relaxed).max(now))
    }

    /// The largest resident set of one that has ended.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes.load(Ordering::Relaxed)
    }
}

/// What is counted of the node as a whole.
#[derive(Debug, Default)]
pub struct Totals {
    /// From the request for an instance to its readiness.
    pub fork: Histogram,
    /// Starts of zygotes.
    pub zygote: Histogram,
    /// Instances or zygotes that could not be started.
    pub start_failures: AtomicU64,
    /// Calls that met no idle instance.
    pub pool_misses: AtomicU64,
    /// Bytes of output over `logs.per_invocation`.
    pub dropped_output_bytes: AtomicU64,
    /// Spans that were told, if any are.
    pub spans: OnceLock<Arc<Exported>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_by_whose_fault_it_was() {
        assert_eq!(Outcome::of(500, false), Outcome::Ok, "the function's own choice");
        for (status, outcome) in [
            (413, Outcome::Client),
            (429, Outcome::Overload),
            (503, Outcome::Overload),
            (500, Outcome::Failed),
            (502, Outcome::Died),
            (504, Outcome::TimedOut),
            (507, Outcome::OutOfMemory),
        ] {
            assert_eq!(Outcome::of(status, true), outcome);
        }
        for (at, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, at, "{outcome:?} has its own counter");
        }
    }

    #[test]
    fn cpu_time_never_goes_back() {
        let used = Used::default();
        assert_eq!(used.cpu(Duration::from_millis(50)), Duration::from_millis(50));
        // The process has gone from the table and was not added yet.
        assert_eq!(used.cpu(Duration::ZERO), Duration::from_millis(50));
        used.add(Duration::from_millis(60), 1 << 20);
        assert_eq!(used.cpu(Duration::ZERO), Duration::from_millis(60));
        assert_eq!(used.peak_bytes(), 1 << 20);
    }
}
