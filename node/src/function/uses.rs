//! When a function has served, and how often: what keep-alive and pre-warming go by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Shorter pauses are none.
const GAP_MS_MIN: u64 = 1_000;
/// Pauses that are remembered until somebody asks.
const GAPS_MAX: usize = 64;

/// What a function has served since somebody asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// How many requests.
    pub count: u64,
    /// The function's very first is among them.
    pub is_first: bool,
    /// Pauses before some of them, in milliseconds; before the others there was none worth noting.
    pub gaps_ms: Vec<u64>,
}

/// Counts them.
#[derive(Debug, Default)]
pub struct Served {
    count: AtomicU64,
    /// How many of them [`Self::take`] has told of.
    told: AtomicU64,
    last_unix_ms: AtomicU64,
    gaps_ms: Mutex<Vec<u64>>,
}

impl Served {
    /// Notes that a request was served, which ended now and took so long.
    pub fn note(&self, now_unix_ms: u64, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let before = self.last_unix_ms.swap(now_unix_ms, Ordering::Relaxed);
        let gap_ms = now_unix_ms.saturating_sub(took.as_millis() as u64).saturating_sub(before);
        if before != 0 && gap_ms >= GAP_MS_MIN {
            let mut gaps = self.gaps_ms.lock();
            if gaps.len() < GAPS_MAX {
                gaps.push(gap_ms);
            }
        }
    }

    /// What was served since the last call. Only for the keeper.
    pub fn take(&self) -> Uses {
        let count = self.count.load(Ordering::Relaxed);
        let told = self.told.swap(count, Ordering::Relaxed);
        if count == told {
            return Uses::default();
        }
        let gaps_ms = std::mem::take(&mut *self.gaps_ms.lock());
        Uses { count: count - told, is_first: told == 0, gaps_ms }
    }

    /// When the last request ended that was served; 0: there was none.
    pub fn last_unix_ms(&self) -> u64 {
        self.last_unix_ms.load(Ordering::Relaxed)
    }

    /// Whether there was any.
    pub fn any(&self) -> bool {
        self.last_unix_ms() != 0
    }
}
