//! What comes back from the bus, and from the keeper about those who died.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, InvocationId};
use shm_bus::transport::Event;
use spry_ebpf_common::{CHAIN_BIT, SLOTS_PER_FUNCTION, flags};
use spry_sched::placement::{Advice, WallNs};
use spry_wire::frame::Place;
use tokio::sync::oneshot;

use super::{Answered, Dispatcher, Outcome, place_of};
use crate::activation::Stream;
use crate::function::{Function, Queued, SentAt};
use crate::gateway::Refusal;
use crate::gateway::call_id::CallId;
use crate::instance::{Doom, Instance};
use crate::keeper::ToKeeper;
use crate::manifest::Isolation;

/// Who sent a descriptor.
struct Sender {
    function: Arc<Function>,
    instance: Arc<Instance>,
    /// It serves one invocation only.
    single_use: bool,
    /// It is out of service until spryd has read its output.
    held: bool,
}

impl Dispatcher {
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
            self.take_in(event);
        }
        self.inner.borrow_mut().events = events;
    }

    fn take_in(self: &Rc<Self>, event: Event) {
        match event {
            Event::Answer(descriptor) => self.answered(descriptor),
            Event::Forward(descriptor) => self.forwarded(descriptor),
            Event::Emitted(descriptor) => self.emitted(descriptor),
            Event::Bounced(descriptor) => self.bounced(descriptor),
        }
    }

    fn answered(self: &Rc<Self>, descriptor: Descriptor) {
        let id = InvocationId(descriptor.invocation);
        let Some(sender) = self.sender(&descriptor) else {
            return self.take_in_later(&descriptor, Event::Answer(descriptor));
        };
        let at = Instant::now();
        self.log_output(&sender, id);
        self.settle(id);
        let used = sender.instance.take_used();
        self.count_usage(&sender, id, used.cpu_ns.unwrap_or(0));
        let instance = Arc::clone(&sender.instance);
        let (unread, read) = instance.gate.is_some().then(oneshot::channel).unzip();
        let outcome = Outcome::Answered(Answered { descriptor, instance, at, used, unread });
        let finished = self.inner.borrow_mut().pending.finish(id, outcome);
        let is_run = descriptor.route & CHAIN_BIT != 0;
        match finished {
            Some(finished) => {
                if let Some(took) = finished.exec.filter(|_| !is_run) {
                    self.learn(&sender.function, &sender.instance, took);
                }
                finished.wake();
            }
            // Nobody waits any more, but the block must go back to the instance. (A run's went with its call.)
            None if !is_run => sender.instance.discard(&descriptor),
            None => {}
        }
        self.back_in_service(&sender, read);
    }

    /// An invocation has used so much, and is over.
    fn count_usage(
        self: &Rc<Self>,
        Sender { function, instance, .. }: &Sender,
        id: InvocationId,
        cpu_ns: u64,
    ) {
        function.usage.observe(cpu_ns);
        if let Some(scheduler) = self.scheduler_of(function) {
            scheduler.over(self, id, cpu_ns, true);
        }
        if let Some(scheduler) = self.bus.cores.scheduler.as_deref().filter(|_| function.domain.is_none()) {
            scheduler.renew(instance);
        }
    }

    /// A step has answered, and the bus can't send the run on by itself.
    fn forwarded(self: &Rc<Self>, descriptor: Descriptor) {
        let id = InvocationId(descriptor.invocation);
        let Some(sender) = self.sender(&descriptor) else {
            return self.take_in_later(&descriptor, Event::Forward(descriptor));
        };
        self.log_output(&sender, id);
        self.send_on(id, descriptor.step, place_of(&descriptor));
        self.back_in_service(&sender, None);
    }

    /// Sends a run to one of its steps, or queues it there.
    pub(super) fn send_on(self: &Rc<Self>, id: InvocationId, step: u8, place: Place) {
        let next = self.inner.borrow_mut().pending.get(id).and_then(|pending| {
            let (run, trail) = (pending.run()?, pending.trail()?);
            let function = Arc::clone(run.function(step)?);
            let descriptor = run.descriptor(self.port_index, trail.index, step, place);
            (!pending.is_abandoned()).then_some((function, Descriptor { invocation: id.0, ..descriptor }))
        });
        let refusal = match next {
            Some((function, descriptor)) => {
                if function.queue.is_empty() && self.send(&function, &descriptor) {
                    return;
                }
                // What has come so far isn't turned away: runs are bounded by their trails.
                match self.queue(&function, id, descriptor, usize::MAX) {
                    Ok(()) => return,
                    Err(refusal) => refusal,
                }
            }
            None => Refusal::Cancelled,
        };
        self.refuse(id, refusal);
    }

    /// Ends an invocation that nobody has.
    pub(super) fn refuse(self: &Rc<Self>, id: InvocationId, refusal: Refusal) {
        if let Some(scheduler) = &self.bus.cores.scheduler {
            scheduler.over(self, id, 0, false);
        }
        self.settle(id);
        let finished = self.inner.borrow_mut().pending.finish(id, Outcome::Refused(refusal));
        if let Some(finished) = finished {
            finished.wake();
        }
    }

    /// A function has emitted a value and serves on.
    fn emitted(self: &Rc<Self>, descriptor: Descriptor) {
        let id = InvocationId(descriptor.invocation);
        let Some(sender) = self.sender(&descriptor) else {
            return self.take_in_later(&descriptor, Event::Emitted(descriptor));
        };
        let of = self
            .inner
            .borrow_mut()
            .pending
            .get(id)
            .map(|pending| (pending.run().cloned(), pending.call_id()));
        match of {
            Some((Some(run), call_id)) => {
                crate::chain::emitted(self, &run, call_id, &sender.instance, place_of(&descriptor));
            }
            Some((None, call_id)) => {
                sender.instance.discard(&descriptor);
                let note = b"[spry: a value was emitted and dropped: this call isn't part of a chain]";
                sender.function.history.lock().log(Some(call_id), Stream::Stderr, note);
            }
            None => sender.instance.discard(&descriptor),
        }
    }

    fn bounced(self: &Rc<Self>, descriptor: Descriptor) {
        if descriptor.route & CHAIN_BIT != 0 {
            return self.send_on(InvocationId(descriptor.invocation), descriptor.step, place_of(&descriptor));
        }
        let Some(function) = self.bus.function(FunctionIndex(descriptor.route)) else {
            return tracing::error!(?descriptor, "a descriptor for a function that is not there came back");
        };
        // (As it waits, wherever it was to be laid.)
        let id = InvocationId(descriptor.invocation);
        let waits = self.inner.borrow_mut().pending.get(id).map(|pending| pending.descriptor());
        let descriptor = waits.unwrap_or(descriptor);
        self.bus.queued.fetch_add(1, Ordering::Relaxed);
        function.queue.put_back(Queued { descriptor, sent: SentAt::new(Instant::now()) });
        if let Some(scheduler) = self.scheduler_of(&function) {
            scheduler.stalled(self, InvocationId(descriptor.invocation));
        }
        function.want_instance();
        self.pump(&function);
    }

    /// An instance ended with this invocation in its hands.
    pub fn lost(self: &Rc<Self>, id: InvocationId, begun: bool, refusal: Refusal) {
        let again = if begun { None } else { self.again(id) };
        let Some((function, descriptor)) = again else { return self.refuse(id, refusal) };
        tracing::debug!(function = function.name(), ?id, "not begun when its instance ended: sent again");
        self.bus.queued.fetch_add(1, Ordering::Relaxed);
        let sent = self.inner.borrow_mut().pending.queued(id, &function);
        function.queue.put_back(Queued { descriptor, sent });
        if let Some(scheduler) = self.scheduler_of(&function) {
            scheduler.stalled(self, id);
        }
        function.want_instance();
        self.pump(&function);
    }

    /// What to send again, and to whom.
    fn again(&self, id: InvocationId) -> Option<(Arc<Function>, Descriptor)> {
        let mut inner = self.inner.borrow_mut();
        let pending = inner.pending.again(id)?;
        let (Some(run), Some(trail)) = (pending.run(), pending.trail()) else {
            return Some((Arc::clone(pending.target()), pending.descriptor()));
        };
        let mut hops = Vec::new();
        self.bus.transport.trail(trail, run.route.steps.len(), &mut hops);
        let step = run.current_step(&hops);
        let descriptor = run.descriptor(self.port_index, trail.index, step, run.input_of(step, &hops));
        Some((Arc::clone(run.function(step)?), Descriptor { invocation: id.0, ..descriptor }))
    }

    fn sender(&self, descriptor: &Descriptor) -> Option<Sender> {
        let function = self.bus.function(function_of(descriptor))?;
        let instance = function.instances[bit_of(descriptor) as usize].load_full()?;
        let single_use = function.stored.manifest.isolation == Isolation::Request;
        let held = single_use || descriptor.flags & flags::HOLD != 0;
        Some(Sender { function, instance, single_use, held })
    }

    /// What a process has sent that spryd doesn't know yet counts when it does.
    #[cold]
    fn take_in_later(self: &Rc<Self>, descriptor: &Descriptor, event: Event) {
        let (id, bit) = (InvocationId(descriptor.invocation), bit_of(descriptor));
        let function = self.bus.function(function_of(descriptor));
        let Some(met) = function.as_ref().and_then(|function| function.expected(bit)) else {
            return match function.and_then(|function| function.instances[bit as usize].load_full()) {
                // It has become known just now.
                Some(_) => self.take_in(event),
                None => self.from_nobody(event),
            };
        };
        let dispatcher = Rc::clone(self);
        tokio::task::spawn_local(async move {
            match met.await {
                Ok(_) => dispatcher.take_in(event),
                Err(why) => dispatcher.refuse(id, why),
            }
        });
    }

    /// A message from an instance that is gone. (The ports are flushed before one goes, so there should be none.) Nobody
    /// else has the invocation that it ends.
    fn from_nobody(self: &Rc<Self>, event: Event) {
        tracing::error!(?event, "a message from an instance that is not there");
        if let Event::Answer(descriptor) | Event::Forward(descriptor) = event {
            self.refuse(InvocationId(descriptor.invocation), Refusal::Killed { signal: libc::SIGKILL });
        }
    }

    /// What the invocation has written goes to the function's log.
    fn log_output(&self, sender: &Sender, id: InvocationId) {
        let Some(output) = sender.instance.output.take(sender.held) else { return };
        let call: Option<CallId> = self.inner.borrow_mut().pending.get(id).map(|pending| pending.call_id());
        let mut history = sender.function.history.lock();
        for (stream, bytes) in &output.chunks {
            history.log(call, *stream, bytes);
        }
        if output.dropped_bytes > 0 {
            self.bus.totals.dropped_output_bytes.fetch_add(output.dropped_bytes, Ordering::Relaxed);
            let note =
                format!("[spry: {} bytes of output over the limit were dropped]", output.dropped_bytes);
            history.log(call, Stream::Stderr, note.as_bytes());
        }
    }

    /// An instance has answered: what it may do next. `read` resolves when its answer needs it no more.
    fn back_in_service(self: &Rc<Self>, sender: &Sender, read: Option<oneshot::Receiver<()>>) {
        if sender.held && !sender.single_use && sender.function.note_talk() {
            let _ = self.bus.keeper.send(ToKeeper::Talks(Arc::clone(&sender.function)));
        }
        if let Some(gate) = &sender.instance.gate {
            let (gate, dispatcher) = (Arc::clone(gate), Rc::clone(self));
            let (function, bit) = (Arc::clone(&sender.function), sender.instance.peer.bit());
            tokio::task::spawn_local(async move { dispatcher.rewind(&function, bit, gate, read).await });
        } else if sender.single_use {
            // After the tasks that have just been woken: its end takes a core for a while, and the client waits.
            let instance = Arc::clone(&sender.instance);
            tokio::task::spawn_local(async move { instance.kill(Doom::Used) });
        } else if sender.held {
            self.bus.transport.admit(sender.instance.peer);
        }
        if !sender.function.queue.is_empty() {
            self.pump(&sender.function);
        }
    }

    /// What one execution tells about where the function should run.
    pub(super) fn learn(&self, function: &Arc<Function>, instance: &Arc<Instance>, took: Duration) {
        if let Some(cpu) = self.cpu
            && instance.served_from(cpu)
        {
            let _ = self.bus.keeper.send(ToKeeper::Move { instance: Arc::clone(instance), cpu });
        }
        // Contended: another worker is learning the same thing.
        let Some(mut placement) = function.placement.try_lock() else { return };
        if let Some(advice) = placement.observe(WallNs(took.as_nanos() as u64)) {
            let at_home = advice == Advice::Home;
            let _ = self.bus.keeper.send(ToKeeper::Place { function: Arc::clone(function), at_home });
        }
    }
}

/// The function that a descriptor comes from.
fn function_of(descriptor: &Descriptor) -> FunctionIndex {
    FunctionIndex((descriptor.source / SLOTS_PER_FUNCTION) as u16)
}

/// Which of the function's instances it comes from.
fn bit_of(descriptor: &Descriptor) -> u32 {
    descriptor.source % SLOTS_PER_FUNCTION
}
