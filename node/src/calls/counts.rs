//! How many there are, for status and metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Calls;

/// Numbers for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Calls that wait for their turn.
    pub queued: u64,
    /// Calls that wait for their time.
    pub delayed: u64,
    /// Calls that run.
    pub running: u64,
    /// Accepted since the start.
    pub accepted: u64,
    /// Ended with an answer since the start.
    pub done: u64,
    /// Failed runs that were followed by another, since the start.
    pub retried: u64,
    /// Given up since the start.
    pub died: u64,
    /// Cancelled since the start.
    pub cancelled: u64,
    /// Dead letters there are.
    pub dead: u64,
    /// Callbacks made since the start.
    pub callbacks: u64,
    /// Callbacks given up since the start.
    pub callbacks_lost: u64,
    /// Bytes of the heads and bodies of those that wait.
    pub bytes: u64,
    /// Transactions on disk since the start.
    pub commits: u64,
    /// Transactions that failed since the start.
    pub commit_failures: u64,
    /// Calls can't be written now.
    pub broken: bool,
}

impl Calls {
    /// Numbers for status and metrics.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            queued: of(&self.stats.queued),
            delayed: of(&self.stats.delayed),
            running: of(&self.stats.running),
            accepted: of(&self.stats.accepted),
            done: of(&self.stats.done),
            retried: of(&self.stats.retried),
            died: of(&self.stats.dead),
            cancelled: of(&self.stats.cancelled),
            dead: self.reader.lock().dead_count().unwrap_or_default(),
            callbacks: of(&self.stats.callbacks),
            callbacks_lost: of(&self.stats.callbacks_lost),
            bytes: of(&self.room.bytes),
            commits: of(&self.health.commits),
            commit_failures: of(&self.health.failures),
            broken: self.health.broken.load(Ordering::Relaxed),
        }
    }
}
