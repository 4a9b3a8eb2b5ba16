//! What functions and chains use, as counters since the start: who asks twice can say what happened in between.

use serde::{Deserialize, Serialize};

use super::{Calls, Instances};

/// The node at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageView {
    /// When.
    pub at_unix_ms: u64,
    /// Since spryd's start.
    pub uptime_ms: u64,
    /// `sockmap`, `futex` or `broker`.
    pub transport: String,
    /// CPUs that spryd may use.
    pub cpus: u32,
    /// spryd itself.
    pub spryd: ProcessUsage,
    /// Upper bounds of [`Usage::exec`], in milliseconds; what comes after the last is longer.
    pub bounds_ms: Vec<f64>,
    /// Functions, by name, then chains.
    pub all: Vec<Usage>,
}

/// What processes use.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessUsage {
    /// CPU time since spryd's start, of processes that have ended too.
    pub cpu_ms: f64,
    /// Resident memory now. Pages that processes share count for each.
    pub resident_bytes: u64,
}

/// One function or chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Its name.
    pub name: String,
    /// Whether it is a chain.
    pub is_chain: bool,
    /// Its processes now.
    pub instances: Instances,
    /// Calls that wait now.
    pub queued: u64,
    /// Calls since spryd's start.
    pub calls: Calls,
    /// How many of those that were served took at most as long as each bound; the last: all of them.
    pub exec: Vec<u64>,
    /// What its processes use.
    pub processes: ProcessUsage,
}
