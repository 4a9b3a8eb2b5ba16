//! What a function's invocations cost in CPU time, as far as every request needs to know: whether to ask the policy.
//!
//! A function all of whose invocations are very short goes before everybody under any policy that favours short ones, and
//! asking costs a lock. So after `PROVING` invocations in a row below `SHORT_NS` it isn't asked about, and
//! the first that takes longer ends that. (What it used until then it had at the kernel's fair share, at most.)

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Below this much CPU time an invocation is very short.
pub(super) const SHORT_NS: u64 = 500_000;
/// So many very short ones in a row make a very short function.
pub(super) const PROVING: u32 = 32;

/// One function's; changed by all workers.
#[derive(Debug, Default)]
pub struct Usage {
    /// Very short ones in a row, up to `PROVING`.
    streak: AtomicU32,
    /// Invocations that the policy knows of.
    scheduled: AtomicU32,
    /// Those of them that are kept back.
    held: AtomicU32,
    known: AtomicBool,
}

impl Usage {
    /// Takes in what an invocation used.
    pub fn observe(&self, cpu_ns: u64) {
        let streak = self.streak.load(Ordering::Relaxed);
        if cpu_ns >= SHORT_NS {
            self.streak.store(0, Ordering::Relaxed);
        } else if streak < PROVING {
            self.streak.store(streak + 1, Ordering::Relaxed);
        }
    }

    /// Whether nobody needs to be asked.
    pub fn is_short(&self) -> bool {
        self.streak.load(Ordering::Relaxed) >= PROVING
    }

    /// Whether the policy knows of any invocation of it.
    pub fn is_scheduled(&self) -> bool {
        self.scheduled.load(Ordering::Relaxed) > 0
    }

    /// Invocations that are kept back.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed) as usize
    }

    /// True once: the policy may remember another function in its place.
    pub(super) fn is_new(&self) -> bool {
        !self.known.swap(true, Ordering::Relaxed)
    }

    pub(super) fn opened(&self) {
        self.scheduled.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn admitted(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.scheduled.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_to_prove_itself_short_and_one_long_invocation_ends_that() {
        let usage = Usage::default();
        for _ in 1..PROVING {
            usage.observe(10_000);
        }
        assert!(!usage.is_short());
        usage.observe(10_000);
        assert!(usage.is_short());
        usage.observe(SHORT_NS);
        assert!(!usage.is_short());
        for _ in 0..PROVING {
            usage.observe(SHORT_NS - 1);
        }
        assert!(usage.is_short());
    }
}
