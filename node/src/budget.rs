//! The node's memory as it is promised: every zygote and every instance, from before it is started until it has been
//! reaped, holds a [`Promise`] of its memory limit. The sum never exceeds the node's budget.
//!
//! What a process is promised, not what it uses, is what counts: each could use all of its limit at any moment, and
//! the kernel's answer to too many promises is to kill somebody, most likely another one. An operator who knows
//! better raises `node.memory_budget`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::units::Size;

/// There is no room for a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "needs {}, {} of {} free (node.memory_budget less what other processes are promised)",
    Size::bytes(*.needs_bytes).rounded(), Size::bytes(*.free_bytes).rounded(), Size::bytes(*.budget_bytes).rounded()
)]
pub struct Shortage {
    /// What was asked for.
    pub needs_bytes: u64,
    /// What is not promised to anybody.
    pub free_bytes: u64,
    /// All there is to promise.
    pub budget_bytes: u64,
}

/// All that may be promised, and what is.
#[derive(Debug)]
pub struct Budget {
    limit_bytes: u64,
    promised_bytes: AtomicU64,
    /// Counts promises that have come back, for those who wait for room.
    returned: watch::Sender<u64>,
}

impl Budget {
    /// Nothing promised yet.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit_bytes, promised_bytes: AtomicU64::new(0), returned: watch::Sender::new(0) })
    }

    /// All there is to promise.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The sum of all promises.
    pub fn promised_bytes(&self) -> u64 {
        self.promised_bytes.load(Ordering::Acquire)
    }

    /// Promises so much, if it is there.
    pub fn promise(self: &Arc<Self>, bytes: u64) -> Result<Promise, Shortage> {
        let fits = |promised: u64| promised.checked_add(bytes).filter(|sum| *sum <= self.limit_bytes);
        match self.promised_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits) {
            Ok(_) => Ok(Promise { budget: Arc::clone(self), bytes }),
            Err(promised) => Err(Shortage {
                needs_bytes: bytes,
                free_bytes: self.limit_bytes.saturating_sub(promised),
                budget_bytes: self.limit_bytes,
            }),
        }
    }

    /// Changes whenever a promise comes back.
    pub fn returned(&self) -> watch::Receiver<u64> {
        self.returned.subscribe()
    }
}

/// Memory that somebody may use. Dropping it gives it back: not before the process has been reaped.
#[derive(Debug)]
pub struct Promise {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Promise {
    /// Gives back all but so much.
    pub fn keep(mut self, bytes: u64) -> Self {
        let spare_bytes = self.bytes.saturating_sub(bytes);
        drop(Self { budget: Arc::clone(&self.budget), bytes: spare_bytes });
        self.bytes -= spare_bytes;
        self
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.budget.promised_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.budget.returned.send_modify(|count| *count += 1);
    }
}

/// The memory of this machine.
pub fn machine_bytes() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.ok_or(io::ErrorKind::InvalidData)? * 1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_refusal_has_the_numbers() {
        let budget = Budget::new(800 << 20);
        let _held = budget.promise(704 << 20).expect("fits");
        let short = budget.promise(128 << 20).expect_err("doesn't fit");
        assert!(short.to_string().starts_with("needs 128 MiB, 96 MiB of 800 MiB free"), "{short}");
    }

    #[test]
    fn who_waits_hears_of_what_comes_back() {
        let budget = Budget::new(100);
        let held = budget.promise(100).expect("fits");
        let returned = budget.returned();
        assert!(!returned.has_changed().expect("open"));
        let held = held.keep(40);
        assert!(returned.has_changed().expect("open"));
        assert_eq!(budget.promised_bytes(), 40);
        drop(held);
        assert_eq!(budget.promised_bytes(), 0);
    }

    proptest! {
        /// Like a plain sum that is refused beyond the limit.
        #[test]
        fn the_sum_is_that_of_the_promises_and_within_the_limit(
            limit in 0u64..1000, steps in prop::collection::vec((0u64..400, any::<bool>(), 0u64..400), 0..60),
        ) {
            let budget = Budget::new(limit);
            let mut held: Vec<Promise> = Vec::new();
            for (bytes, give_back, kept) in steps {
                let before: u64 = held.iter().map(|promise| promise.bytes).sum();
                match budget.promise(bytes) {
                    Ok(promise) => {
                        prop_assert!(before + bytes <= limit);
                        held.push(promise.keep(kept));
                    }
                    Err(short) => prop_assert_eq!((short.free_bytes, before + bytes > limit), (limit - before, true)),
                }
                if give_back && !held.is_empty() {
                    held.remove(0);
                }
                prop_assert_eq!(budget.promised_bytes(), held.iter().map(|promise| promise.bytes).sum::<u64>());
            }
        }
    }
}
