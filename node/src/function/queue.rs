//! Invocations that wait for an idle instance, in the order in which they are sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shm_bus::Descriptor;
use shm_bus::ids::InvocationId;

/// An invocation that waits for an idle instance.
#[derive(Debug)]
pub struct Queued {
    /// What to send once an instance is idle.
    pub descriptor: Descriptor,
    /// Told when it leaves the queue.
    pub sent: Arc<SentAt>,
}

/// When a queued invocation was sent, for its timings: nanoseconds after `since`, 0 while it waits.
#[derive(Debug)]
pub struct SentAt {
    since: Instant,
    after_ns: AtomicU64,
}

impl SentAt {
    /// Not sent yet.
    pub fn new(since: Instant) -> Arc<Self> {
        Arc::new(Self { since, after_ns: AtomicU64::new(0) })
    }
    /// Sent now.
    pub fn mark(&self) {
        self.after_ns.store((self.since.elapsed().as_nanos() as u64).max(1), Ordering::Release);
    }
    /// When it was sent.
    pub fn get(&self) -> Instant {
        self.since + Duration::from_nanos(self.after_ns.load(Ordering::Acquire))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Queue {
    queued: Mutex<VecDeque<Queued>>,
    /// For those who only want to know whether there is anybody.
    len: AtomicUsize,
}

impl Queue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends one; gives it back when `limit` are waiting already.
    pub fn push(&self, queued: Queued, limit: usize) -> Result<(), Queued> {
        let mut queue = self.queued.lock();
        if queue.len() >= limit {
            return Err(queued);
        }
        queue.push_back(queued);
        self.len.store(queue.len(), Ordering::Release);
        Ok(())
    }

    /// Puts one back where it was taken from, whatever the limit.
    pub fn put_back(&self, queued: Queued) {
        let mut queue = self.queued.lock();
        queue.push_front(queued);
        self.len.store(queue.len(), Ordering::Release);
    }

    /// Takes the next one.
    pub fn pop(&self) -> Option<Queued> {
        if self.is_empty() {
            return None;
        }
        let mut queue = self.queued.lock();
        let next = queue.pop_front();
        self.len.store(queue.len(), Ordering::Release);
        next
    }

    /// Takes a particular one out; false when it isn't waiting (any more).
    pub fn withdraw(&self, invocation: InvocationId) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut queue = self.queued.lock();
        let Some(at) = queue.iter().position(|queued| queued.descriptor.invocation == invocation.0) else {
            return false;
        };
        queue.remove(at);
        self.len.store(queue.len(), Ordering::Release);
        true
    }

    /// Whether a particular one is waiting.
    pub fn has(&self, invocation: InvocationId) -> bool {
        !self.is_empty()
            && self.queued.lock().iter().any(|queued| queued.descriptor.invocation == invocation.0)
    }
}
