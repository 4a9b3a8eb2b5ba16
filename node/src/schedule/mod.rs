//! The node driven by a policy: which invocations begin, and whose processes go first.
//!
//! The decisions are [`spry_sched::engine`]'s. This is its hands: it tells the engine what happens to invocations, sends
//! those that are admitted, and has the [backend](spry_sched::backend) tell the kernel who goes first.
//!
//! ```text
//!   worker: a request ──submit──► engine ──Admit──► the function's idle instance, or its queue (the keeper forks)
//!   worker: an answer ──over────► engine ──Stand──► backend: the process to the front, or to the back
//!   scheduler thread: slices, blocking ─► engine ──both──►
//! ```
//!
//! All that is under one lock, held for microseconds. What isn't asked about it at all: functions that are known to be
//! very short ([`Usage`]), runs of chains (the kernel sends them from step to step), and everything under
//! `policy = "eevdf"`.
//!
//! Whom no decision is about has a standing, too, where the backend keeps the order itself: [`Scheduler::renew`], [`share`](Scheduler::share).
//! When it has to take another way ([`Scheduler::look`]), it is told anew of all that have begun.
//!
//! Sending happens outside of the lock (it may take other locks), telling the kernel within it, so that two threads can't
//! leave a process at the level before last.

mod choice;
mod thread;
mod usage;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use parking_lot::Mutex;
use shm_bus::ids::InvocationId;
use spry_sched::backend::{Backend, Change, Standing};
use spry_sched::engine::{Engine, Order};
use spry_sched::signals::Told;
use spry_sched::{FunctionId, TaskId};

pub use choice::{BackendChoice, PolicyChoice, SchedulerChoice, open_backend, open_signals};
pub use thread::{Spec as ThreadSpec, run as run_thread};
pub use usage::Usage;

use crate::clock::monotonic_ns;
use crate::dispatch::{Bus, Dispatcher};
use crate::function::{Function, Queued};
use crate::instance::Instance;

/// See the module.
pub struct Scheduler {
    policy: PolicyChoice,
    backend: Arc<dyn Backend>,
    timer: TimerFd,
    inner: Mutex<Inner>,
    counts: Counts,
}

/// What has been decided since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Invocations that the policy was asked about.
    pub scheduled: AtomicU64,
    /// Those that had to wait in spryd before they began.
    pub held: AtomicU64,
    /// How often a process was set to another level.
    pub moves: AtomicU64,
}

struct Inner {
    engine: Engine,
    entries: HashMap<TaskId, Entry>,
    tasks: HashMap<InvocationId, TaskId>,
    orders: Vec<Order>,
    /// Over; they go when the orders about them have been carried out.
    closed: Vec<TaskId>,
    /// When the timer is due.
    armed_ns: Option<u64>,
}

struct Entry {
    function: Arc<Function>,
    id: InvocationId,
    /// Until it is admitted.
    waiting: Option<Queued>,
    /// Who has it, once that was looked up.
    instance: Option<Arc<Instance>>,
    /// It is over, and that one's process stood for it until then.
    stood: bool,
}

/// How things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standings {
    /// Kept back.
    pub waiting: usize,
    /// Let in.
    pub begun: usize,
    /// Those of them that are at the front.
    pub front: usize,
}

impl Scheduler {
    /// With nothing to schedule yet. `None`: the policy leaves all to the kernel.
    pub fn new(
        policy: PolicyChoice,
        backend: Arc<dyn Backend>,
        cores: usize,
    ) -> std::io::Result<Option<Arc<Self>>> {
        let Some(made) = policy.policy(cores) else { return Ok(None) };
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let engine = Engine::new(made, cores, backend.wants_ranks());
        let inner = Inner {
            engine,
            entries: HashMap::new(),
            tasks: HashMap::new(),
            orders: Vec::new(),
            closed: Vec::new(),
            armed_ns: None,
        };
        let inner = Mutex::new(inner);
        Ok(Some(Arc::new(Self { policy, backend, timer, inner, counts: Counts::default() })))
    }

    /// The policy.
    pub fn policy(&self) -> PolicyChoice {
        self.policy
    }

    /// What makes its decisions true.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What it has done.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// How things stand.
    pub fn standings(&self) -> Standings {
        let inner = self.inner.lock();
        let (begun, front) = inner.engine.begun();
        Standings { waiting: inner.engine.waiting(), begun, front }
    }

    /// Whether the policy is to be asked about this function's invocations.
    pub fn wants(&self, function: &Function) -> bool {
        function.domain.is_none() && !function.usage.is_short()
    }

    /// An invocation has come. It has been counted as one that waits on the node.
    pub fn submit(&self, dispatcher: &Rc<Dispatcher>, function: &Arc<Function>, queued: Queued) {
        function.usage.opened();
        self.counts.scheduled.fetch_add(1, Ordering::Relaxed);
        self.act(dispatcher, |inner, now_ns| {
            let task = inner.open(now_ns, function, queued);
            let kept_back = !inner.orders.contains(&Order::Admit(task));
            self.counts.held.fetch_add(u64::from(kept_back), Ordering::Relaxed);
        });
    }

    /// It is with an instance now.
    pub fn sent(&self, dispatcher: &Rc<Dispatcher>, id: InvocationId) {
        self.with(dispatcher, id, |inner, now_ns, task| inner.engine.sent(now_ns, task, &mut inner.orders));
    }

    /// It is back in its function's queue: its instance ended before it began, or it couldn't be delivered.
    pub fn stalled(&self, dispatcher: &Rc<Dispatcher>, id: InvocationId) {
        self.with(dispatcher, id, |inner, now_ns, task| {
            if let Some(entry) = inner.entries.get_mut(&task) {
                entry.instance = None;
            }
            inner.engine.stalled(now_ns, task, &mut inner.orders);
        });
    }

    /// It is over, and used so much. `finished`: by an answer.
    pub fn over(&self, dispatcher: &Rc<Dispatcher>, id: InvocationId, used_ns: u64, finished: bool) {
        self.with(dispatcher, id, |inner, now_ns, task| inner.close(now_ns, task, used_ns, finished));
    }

    /// Takes one out that was kept back. False: it isn't (any more).
    pub fn withdraw(&self, dispatcher: &Rc<Dispatcher>, id: InvocationId) -> bool {
        let mut withdrawn = false;
        self.with(dispatcher, id, |inner, now_ns, task| {
            withdrawn = inner.entries.get(&task).is_some_and(|entry| entry.waiting.is_some());
            if withdrawn {
                inner.close(now_ns, task, 0, false);
            }
        });
        withdrawn
    }

    /// Takes out all that is kept back of a function that has ended.
    pub fn take_held(&self, function: &Function) -> Vec<Queued> {
        if function.usage.held() == 0 {
            return Vec::new();
        }
        let mut inner = self.inner.lock();
        let now_ns = monotonic_ns();
        let mut taken = Vec::new();
        for (task, entry) in &mut inner.entries {
            if entry.function.index == function.index {
                taken.extend(entry.waiting.take().map(|queued| (*task, queued)));
            }
        }
        for (task, _) in &taken {
            function.usage.admitted();
            inner.close(now_ns, *task, 0, false);
        }
        // Nobody is told anything more of them: whoever arrives next may have one of their slots. (Who may begin in their
        // place does so with the next event.)
        inner.orders.retain(|order| !taken.iter().any(|(task, _)| *task == order.task()));
        inner.clear_closed();
        taken.into_iter().map(|(_, queued)| queued).collect()
    }

    /// This process begins something new that no decision is about: it has answered one of those functions that nobody asks
    /// about.
    pub fn renew(&self, instance: &Instance) {
        if self.backend.keeps_order() && !instance.stands_for_any() {
            self.tell(instance, Standing::FREE);
        }
    }

    /// This process's invocations are runs of chains, which the kernel sends: nobody says when one begins.
    pub fn share(&self, instance: &Instance) {
        if self.backend.keeps_order() {
            self.tell(instance, Standing::SHARED);
        }
    }

    fn tell(&self, instance: &Instance, standing: Standing) {
        if let Err(error) = self.backend.apply(&instance.process, standing) {
            tracing::debug!(pid = instance.process.pid(), %error, "a process could not be moved");
        }
    }

    /// Whether the backend has to take another way; if so, it is told anew what holds.
    fn look(&self, dispatcher: &Rc<Dispatcher>) {
        match self.backend.look() {
            None => return,
            Some(Change::Up) => {
                let how = self.backend.describe();
                tracing::info!(
                    backend = self.backend.kind().as_str(),
                    how,
                    "the scheduler's backend has changed"
                );
            }
            Some(Change::Down(why)) => {
                let (backend, how) = (self.backend.kind().as_str(), self.backend.describe());
                tracing::warn!(backend, how, why, "spry-scx's scheduler has ended; no call is lost by that");
            }
        }
        let functions = dispatcher.bus().functions.iter().filter_map(|function| function.load_full());
        for function in functions.filter(|function| function.domain.is_some()) {
            function.instances().for_each(|instance| self.share(&instance));
        }
        self.act(dispatcher, |inner, _| {
            inner.engine.tell_anew(self.backend.wants_ranks(), &mut inner.orders);
        });
    }

    /// Slices that are over, and who is found to be blocked.
    fn turn(&self, dispatcher: &Rc<Dispatcher>) {
        let bus = Arc::clone(dispatcher.bus());
        self.act(dispatcher, |inner, now_ns| {
            inner.armed_ns = None;
            let Inner { engine, entries, orders, .. } = inner;
            let mut used = |task: TaskId| entries.get_mut(&task)?.instance(&bus)?.cpu_since_answer_ns();
            engine.turn(now_ns, &mut used, orders);
        });
    }

    /// What processes that are watched do: their owners are invocations.
    fn told(&self, dispatcher: &Rc<Dispatcher>, events: &[Told]) {
        for event in events {
            self.with(dispatcher, InvocationId(event.owner), |inner, now_ns, task| {
                let Some(instance) = inner.entries.get(&task).and_then(|entry| entry.instance.as_deref())
                else {
                    return;
                };
                if event.woke {
                    inner.engine.wake(now_ns, task, &mut inner.orders);
                } else if instance.is_blocked() {
                    // (Otherwise it is over already, and the next event says so.)
                    let used_ns = instance.cpu_since_answer_ns().unwrap_or(0);
                    inner.engine.block(now_ns, task, used_ns, &mut inner.orders);
                }
            });
        }
    }

    fn with(
        &self,
        dispatcher: &Rc<Dispatcher>,
        id: InvocationId,
        change: impl FnOnce(&mut Inner, u64, TaskId),
    ) {
        self.act(dispatcher, |inner, now_ns| {
            if let Some(task) = inner.tasks.get(&id).copied() {
                change(inner, now_ns, task);
            }
        });
    }

    /// Lets something happen, and does what follows from it, until nothing does.
    fn act(&self, dispatcher: &Rc<Dispatcher>, change: impl FnOnce(&mut Inner, u64)) {
        let mut admitted = Vec::new();
        {
            let mut inner = self.inner.lock();
            change(&mut inner, monotonic_ns());
            self.obey(&mut inner, dispatcher.bus(), &mut admitted);
        }
        while let Some((id, function, queued)) = admitted.pop() {
            let sent = dispatcher.deliver(&function, queued);
            let mut inner = self.inner.lock();
            // It may be over by now; then its slot is another's.
            if let Some(task) = inner.tasks.get(&id).copied() {
                let now_ns = monotonic_ns();
                let Inner { engine, entries, orders, .. } = &mut *inner;
                if sent {
                    engine.sent(now_ns, task, orders);
                    if let Some(instance) =
                        entries.get_mut(&task).and_then(|entry| entry.instance(dispatcher.bus()))
                    {
                        instance.watch(id);
                    }
                } else {
                    engine.stalled(now_ns, task, orders);
                }
                self.obey(&mut inner, dispatcher.bus(), &mut admitted);
            }
            drop(inner);
            if !sent {
                // An instance may have become idle between the look and the queueing, with nobody to notice.
                dispatcher.pump(&function);
            }
        }
    }

    /// Carries orders out; those that are to be sent are added to `admitted`.
    fn obey(&self, inner: &mut Inner, bus: &Bus, admitted: &mut Vec<(InvocationId, Arc<Function>, Queued)>) {
        for order in std::mem::take(&mut inner.orders) {
            match order {
                Order::Admit(task) => {
                    let Some(entry) = inner.entries.get_mut(&task) else { continue };
                    let Some(queued) = entry.waiting.take() else { continue };
                    entry.function.usage.admitted();
                    admitted.push((entry.id, Arc::clone(&entry.function), queued));
                }
                Order::Stand(task, standing) => {
                    let Some(entry) = inner.entries.get_mut(&task) else { continue };
                    let (id, stood) = (entry.id, entry.stood);
                    let Some(instance) = entry.instance(bus) else { continue };
                    if !inner.closed.contains(&task) {
                        instance.stand_for(id);
                    } else if !stood {
                        continue; // it has been given the next one, and the backend knows
                    }
                    self.counts.moves.fetch_add(1, Ordering::Relaxed);
                    self.tell(instance, standing);
                }
            }
        }
        inner.clear_closed();
        let next_ns = inner.engine.next_turn_ns();
        if let Some(next_ns) = next_ns
            && inner.armed_ns.is_none_or(|armed_ns| next_ns < armed_ns)
        {
            inner.armed_ns = Some(next_ns);
            let at = TimeSpec::from_duration(Duration::from_nanos(next_ns.max(1)));
            if let Err(error) = self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            {
                tracing::error!(%error, "the scheduler's timer can't be set");
            }
        }
    }

    /// Readable when slices are over.
    fn timer_fd(&self) -> std::io::Result<OwnedFd> {
        self.timer.as_fd().try_clone_to_owned()
    }
}

impl Inner {
    fn open(&mut self, now_ns: u64, function: &Arc<Function>, queued: Queued) -> TaskId {
        let id = InvocationId(queued.descriptor.invocation);
        let size_bytes = Some(u64::from(queued.descriptor.length));
        let slot = FunctionId(u32::from(function.index.0));
        if function.usage.is_new() {
            self.engine.forget(slot);
        }
        let task = self.engine.arrive(now_ns, slot, size_bytes, &mut self.orders);
        self.tasks.insert(id, task);
        let function = Arc::clone(function);
        let entry = Entry { function, id, waiting: Some(queued), instance: None, stood: false };
        self.entries.insert(task, entry);
        task
    }

    fn close(&mut self, now_ns: u64, task: TaskId, used_ns: u64, finished: bool) {
        let Some(entry) = self.entries.get_mut(&task) else { return };
        if entry.waiting.take().is_some() {
            entry.function.usage.admitted();
        }
        entry.function.usage.closed();
        if let Some(instance) = &entry.instance {
            instance.unwatch(entry.id);
            entry.stood = instance.stop_standing_for(entry.id);
        }
        self.tasks.remove(&entry.id);
        self.closed.push(task);
        self.engine.exit(now_ns, task, used_ns, finished, &mut self.orders);
    }

    /// Under the lock in which they were closed: then their slots are others'.
    fn clear_closed(&mut self) {
        for task in self.closed.drain(..) {
            self.entries.remove(&task);
        }
    }
}

impl Entry {
    /// Who has it, if anybody does and it can be seen.
    fn instance(&mut self, bus: &Bus) -> Option<&Instance> {
        if self.instance.is_none() && self.waiting.is_none() {
            let peer = bus.transport.holder(self.function.index, self.id)?;
            self.instance = self.function.instance_of(peer);
        }
        self.instance.as_deref()
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("policy", &self.policy).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
