//! Instances that are on the bus before spryd knows their processes.
//!
//! A request that waits is sent to a new instance while the zygote forks it, so that the instance finds it at birth. The
//! process can have answered before spryd has looked at it. Nothing that it says counts until then: who it is, which
//! limits hold it and that nobody else can write to its outbox is checked first, and what came meanwhile waits.

use std::sync::Arc;

use parking_lot::Mutex;
use shm_bus::ids::PeerId;
use tokio::sync::watch;

use crate::function::Function;
use crate::gateway::Refusal;
use crate::instance::Instance;

/// What became of one that was expected: who it is, or why nothing that it said counts.
type Met = Result<Arc<Instance>, Refusal>;

/// Told once, when it is known.
type Told = watch::Receiver<Option<Met>>;

/// Those of one function, by bit.
#[derive(Debug, Default)]
pub struct Expected(Mutex<Vec<(u32, Told)>>);

/// One that is expected.
#[derive(Debug)]
pub struct Expectation {
    function: Arc<Function>,
    bit: u32,
    /// If it ends without a word, the node does.
    met: watch::Sender<Option<Met>>,
}

impl Expectation {
    /// Expects this peer's instance. There is none in its place.
    pub fn new(function: &Arc<Function>, peer: PeerId) -> Self {
        let (bit, (met, told)) = (peer.bit(), watch::channel(None));
        function.expected.0.lock().push((bit, told));
        Self { function: Arc::clone(function), bit, met }
    }

    /// It is known, and among the function's instances.
    pub fn meet(self, instance: &Arc<Instance>) {
        self.met.send_replace(Some(Ok(Arc::clone(instance))));
    }

    /// It won't be there, and this is what its caller is told if it has answered.
    pub fn miss(self, why: Refusal) {
        self.met.send_replace(Some(Err(why)));
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        self.function.expected.0.lock().retain(|(bit, _)| *bit != self.bit);
    }
}

impl Function {
    /// How many are on the bus, and not known yet.
    pub fn expected_now(&self) -> usize {
        self.expected.0.lock().len()
    }

    /// Waits for what becomes of the instance that is expected in this place, if one is. (Who comes to the place after that is
    /// another.)
    pub fn expected(&self, bit: u32) -> Option<impl Future<Output = Met> + use<>> {
        let found = self.expected.0.lock().iter().find(|(of, _)| *of == bit).map(|(_, told)| told.clone());
        found.map(|mut told| async move {
            let met = told.wait_for(Option::is_some).await;
            met.ok().and_then(|met| met.clone()).unwrap_or(Err(Refusal::ShuttingDown))
        })
    }

    /// The instance in this place, when it is known; `None` if there is none and none is expected (any more).
    pub async fn born(&self, bit: u32) -> Option<Arc<Instance>> {
        match self.expected(bit) {
            Some(met) => met.await.ok(),
            None => self.instances[bit as usize].load_full(),
        }
    }
}
