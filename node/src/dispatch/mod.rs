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
//!    └─no─► queue ─► keeper forks ─► admit ─► pump ─► Port::send …
//! ```
//!
//! Whoever sees an instance become idle pumps the queue, whoever put the request there.

mod pending;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, InvocationId, PortIndex};
use shm_bus::transport::{BusError, Event, Port, Sent, Transport};
use spry_ebpf_common::{PORT_BIT, SLOTS_PER_FUNCTION, flags};
use spry_sched::placement::{Advice, WallNs};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

pub use pending::{Answered, Ended, Invocation, Outcome, Request};
use pending::{Pending, Slab};

use crate::function::{Entered, Function, Queued, SentAt};
use crate::gateway::Refusal;
use crate::instance::{Doom, Instance};
use crate::keeper::ToKeeper;
use crate::manifest::Isolation;
use crate::zygote::Executor;

/// Between two looks at the deadlines.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// What a worker is told by other threads.
pub enum ToWorker {
    /// Serve this connection.
    Connection(crate::gateway::Connection),
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
    Shutdown,
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
    queued: AtomicUsize,
}

impl Bus {
    /// A bus with no function on it.
    pub fn new(
        transport: Arc<dyn Transport>,
        functions: usize,
        keeper: UnboundedSender<ToKeeper>,
        limits: QueueLimits,
        executor: Arc<Executor>,
    ) -> Arc<Self> {
        let functions = (0..functions).map(|_| ArcSwapOption::empty()).collect();
        Arc::new(Self { transport, functions, keeper, limits, executor, queued: AtomicUsize::new(0) })
    }

    /// Invocations that wait, on the whole node.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    fn function(&self, index: FunctionIndex) -> Option<Arc<Function>> {
        self.functions.get(usize::from(index.0))?.load_full()
    }

    /// Takes everything that waits for `function` out of its queue.
    pub fn take_queue(&self, function: &Function) -> Vec<Queued> {
        let mut all = Vec::new();
        while let Some(next) = function.dequeue() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            all.push(next);
        }
        all
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
}

struct Inner {
    port: Box<dyn Port>,
    events: Vec<Event>,
    pending: Slab,
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
        let inner = RefCell::new(Inner { port, events: Vec::with_capacity(64), pending });
        let (next_look, look) = (Cell::new(None), Notify::new());
        Ok(Rc::new(Self { bus, port_index, cpu, inner, next_look, look }))
    }

    /// Holds invocations to their deadlines, whether somebody still waits for them or not, until the thread ends.
    ///
    /// One timer for all: set to the earliest deadline that there is when it is looked at. It doesn't follow the
    /// requests that come and go meanwhile (setting a timer for each costs a microsecond), so it is woken once
    /// per time limit under load, and never when nothing waits.
    pub async fn serve_deadlines(self: Rc<Self>) {
        loop {
            match self.next_look.get() {
                Some(at) => {
                    let sooner = self.look.notified();
                    let _ = tokio::time::timeout_at(at.into(), sooner).await;
                }
                None => self.look.notified().await,
            }
            let (due, next) = self.inner.borrow().pending.due(Instant::now());
            self.next_look.set(next.map(|next| next.max(Instant::now() + LOOK_PAUSE)));
            for id in due {
                self.expire(id);
            }
        }
    }

    /// Makes sure that a deadline isn't overlooked.
    fn watch(&self, deadline: Instant) {
        if self.next_look.get().is_none_or(|next| deadline < next) {
            self.next_look.set(Some(deadline));
            self.look.notify_one();
        }
    }

    /// What all dispatchers share.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// Sends a written request on its way, or queues it.
    pub fn submit(self: &Rc<Self>, function: Entered, request: Request) -> Result<Invocation, Refusal> {
        let submitted_at = Instant::now();
        let mut descriptor = Descriptor { route: function.index.0, ..Descriptor::default() };
        descriptor.source = PORT_BIT | u32::from(self.port_index.0);
        request.block.describe(&mut descriptor);
        self.watch(request.deadline);
        let target = Arc::clone(&function);
        let id = {
            let mut inner = self.inner.borrow_mut();
            let pending = Pending::new(function, request, submitted_at, descriptor);
            inner.pending.insert(pending).ok_or(Refusal::NodeFull { what: "invocations" })?
        };
        descriptor.invocation = id.0;
        let sent = target.queue_len() == 0 && self.send(&target, &descriptor);
        if !sent && let Err(refusal) = self.queue(&target, id, descriptor) {
            let refused = self.inner.borrow_mut().pending.remove(id);
            drop(refused);
            return Err(refusal);
        }
        Ok(Invocation::new(Rc::clone(self), id))
    }

    /// True when sent; false when no instance is idle.
    fn send(&self, function: &Function, descriptor: &Descriptor) -> bool {
        if !self.bus.transport.has_idle(function.index) {
            return false;
        }
        match self.inner.borrow_mut().port.send(function.index, descriptor) {
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
    ) -> Result<(), Refusal> {
        let limits = self.bus.limits;
        if self.bus.queued.fetch_add(1, Ordering::Relaxed) >= limits.node {
            self.bus.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::NodeFull { what: "waiting requests" });
        }
        let sent = self.inner.borrow_mut().pending.queued(id);
        let limit = limits.function;
        if function.enqueue(Queued { descriptor, sent }, limit).is_err() {
            self.bus.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::QueueFull { limit });
        }
        function.bell.notify_one();
        // An instance may have become idle between the look and the queueing, with nobody to notice.
        self.pump(function);
        Ok(())
    }

    /// Sends what waits for `function` to its idle instances.
    pub fn pump(&self, function: &Arc<Function>) {
        while self.bus.transport.has_idle(function.index) {
            let Some(next) = function.dequeue() else { return };
            next.sent.mark();
            if !self.send(function, &next.descriptor) {
                return function.requeue(next);
            }
            self.bus.queued.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes in what has arrived on the port.
    pub fn receive(self: &Rc<Self>) {
        let mut events = {
            let mut inner = self.inner.borrow_mut();
            let mut events = std::mem::take(&mut inner.events);
            if let Err(error) = inner.port.receive(&mut events) {
                tracing::error!(port = self.port_index.0, %error, "the bus port can't be read");
            }
            events
        };
        for event in events.drain(..) {
            match event {
                Event::Answer(descriptor) => self.answered(descriptor),
                Event::Bounced(descriptor) => self.bounced(descriptor),
                Event::Forward(descriptor) | Event::Emitted(descriptor) => {
                    tracing::error!(?descriptor, "a message of a chain, and no chain is served here");
                }
            }
        }
        self.inner.borrow_mut().events = events;
    }

    fn answered(self: &Rc<Self>, descriptor: Descriptor) {
        let id = InvocationId(descriptor.invocation);
        let bit = (descriptor.source % SLOTS_PER_FUNCTION) as usize;
        let Some(function) =
            self.bus.function(FunctionIndex((descriptor.source / SLOTS_PER_FUNCTION) as u16))
        else {
            return tracing::error!(?descriptor, "an answer from a function that is not there");
        };
        let Some(instance) = function.instances[bit].load_full() else {
            return tracing::error!(?descriptor, "an answer from an instance that is not there");
        };
        let single_use = function.stored.manifest.isolation == Isolation::Request;
        let held = single_use || descriptor.flags & flags::HOLD != 0;
        let output = instance.take_output(held);
        let outcome = Answered { descriptor, instance: Arc::clone(&instance), at: Instant::now() };
        let finished = self.inner.borrow_mut().pending.finish(id, Outcome::Answered(outcome));
        if let Some(output) = output {
            let call = finished.as_ref().map(|finished| finished.call_id);
            let mut history = function.history.lock();
            for (stream, bytes) in &output.chunks {
                history.log(call, *stream, bytes);
            }
            if output.dropped_bytes > 0 {
                let note =
                    format!("[spry: {} bytes of output over the limit were dropped]", output.dropped_bytes);
                history.log(call, crate::activation::Stream::Stderr, note.as_bytes());
            }
        }
        match finished {
            Some(finished) => {
                if let Some(took) = finished.exec {
                    self.observe(&function, took);
                }
                finished.wake();
            }
            // Nobody waits any more, but the block must go back to the instance.
            None => instance.discard(&descriptor),
        }
        if let Some(cpu) = self.cpu
            && instance.served_from(cpu)
        {
            let _ = self.bus.keeper.send(ToKeeper::Move { instance: Arc::clone(&instance), cpu });
        }
        if single_use {
            instance.kill(Doom::Retired);
        } else if held {
            self.bus.transport.admit(instance.peer);
        }
        if function.queue_len() > 0 {
            self.pump(&function);
        }
    }

    fn observe(&self, function: &Arc<Function>, took: std::time::Duration) {
        // Contended: another worker is learning the same thing.
        let Some(mut placement) = function.placement.try_lock() else { return };
        if let Some(advice) = placement.observe(WallNs(took.as_nanos() as u64)) {
            let at_home = advice == Advice::Home;
            let _ = self.bus.keeper.send(ToKeeper::Place { function: Arc::clone(function), at_home });
        }
    }

    fn bounced(self: &Rc<Self>, descriptor: Descriptor) {
        let Some(function) = self.bus.function(FunctionIndex(descriptor.route)) else {
            return tracing::error!(?descriptor, "a descriptor for a function that is not there came back");
        };
        self.bus.queued.fetch_add(1, Ordering::Relaxed);
        function.requeue(Queued { descriptor, sent: SentAt::new(Instant::now()) });
        function.bell.notify_one();
        self.pump(&function);
    }

    /// An instance ended with this invocation in its hands.
    pub fn lost(self: &Rc<Self>, id: InvocationId, begun: bool, refusal: Refusal) {
        let again = if begun { None } else { self.inner.borrow_mut().pending.again(id) };
        if let Some((function, descriptor)) = again {
            tracing::debug!(function = function.name(), ?id, "not begun when its instance ended: sent again");
            self.bus.queued.fetch_add(1, Ordering::Relaxed);
            let sent = self.inner.borrow_mut().pending.queued(id);
            function.requeue(Queued { descriptor, sent });
            function.bell.notify_one();
            return self.pump(&function);
        }
        let finished = self.inner.borrow_mut().pending.finish(id, Outcome::Refused(refusal));
        if let Some(finished) = finished {
            finished.wake();
        }
    }

    /// Ends an invocation whose time ran out: out of the queue, or with the instance that holds it.
    fn expire(&self, id: InvocationId) {
        let Some(function) = self.inner.borrow_mut().pending.function(id) else { return };
        let limit = function.stored.manifest.limits.timeout.as_duration();
        let refusal = if self.withdraw(&function, id) {
            Refusal::QueueTimeout(limit)
        } else {
            let holder = self.bus.transport.holder(function.index, id);
            if let Some(instance) = holder.and_then(|peer| instance_of(&function, peer)) {
                instance.kill(Doom::TimedOut(id));
            }
            Refusal::TimedOut(limit)
        };
        let finished = self.inner.borrow_mut().pending.finish(id, Outcome::Refused(refusal));
        if let Some(finished) = finished {
            finished.wake();
        }
    }

    fn withdraw(&self, function: &Function, id: InvocationId) -> bool {
        let withdrawn = function.withdraw(id);
        if withdrawn {
            self.bus.queued.fetch_sub(1, Ordering::Relaxed);
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

fn instance_of(function: &Function, peer: shm_bus::ids::PeerId) -> Option<Arc<Instance>> {
    function.instances[peer.bit() as usize].load_full().filter(|instance| instance.peer == peer)
}
