//! Instances that are on the bus before spryd knows their processes.
//!
//! A request that waits is sent to a new instance while the zygote forks it, so that the instance finds it at birth. The
//! process can have answered before spryd has looked at it. Nothing that it says counts until then: who it is, which
//! limits hold it and that nobody else can write to its outbox is checked first, and what came meanwhile waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use shm_bus::ids::PeerId;
use spry_ebpf_common::SLOTS_PER_FUNCTION;
use tokio::sync::watch;

use crate::function::Function;
use crate::instance::Instance;

/// Those of one function, by bit.
#[derive(Debug, Default)]
pub struct Expected {
    bits: AtomicU64,
    ends: Mutex<Vec<(u32, watch::Receiver<()>)>>,
}

const _: () = assert!(SLOTS_PER_FUNCTION <= u64::BITS);

/// One that is expected, until this is dropped: then it is among the function's instances, or won't be.
#[derive(Debug)]
pub struct Expectation {
    function: Arc<Function>,
    bit: u32,
    /// Its end wakes those who wait.
    _end: watch::Sender<()>,
}

impl Expectation {
    /// Expects this peer's instance. There is none in its place.
    pub fn new(function: &Arc<Function>, peer: PeerId) -> Self {
        let (bit, (sender, end)) = (peer.bit(), watch::channel(()));
        function.expected.ends.lock().push((bit, end));
        function.expected.bits.fetch_or(1 << bit, Ordering::AcqRel);
        Self { function: Arc::clone(function), bit, _end: sender }
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let expected = &self.function.expected;
        expected.ends.lock().retain(|(bit, _)| *bit != self.bit);
        expected.bits.fetch_and(!(1 << self.bit), Ordering::AcqRel);
    }
}

impl Function {
    /// Whether the instance in this place is on the bus, and not known yet.
    pub fn is_expected(&self, bit: u32) -> bool {
        self.expected.bits.load(Ordering::Acquire) & 1 << bit != 0
    }

    /// How many are on the bus, and not known yet.
    pub fn expected_now(&self) -> usize {
        self.expected.bits.load(Ordering::Acquire).count_ones() as usize
    }

    /// The instance in this place, when it is known; `None` if there is none and none is expected (any more).
    pub async fn born(&self, bit: u32) -> Option<Arc<Instance>> {
        loop {
            let end = self.expected.ends.lock().iter().find(|(of, _)| *of == bit).map(|(_, end)| end.clone());
            match end {
                // An error: it has been dropped, which is what is waited for.
                Some(mut end) => drop(end.changed().await),
                None => return self.instances[bit as usize].load_full(),
            }
        }
    }
}
