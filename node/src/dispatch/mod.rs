//! From a written request to its answer: one dispatcher per thread that has a bus port.
//!
//! A worker's dispatcher keeps the invocations that its requests wait for in a slab; an invocation's id is
//! `port:8 | slab key:24 | generation:32`, so that a late answer to an abandoned invocation finds another
//! generation and is dropped. The keeper has a dispatcher too, which only sends what others queued.
//!
//! The order of things on the way (each arrow may happen on another thread):
//!
//! ```text
//! submit ──idle?──► Port::send ──► instance ──► Event::Answer ──► outcome, wake the request
//!    └─no─► queue ─► keeper asks for a fork ─► admit ─► pump ─► Port::send …
//! ```
//!
//! Whoever sees an instance become idle pumps the queue, whoever put the request there.
//!
//! A chain's run ([`run`]) is an invocation, too. It comes back when it has ended ([`Event::Answer`]) or when the bus can't
//! send it on alone ([`Event::Forward`]); then it waits in the queue of its next step's function like any other.

mod deadlines;
mod events;
mod pending;
mod rewind;
mod run;
mod trails;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, InvocationId, PortIndex};
use shm_bus::transport::{BusError, Event, Port, Sent, Transport};
use spry_ebpf_common::PORT_BIT;
use spry_sched::signals::Signals;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

pub use pending::{Answered, Ended, Invocation, Job, Outcome, Request};
use pending::{Pending, Slab};
pub use run::{Run, Visit, place_of, place_of_hop};
use trails::Trails;

use crate::function::{Function, Queued};
use crate::gateway::Refusal;
use crate::keeper::ToKeeper;
use crate::metrics::Totals;
use crate::schedule::Scheduler;
use crate::zygote::Executor;

/// What a worker is told by other threads.
pub enum ToWorker {
    /// Serve this connection, which is counted as long.
    Connection(crate::gateway::Connection, crate::gateway::Counted),
    /// Run this asynchronous call.
    Call(Box<crate::calls::launch::Launch>),
    /// Take in what has arrived on the port, then answer.
    Flush(tokio::sync::oneshot::Sender<()>),
    /// An instance has ended with this invocation in its hands.
    Lost {
        /// Which one.
        invocation: InvocationId,
        /// Whether the instance had begun it; if not, another may.
        begun: bool,
        /// What to tell the client.
        refusal: Refusal,
    },
    /// Finish what is there and end.
    Shutdown {
        /// Calls that have not ended by then are refused.
        grace: std::time::Duration,
    },
}

/// Bounds of what may wait.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Per function.
    pub function: usize,
    /// All functions together.
    pub node: usize,
}

/// What all dispatchers share.
pub struct Bus {
    /// How descriptors travel.
    pub transport: Arc<dyn Transport>,
    /// The functions by bus index.
    pub functions: Box<[ArcSwapOption<Function>]>,
    /// The keeper's mailbox.
    pub keeper: UnboundedSender<ToKeeper>,
    /// Bounds.
    pub limits: QueueLimits,
    /// Told that an instance gets work (its memory may have to be watched).
    executor: Arc<Executor>,
    /// Counters of the node as a whole.
    pub totals: Totals,
    /// Who has the cores.
    pub cores: Cores,
    queued: AtomicUsize,
}

/// Who has the cores, and what is known of that.
#[derive(Debug, Default)]
pub struct Cores {
    /// Who goes first; `None`: the kernel's to say.
    pub scheduler: Option<Arc<Scheduler>>,
    /// What processes do, as the kernel's scheduler sees it; `None`: not to be had, or not wanted.
    pub signals: Option<Arc<Signals>>,
    /// How many there are.
    pub count: u32,
}

impl Bus {
    /// A bus with no function on it.
    pub fn new(
        transport: Arc<dyn Transport>,
        functions: usize,
        keeper: UnboundedSender<ToKeeper>,
        limits: QueueLimits,
        executor: Arc<Executor>,
        cores: Cores,
    ) -> Arc<Self> {
        let functions = (0..functions).map(|_| ArcSwapOption::empty()).collect();
        let (totals, queued) = (Totals::default(), AtomicUsize::new(0));
        Arc::new(Self { transport, functions, keeper, limits, executor, totals, cores, queued })
    }

    /// Invocations that wait, on the whole node.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Tells the bus whether anybody waits for a chain's function. While somebody does, what its instances answer comes to
    /// a worker, who sees that they are idle: the bus alone would send the run on, and nobody would hear.
    fn tell_waiting(&self, function: &Function) {
        if function.domain.is_none() {
            return; // its answers come to a worker in any case
        }
        loop {
            let waiting = !function.queue.is_empty();
            self.transport.set_waiting(function.index, waiting);
            // Two who tell at once: the last word is the one that is true.
            if function.queue.is_empty() != waiting {
                return;
            }
        }
    }

    fn function(&self, index: FunctionIndex) -> Option<Arc<Function>> {
        self.functions.get(usize::from(index.0))?.load_full()
    }

    /// Takes everything that waits for `function` out of its queue.
    pub fn take_queue(&self, function: &Function) -> Vec<Queued> {
        let mut all = Vec::new();
        while let Some(next) = function.queue.pop() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            all.push(next);
        }
        self.tell_waiting(function);
        let held =
            self.cores.scheduler.as_ref().map_or_else(Vec::new, |scheduler| scheduler.take_held(function));
        self.queued.fetch_sub(held.len(), Ordering::Relaxed);
        all.extend(held);
        all
    }

    /// One more waits on the node, if there is room.
    fn count_in(&self) -> Result<(), Refusal> {
        if self.queued.fetch_add(1, Ordering::Relaxed) >= self.limits.node {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::NodeFull { what: "waiting requests" });
        }
        Ok(())
    }
}

/// The port of an invocation, from its id.
pub fn port_of(invocation: InvocationId) -> PortIndex {
    PortIndex((invocation.0 >> 56) as u8)
}

/// One thread's way onto the bus.
pub struct Dispatcher {
    bus: Arc<Bus>,
    port_index: PortIndex,
    /// The CPU that this thread is bound to.
    cpu: Option<usize>,
    inner: RefCell<Inner>,
    /// When [`Self::serve_deadlines`] looks next; `None`: when it is told.
    next_look: Cell<Option<Instant>>,
    look: Notify,
    /// Instances that have answered, and haven't come to the stub yet.
    awaited: rewind::Awaited,
}

struct Inner {
    port: Box<dyn Port>,
    events: Vec<Event>,
    pending: Slab,
    trails: Trails,
}

impl Dispatcher {
    /// Opens a port. `seed` is secret: invocations' names are drawn from it.
    pub fn new(
        bus: Arc<Bus>,
        port_index: PortIndex,
        cpu: Option<usize>,
        seed: u64,
    ) -> Result<Rc<Self>, BusError> {
        let port = bus.transport.open_port(port_index)?;
        let pending = Slab::new(port_index, seed);
        let trails = Trails::new(port_index);
        let inner = RefCell::new(Inner { port, events: Vec::with_capacity(64), pending, trails });
        let (next_look, look, awaited) = (Cell::new(None), Notify::new(), rewind::Awaited::default());
        Ok(Rc::new(Self { bus, port_index, cpu, inner, next_look, look, awaited }))
    }

    /// What all dispatchers share.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// Sends what is written on its way, or queues it.
    pub fn submit(self: &Rc<Self>, request: Request) -> Result<Invocation, Refusal> {
        self.watch(request.deadline);
        let (id, target, descriptor) = match &request.job {
            Job::Function { function, block } => {
                let target = Arc::clone(function);
                self.look_after(&target);
                let mut descriptor = Descriptor { route: function.index.0, ..Descriptor::default() };
                descriptor.source = PORT_BIT | u32::from(self.port_index.0);
                block.describe(&mut descriptor);
                let (id, descriptor) = self.name(Pending::new(request, descriptor, None))?;
                (id, target, descriptor)
            }
            Job::Run(_) => self.begin_run(request)?,
        };
        let limit = self.bus.limits.function;
        let accepted = match &self.bus.cores.scheduler {
            Some(scheduler) if scheduler.wants(&target) => self.schedule(scheduler, &target, id, descriptor),
            _ if target.queue.is_empty() && self.send(&target, &descriptor) => Ok(()),
            _ => {
                self.bus.totals.pool_misses.fetch_add(1, Ordering::Relaxed);
                self.queue(&target, id, descriptor, limit)
            }
        };
        if let Err(refusal) = accepted {
            self.settle(id);
            let refused = self.inner.borrow_mut().pending.remove(id);
            drop(refused);
            return Err(refusal);
        }
        Ok(Invocation::new(Rc::clone(self), id))
    }

    /// Leaves it to the policy when it begins.
    fn schedule(
        self: &Rc<Self>,
        scheduler: &Scheduler,
        function: &Arc<Function>,
        id: InvocationId,
        descriptor: Descriptor,
    ) -> Result<(), Refusal> {
        let limit = self.bus.limits.function;
        if function.waiting() >= limit {
            return Err(Refusal::QueueFull { limit });
        }
        self.bus.count_in()?;
        let sent = self.inner.borrow_mut().pending.queued(id, function);
        scheduler.submit(self, function, Queued { descriptor, sent });
        Ok(())
    }

    /// Sends what was let in, or puts it into its function's queue. True: sent.
    pub(crate) fn deliver(&self, function: &Function, queued: Queued) -> bool {
        if function.queue.is_empty() {
            queued.sent.mark();
            if self.send(function, &queued.descriptor) {
                self.bus.queued.fetch_sub(1, Ordering::Relaxed);
                return true;
            }
        }
        self.bus.totals.pool_misses.fetch_add(1, Ordering::Relaxed);
        // (Without a limit: it has been counted as waiting before.)
        let _ = function.queue.push(queued, usize::MAX);
        function.want_instance();
        self.bus.tell_waiting(function);
        false
    }

    fn name(&self, pending: Pending) -> Result<(InvocationId, Descriptor), Refusal> {
        let descriptor = pending.descriptor();
        let named = self.inner.borrow_mut().pending.insert(pending);
        let id = named.map_err(|_| Refusal::NodeFull { what: "invocations" })?;
        Ok((id, Descriptor { invocation: id.0, ..descriptor }))
    }

    /// True when sent; false when no instance is idle.
    fn send(&self, function: &Function, descriptor: &Descriptor) -> bool {
        if !self.bus.transport.has_idle(function.index) {
            return false;
        }
        let port = &mut self.inner.borrow_mut().port;
        let sent = match &function.own_inboxes {
            None => port.send(function.index, descriptor),
            Some(own) => {
                let waiting = function.inbox();
                port.send_prepared(function.index, descriptor, &mut |peer, descriptor| {
                    let laid = own.lay(peer.bit(), &waiting, descriptor);
                    if !laid {
                        tracing::error!(function = function.name(), ?peer, "an instance has no inbox");
                    }
                    laid
                })
            }
        };
        match sent {
            Ok(Sent::Delivered) => {
                self.bus.executor.nudge();
                true
            }
            Ok(Sent::NoIdlePeer) => false,
            Err(error) => {
                tracing::error!(function = function.name(), %error, "the bus does not take descriptors");
                false
            }
        }
    }

    fn queue(
        self: &Rc<Self>,
        function: &Arc<Function>,
        id: InvocationId,
        descriptor: Descriptor,
        limit: usize,
    ) -> Result<(), Refusal> {
        self.bus.count_in()?;
        let sent = self.inner.borrow_mut().pending.queued(id, function);
        if function.queue.push(Queued { descriptor, sent }, limit).is_err() {
            self.bus.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::QueueFull { limit });
        }
        function.want_instance();
        self.bus.tell_waiting(function);
        // An instance may have become idle between the look and the queueing, with nobody to notice.
        self.pump(function);
        Ok(())
    }

    /// Sends what waits for `function` to its idle instances.
    pub fn pump(self: &Rc<Self>, function: &Arc<Function>) {
        self.send_waiting(function);
        self.bus.tell_waiting(function);
        // Of an instance that became idle before it was told, nobody has heard.
        if !function.queue.is_empty() {
            self.send_waiting(function);
            self.bus.tell_waiting(function);
        }
    }

    fn send_waiting(self: &Rc<Self>, function: &Function) {
        while self.bus.transport.has_idle(function.index) {
            let Some(next) = function.queue.pop() else { return };
            next.sent.mark();
            if !self.send(function, &next.descriptor) {
                return function.queue.put_back(next);
            }
            self.bus.queued.fetch_sub(1, Ordering::Relaxed);
            if let Some(scheduler) = self.scheduler_of(function) {
                scheduler.sent(self, InvocationId(next.descriptor.invocation));
            }
        }
    }

    /// The scheduler, if it knows of any of this function's invocations.
    fn scheduler_of(&self, function: &Function) -> Option<&Scheduler> {
        self.bus.cores.scheduler.as_deref().filter(|_| function.usage.is_scheduled())
    }

    fn withdraw(self: &Rc<Self>, function: &Function, id: InvocationId) -> bool {
        let scheduler = self.scheduler_of(function);
        let withdrawn =
            function.queue.withdraw(id) || scheduler.is_some_and(|scheduler| scheduler.withdraw(self, id));
        if withdrawn {
            self.bus.queued.fetch_sub(1, Ordering::Relaxed);
            self.bus.tell_waiting(function);
        }
        withdrawn
    }

    /// Serves the port until the thread ends: waits for it, takes in what comes.
    pub async fn serve_port(self: Rc<Self>) -> std::io::Result<()> {
        let fd = self.inner.borrow().port.fd().try_clone_to_owned()?;
        let ready = crate::sys::watch_readable(fd)?;
        loop {
            let mut guard = ready.readable().await?;
            guard.clear_ready();
            self.receive();
        }
    }
}
