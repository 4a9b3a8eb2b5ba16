//! A machine in a box: runs a trace on cores that obey a [policy](crate::policy), event by event.
//!
//! What it is for: comparing policies on the same arrivals in seconds, and checking their promises on thousands of small
//! machines. What it is not: a model of caches, of migration costs, of a kernel's tick. Times are whole nanoseconds and
//! ties are broken by fixed rules, so the same trace and policy give the same outcome on every machine.
//!
//! # The machine
//!
//! `cores` identical cores and two classes, as the kernel has them ([`Class`](crate::policy::Class)). `Fifo` is one queue by
//! rank, as if all cores shared it (the kernel's real-time class comes close by pushing and pulling). `Fair` is EEVDF
//! (`fair.rs`), one queue for all cores as well: an ideal of balancing that Linux approaches.
//! Putting another task on a core than it ran last costs [`Machine::switch_ns`] of nobody's time.
//!
//! # What a trace is
//!
//! Jobs with a time of arrival, a function, and bursts: CPU, I/O, CPU … An I/O burst takes its time whatever else
//! happens. The policy learns of a job only what a node would: that it came, that it blocked, what it has used.

mod fair;
mod machine;
mod reference;

pub use machine::{Machine, Outcome, Run};
pub use reference::{Fifo, OfflineSrpt, RoundRobin};

use crate::FunctionId;

/// One invocation of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// When it comes.
    pub arrival_ns: u64,
    /// Whose it is.
    pub function: FunctionId,
    /// The size of its request in bytes, if policies may know it.
    pub size_bytes: Option<u64>,
    /// What it does, by turns: CPU, I/O, CPU …, each in nanoseconds, ending with CPU. So an odd number.
    pub bursts_ns: Vec<u64>,
}

impl Job {
    /// CPU time in all.
    pub fn cpu_ns(&self) -> u64 {
        self.bursts_ns.iter().step_by(2).sum()
    }

    /// I/O time in all.
    pub fn io_ns(&self) -> u64 {
        self.bursts_ns.iter().skip(1).step_by(2).sum()
    }
}

/// Why a trace can't be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTrace {
    /// Which job, counted from 0.
    pub job: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl std::fmt::Display for BadTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job {} of the trace {}", self.job, self.what)
    }
}

impl std::error::Error for BadTrace {}

/// The latest moment of a trace: 52 days. It leaves room in every sum.
pub const TIME_MAX_NS: u64 = 1 << 52;

/// Whether a trace can be run: jobs in order of arrival, bursts that begin and end with CPU, none of them empty, and
/// all of it over before [`TIME_MAX_NS`].
pub fn check(trace: &[Job]) -> Result<(), BadTrace> {
    let mut last_ns = 0;
    let mut total_ns = 0u64;
    for (job, one) in trace.iter().enumerate() {
        let bad = |what| Err(BadTrace { job, what });
        if one.arrival_ns < last_ns {
            return bad("arrives before the one ahead of it");
        }
        if one.bursts_ns.len().is_multiple_of(2) {
            return bad("must have bursts of CPU, I/O, CPU …: an odd number");
        }
        if one.bursts_ns.contains(&0) {
            return bad("has an empty burst");
        }
        last_ns = one.arrival_ns;
        total_ns = one.bursts_ns.iter().fold(total_ns, |sum, &ns| sum.saturating_add(ns));
        if total_ns.saturating_add(last_ns) > TIME_MAX_NS {
            return bad("makes the trace longer than 2^52 ns");
        }
    }
    if u32::try_from(trace.len()).is_err() {
        return Err(BadTrace { job: trace.len(), what: "is one too many" });
    }
    Ok(())
}
