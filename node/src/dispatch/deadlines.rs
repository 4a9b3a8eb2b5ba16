//! Holding invocations to their deadlines, and ending those that nobody waits for.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shm_bus::ids::{InvocationId, PeerId};

use super::pending::Pending;
use super::{Dispatcher, Outcome, Visit};
use crate::function::Function;
use crate::gateway::Refusal;
use crate::instance::{Doom, Instance};

/// Between two looks at the deadlines.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// What is out of time may be on its way from one to another: whoever has it is looked for again.
const SEARCH_PAUSE: Duration = Duration::from_millis(20);

impl Dispatcher {
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
            let next = [next, self.end_late()].into_iter().flatten().min();
            self.next_look.set(next.map(|next| next.max(Instant::now() + LOOK_PAUSE)));
            for id in due {
                self.expire(id);
            }
        }
    }

    /// Makes sure that a deadline isn't overlooked.
    pub(super) fn watch(&self, deadline: Instant) {
        if self.next_look.get().is_none_or(|next| deadline < next) {
            self.next_look.set(Some(deadline));
            self.look.notify_one();
        }
    }

    /// Ends an invocation whose time ran out: out of the queue, or with the instance that holds it.
    fn expire(self: &Rc<Self>, id: InvocationId) {
        let Some((target, limit)) = self.target_now(id) else { return };
        if self.withdraw(&target, id) {
            return self.refuse(id, Refusal::QueueTimeout(limit));
        }
        if let Some(peer) = self.bus.transport.holder(target.index, id) {
            self.end_holder(&target, peer, id);
        }
        let again = Instant::now() + SEARCH_PAUSE;
        let finished = {
            let mut inner = self.inner.borrow_mut();
            let mut refusal = Refusal::TimedOut(limit);
            if let Some(pending) = inner.pending.get(id) {
                pending.leave_in_hands(again);
                if pending.run().is_some() {
                    refusal = Refusal::ChainTimedOut(limit);
                }
            }
            inner.pending.finish(id, Outcome::Refused(refusal))
        };
        self.watch(again);
        if let Some(finished) = finished {
            finished.wake();
        }
    }

    /// Whether an invocation only waits, in a further seat of an instance that is at work for another: its time being over
    /// is no reason to end that. Says so once; the next time, the other has had [`SEARCH_PAUSE`] to end, and such
    /// instances are never long at work.
    fn waits_its_turn(&self, function: &Function, instance: &Instance, id: InvocationId) -> bool {
        let Some(other) = instance.begun().filter(|begun| *begun != id) else { return false };
        let works_for_other = self.bus.transport.holder(function.index, other) == Some(instance.peer);
        works_for_other && self.inner.borrow_mut().pending.get(id).is_some_and(Pending::let_pass)
    }

    /// Ends the instance that holds an invocation; one that isn't known yet, at a later look.
    fn end_holder(&self, target: &Function, peer: PeerId, id: InvocationId) {
        if let Some(instance) = target.instance_of(peer)
            && !self.waits_its_turn(target, &instance, id)
        {
            instance.kill(Doom::TimedOut(id));
        }
    }

    /// Ends the wait of everybody who waits for an answer on this thread: spryd is about to end.
    pub fn refuse_all(self: &Rc<Self>) {
        let waiting = self.inner.borrow().pending.waiting();
        for id in waiting {
            let target = self.target_now(id);
            if target.is_some_and(|(target, _)| self.withdraw(&target, id)) {
                self.refuse(id, Refusal::ShuttingDown);
                continue;
            }
            // Somebody has it: it goes with its instance, and stays where it lies until then.
            let refused = Outcome::Refused(Refusal::ShuttingDown);
            let finished = {
                let mut inner = self.inner.borrow_mut();
                if let Some(pending) = inner.pending.get(id) {
                    pending.stay_in_hands();
                }
                inner.pending.finish(id, refused)
            };
            if let Some(finished) = finished {
                finished.wake();
            }
        }
    }

    /// The function that has an invocation now, in its queue or in an instance, and how long it was allowed to take. No
    /// further step of a run starts.
    fn target_now(&self, id: InvocationId) -> Option<(Arc<Function>, Duration)> {
        let mut inner = self.inner.borrow_mut();
        let pending = inner.pending.get(id)?;
        let target = Arc::clone(pending.target());
        let (Some(run), Some(trail)) = (pending.run(), pending.trail()) else {
            let limit = target.stored.manifest.limits.timeout.as_duration();
            return Some((target, limit));
        };
        self.bus.transport.cancel_trail(trail);
        let limit = run.chain.plan.timeout;
        if target.queue.has(id) {
            return Some((target, limit));
        }
        let mut hops = Vec::new();
        self.bus.transport.trail(trail, run.route.steps.len(), &mut hops);
        let function = Arc::clone(run.function(run.current_step(&hops))?);
        let visits = run.answered(&hops).map(|(step, hop)| Visit { step, hop: *hop, by: None }).collect();
        pending.overdue(visits);
        Some((function, limit))
    }

    /// Nobody waits for an invocation any more.
    pub(super) fn abandon(self: &Rc<Self>, id: InvocationId) {
        let target = {
            let mut inner = self.inner.borrow_mut();
            let Some(pending) = inner.pending.get(id) else { return };
            if let Some(trail) = pending.trail() {
                self.bus.transport.cancel_trail(trail);
            }
            Arc::clone(pending.target())
        };
        let withdrawn = self.withdraw(&target, id);
        if withdrawn {
            self.settle(id);
        }
        let over = {
            let mut inner = self.inner.borrow_mut();
            // The function may run on, but not for ever: the deadline holds though nobody waits.
            let over = inner.pending.get(id).is_some_and(|pending| pending.abandon()) || withdrawn;
            if over { inner.pending.remove(id) } else { None }
        };
        if let Some(answered) = over.and_then(|over| over.unread()) {
            answered.instance.discard(&answered.descriptor);
        }
    }
}
