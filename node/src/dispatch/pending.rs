//! The invocations that one worker's requests wait for.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use shm_bus::Descriptor;
use shm_bus::ids::{InvocationId, PortIndex, TrailIndex};
use tokio::sync::oneshot;

use super::Dispatcher;
use super::run::{Run, Visit};
use crate::function::{Entered, Function, SentAt};
use crate::gateway::Refusal;
use crate::gateway::call_id::CallId;
use crate::inbox::Block;
use crate::instance::{Instance, Used};

/// What is to be done, written and ready to go.
#[derive(Debug)]
pub struct Request {
    /// Its public name.
    pub call_id: CallId,
    /// When its time runs out.
    pub deadline: Instant,
    /// By whom.
    pub job: Job,
}

/// One function's work, or a run over a chain's route.
#[derive(Debug)]
pub enum Job {
    /// A function gets a request.
    Function {
        /// Which.
        function: Entered,
        /// The request.
        block: Block,
    },
    /// A value goes through a chain's functions.
    Run(Run),
}

/// An instance's answer, not yet looked at.
#[derive(Debug)]
pub struct Answered {
    /// What came.
    pub descriptor: Descriptor,
    /// From whom.
    pub instance: Arc<Instance>,
    /// When.
    pub at: Instant,
    /// What its process has used for it.
    pub used: Used,
    /// Dropped when the answer has been read from where it lies: an instance that is rewound waits for that.
    pub unread: Option<oneshot::Sender<()>>,
}

/// How an invocation ended.
#[derive(Debug)]
pub enum Outcome {
    /// With an answer.
    Answered(Answered),
    /// Without.
    Refused(Refusal),
}

/// An invocation that ended, with what is needed to answer the client.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// A function's request; the answer may lie in it.
    pub block: Option<Block>,
    /// A run's steps that have answered, in order.
    pub visits: Vec<Visit>,
    /// When it was submitted.
    pub submitted_at: Instant,
    /// When it left for an instance.
    pub sent_at: Instant,
}

pub(super) struct Pending {
    request: Request,
    submitted_at: Instant,
    descriptor: Descriptor,
    /// Where a run's steps are noted, until nobody has it any more.
    trail: Option<TrailIndex>,
    visits: Vec<Visit>,
    /// Whose queue it is or was in.
    queued_for: Option<Arc<Function>>,
    queued: Option<Arc<SentAt>>,
    attempts: u8,
    outcome: Option<Outcome>,
    waker: Option<Waker>,
    /// Nobody waits for it any more; the entry waits for whoever has the invocation to be done with it.
    abandoned: bool,
    /// Its time is over, and somebody has it: an instance, or a thread that is about to send or to queue it.
    in_hands: bool,
    /// See [`Self::let_pass`].
    passed: bool,
}

/// An invocation is given to another instance at most this often, when its instances die before they begin it.
const ATTEMPTS: u8 = 3;

impl Pending {
    pub(super) fn new(request: Request, descriptor: Descriptor, trail: Option<TrailIndex>) -> Self {
        Self {
            request,
            submitted_at: Instant::now(),
            descriptor,
            trail,
            visits: Vec::new(),
            queued_for: None,
            queued: None,
            attempts: 0,
            outcome: None,
            waker: None,
            abandoned: false,
            in_hands: false,
            passed: false,
        }
    }

    fn sent_at(&self) -> Instant {
        self.queued.as_ref().map_or(self.submitted_at, |sent| sent.get())
    }

    pub(super) fn trail(&self) -> Option<TrailIndex> {
        self.trail
    }

    pub(super) fn call_id(&self) -> CallId {
        self.request.call_id
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Whether somebody may have it, for all that is known: what it names must stay.
    fn is_in_hands(&self) -> bool {
        self.in_hands || self.trail.is_some()
    }

    /// Its time is over, and whoever has it is looked for again then.
    pub(super) fn leave_in_hands(&mut self, until: Instant) {
        self.stay_in_hands();
        self.request.deadline = until;
    }

    /// Nobody waits for it longer, and somebody has it.
    pub(super) fn stay_in_hands(&mut self) {
        self.in_hands = true;
    }

    /// Nobody has it any more.
    pub(super) fn let_go(&mut self) {
        self.in_hands = false;
    }

    /// Its time is over, and it is left where it is. True: for the first time.
    pub(super) fn let_pass(&mut self) -> bool {
        !std::mem::replace(&mut self.passed, true)
    }

    /// The run that it is, if it is one.
    pub(super) fn run(&self) -> Option<&Run> {
        match &self.request.job {
            Job::Run(run) => Some(run),
            Job::Function { .. } => None,
        }
    }

    /// The function that got it from here, or is to get it.
    pub(super) fn target(&self) -> &Arc<Function> {
        match (&self.request.job, &self.queued_for) {
            (_, Some(function)) => function,
            (Job::Function { function, .. }, None) => function,
            (Job::Run(run), None) => &run.route.steps[usize::from(run.first)].function,
        }
    }

    /// A run has come to its end, or nobody has it any more: these are the steps that it went.
    pub(super) fn settle(&mut self, visits: Vec<Visit>) {
        self.trail = None;
        if let Job::Run(run) = &self.request.job {
            run.keeps.collect(&visits);
        }
        self.visits = visits;
    }
}

/// What [`Slab::finish`] found: whom to wake, and what to learn.
pub(super) struct Finished {
    pub(super) exec: Option<Duration>,
    waker: Option<Waker>,
}

impl Finished {
    pub(super) fn wake(self) {
        if let Some(waker) = self.waker {
            waker.wake();
        }
    }
}

/// Keys below 2^24, each with a generation that can't be guessed: an instance must have read an invocation to be
/// able to answer it.
pub(super) struct Slab {
    port: PortIndex,
    entries: slab::Slab<(u32, Pending)>,
    random: u64,
}

/// Generations are 1 to this, so that no id is 0 or one of the highest (those are slot states).
const GENERATIONS: u64 = u32::MAX as u64 - 2;

impl Slab {
    pub(super) fn new(port: PortIndex, seed: u64) -> Self {
        Self { port, entries: slab::Slab::with_capacity(256), random: seed }
    }

    /// Puts an invocation in and names it.
    pub(super) fn insert(&mut self, mut pending: Pending) -> Result<InvocationId, Box<Pending>> {
        if self.entries.len() >= 1 << 24 {
            return Err(Box::new(pending));
        }
        let generation = (self.draw() % GENERATIONS) as u32 + 1;
        let key = self.entries.vacant_key() as u64;
        let id = u64::from(self.port.0) << 56 | key << 32 | u64::from(generation);
        pending.descriptor.invocation = id;
        self.entries.insert((generation, pending));
        Ok(InvocationId(id))
    }

    /// SplitMix64 (Steele et al., 2014) over a secret seed.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Those whose time has run out by `now`, and when the next one's will. (What was left in somebody's hands has its
    /// outcome already.)
    pub(super) fn due(&self, now: Instant) -> (Vec<InvocationId>, Option<Instant>) {
        let waiting = self
            .entries
            .iter()
            .filter(|(_, (_, pending))| pending.outcome.is_none() || pending.is_in_hands());
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for (_, (_, pending)) in waiting {
            let deadline = pending.request.deadline;
            if deadline <= now {
                due.push(InvocationId(pending.descriptor.invocation));
            } else {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
            }
        }
        (due, next)
    }

    /// Those that somebody waits for.
    pub(super) fn waiting(&self) -> Vec<InvocationId> {
        let waiting = self.entries.iter().filter(|(_, (_, pending))| pending.outcome.is_none());
        waiting.map(|(_, (_, pending))| InvocationId(pending.descriptor.invocation)).collect()
    }

    pub(super) fn get(&mut self, id: InvocationId) -> Option<&mut Pending> {
        if super::port_of(id) != self.port {
            return None;
        }
        let (generation, pending) = self.entries.get_mut(key_of(id))?;
        (*generation == id.0 as u32).then_some(pending)
    }

    /// It goes into this function's queue now; the mark is set when it leaves it.
    pub(super) fn queued(&mut self, id: InvocationId, function: &Arc<Function>) -> Arc<SentAt> {
        let sent = SentAt::new(Instant::now());
        if let Some(pending) = self.get(id) {
            pending.queued_for = Some(Arc::clone(function));
            pending.queued = Some(Arc::clone(&sent));
        }
        sent
    }

    /// Whether it may be sent again: its instance ended before it began.
    pub(super) fn again(&mut self, id: InvocationId) -> Option<&mut Pending> {
        let pending = self.get(id)?;
        pending.attempts += 1;
        let is_wanted = !pending.abandoned && pending.outcome.is_none();
        (is_wanted && pending.attempts < ATTEMPTS).then_some(pending)
    }

    /// Notes how it ended. `None`: nobody waits for it (any more). One that nobody has any more goes with its waiter.
    pub(super) fn finish(&mut self, id: InvocationId, outcome: Outcome) -> Option<Finished> {
        let pending = self.get(id)?;
        if pending.abandoned {
            if !pending.is_in_hands() {
                self.remove(id);
            }
            return None;
        }
        let exec = match &outcome {
            // (It may have been sent ahead, before its instance was there.)
            Outcome::Answered(Answered { at, instance, .. }) => {
                Some(at.saturating_duration_since(pending.sent_at().max(instance.ready_at)))
            }
            Outcome::Refused(_) => None,
        };
        pending.outcome = Some(outcome);
        Some(Finished { exec, waker: pending.waker.take() })
    }

    /// Takes it out, whatever its state.
    pub(super) fn remove(&mut self, id: InvocationId) -> Option<Pending> {
        self.get(id)?;
        Some(self.entries.remove(key_of(id)).1)
    }

    fn take(&mut self, id: InvocationId) -> Option<Ended> {
        let pending = self.get(id)?;
        let outcome = pending.outcome.take()?;
        let (submitted_at, sent_at) = (pending.submitted_at, pending.sent_at());
        let visits = std::mem::take(&mut pending.visits);
        let ended = |block| Ended { outcome, block, visits, submitted_at, sent_at };
        if pending.is_in_hands() {
            // The entry stays until they have let go of it, and with it the block that they may read.
            pending.abandoned = true;
            return Some(ended(None));
        }
        let (_, pending) = self.entries.remove(key_of(id));
        match pending.request.job {
            Job::Function { block, .. } => Some(ended(Some(block))),
            Job::Run(_) => Some(ended(None)),
        }
    }
}

fn key_of(id: InvocationId) -> usize {
    (id.0 >> 32) as usize & 0x00ff_ffff
}

/// A request's wait for its answer. Dropped early, the invocation is withdrawn from the queue, or left to
/// end by itself or by its deadline; no further step of a run starts.
pub struct Invocation {
    dispatcher: Rc<Dispatcher>,
    id: InvocationId,
    over: bool,
}

impl Invocation {
    pub(super) fn new(dispatcher: Rc<Dispatcher>, id: InvocationId) -> Self {
        Self { dispatcher, id, over: false }
    }
}

impl Future for Invocation {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended> {
        let id = self.id;
        let ended = {
            let mut inner = self.dispatcher.inner.borrow_mut();
            match inner.pending.take(id) {
                Some(ended) => ended,
                None => {
                    if let Some(pending) = inner.pending.get(id) {
                        pending.waker = Some(context.waker().clone());
                    }
                    return Poll::Pending;
                }
            }
        };
        self.over = true;
        Poll::Ready(ended)
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        if !self.over {
            self.dispatcher.abandon(self.id);
        }
    }
}

impl Pending {
    /// Nobody waits for it any more. True: nor does anybody have it.
    pub(super) fn abandon(&mut self) -> bool {
        self.abandoned = true;
        self.waker = None;
        self.outcome.is_some() && !self.is_in_hands()
    }

    /// A run's time is over while somebody has it: these are the steps that it has gone so far. What they have answered
    /// with is kept when it is settled.
    pub(super) fn overdue(&mut self, visits: Vec<Visit>) {
        self.visits = visits;
    }

    /// An answer that came and that nobody will read.
    pub(super) fn unread(self) -> Option<Answered> {
        match (self.outcome, self.request.job) {
            // (A run's answers are kept and given back by its call.)
            (Some(Outcome::Answered(answered)), Job::Function { .. }) => Some(answered),
            _ => None,
        }
    }

    /// The invocation's descriptor, as it was sent at first.
    pub(super) fn descriptor(&self) -> Descriptor {
        self.descriptor
    }
}
