//! The thread that runs accepted calls: it alone knows where each of them is.
//!
//! It waits for messages and for the next instant at which something is due, whichever comes first; nothing is polled. A
//! call is launched on a gateway worker, as if a client had sent it there; what comes of it comes back as a message, and
//! its end is written before anybody is told.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::call::Call;
use super::callback::{Post, Posts};
use super::database::Reader;
use super::launch::{Again, Launch, Ran, unrunnable};
use super::policy::{Policy, Verdict};
use super::queue::{Place, Queue};
use super::rows::{Callback, Ended, Outcome};
use super::writer::Op;
use super::{CallsError, Clock, Room};
use crate::dispatch::ToWorker;
use crate::gateway::call_id::CallId;

/// What the runner is told.
pub enum ToRunner {
    /// A call is on disk, and is to run when its time comes.
    Run(Call),
    /// A run is over; `None`: it did not begin.
    Ran {
        /// Which call.
        id: CallId,
        /// What came of it.
        ran: Option<Ran>,
    },
    /// That a call has ended is on disk.
    Ended {
        /// Which.
        id: CallId,
        /// Whom to tell.
        callback: Option<Callback>,
    },
    /// That a call was cancelled is on disk.
    Cancelled(Call),
    /// A callback was tried.
    Posted(Post),
    /// Cancel a call.
    Cancel {
        /// Which.
        id: CallId,
        /// Told once it is on disk.
        done: oneshot::Sender<Result<(), CallsError>>,
    },
    /// Say where a call is.
    Look {
        /// Which.
        id: CallId,
        /// `None`: it has ended, or never was.
        done: oneshot::Sender<Option<Live>>,
    },
    /// Start nothing more.
    Stop,
    /// End.
    Close,
}

/// A call that has not ended.
#[derive(Debug)]
pub struct Live {
    /// Whom it calls.
    pub function: Arc<str>,
    /// `queued`, `delayed` or `running`.
    pub state: &'static str,
    /// How often it has run and failed.
    pub failures: u32,
    /// When it was accepted.
    pub accepted_unix_ms: u64,
    /// Until it may run.
    pub due_in: Duration,
    /// Resolves when it has ended.
    pub over: oneshot::Receiver<()>,
}

/// What the runner has to know about functions and chains.
pub trait Callees: Send + Sync {
    /// How calls of that name are retried; `in_flight` is how many may run at once. `None`: there is none of that name.
    fn policy(&self, name: &str) -> Option<Policy>;
    /// Bytes of a call's body at most. `None`: there is none of that name.
    fn payload(&self, name: &str) -> Option<u64>;
}

/// Counters, for status and metrics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Calls that wait for their turn.
    pub queued: AtomicU64,
    /// Calls that wait for their time.
    pub delayed: AtomicU64,
    /// Calls that run.
    pub running: AtomicU64,
    /// Calls that were accepted.
    pub accepted: AtomicU64,
    /// Calls that ended with an answer.
    pub done: AtomicU64,
    /// Runs that failed and are followed by another.
    pub retried: AtomicU64,
    /// Calls that were given up.
    pub dead: AtomicU64,
    /// Calls that were cancelled.
    pub cancelled: AtomicU64,
    /// Callbacks that were made.
    pub callbacks: AtomicU64,
    /// Callbacks that were given up.
    pub callbacks_lost: AtomicU64,
}

/// What the runner is made of.
pub(super) struct Runner {
    pub inbox: UnboundedReceiver<ToRunner>,
    pub own: UnboundedSender<ToRunner>,
    pub writer: Sender<Op>,
    pub reader: Reader,
    pub workers: Vec<UnboundedSender<ToWorker>>,
    pub callees: Arc<dyn Callees>,
    pub defaults: Policy,
    pub in_flight_max: usize,
    pub body_max: usize,
    pub memory_max: u64,
    pub clock: Clock,
    pub room: Arc<Room>,
    pub stats: Arc<Stats>,
    pub posts: Posts,
}

impl Runner {
    /// Works until it is told to close.
    pub(super) async fn run(self) {
        let Self { mut inbox, posts, .. } = self;
        let mut at_work = AtWork {
            queue: Queue::default(),
            running: HashMap::new(),
            ending: HashMap::new(),
            waiters: HashMap::new(),
            held_bytes: 0,
            next_worker: 0,
            stopped: false,
            posts: Rc::new(std::cell::RefCell::new(posts)),
            own: self.own,
            writer: self.writer,
            reader: self.reader,
            workers: self.workers,
            callees: self.callees,
            defaults: self.defaults,
            in_flight_max: self.in_flight_max,
            body_max: self.body_max,
            memory_max: self.memory_max,
            clock: self.clock,
            room: self.room,
            stats: self.stats,
        };
        loop {
            let due = at_work.next_due();
            let mut message = tokio::select! {
                message = inbox.recv() => message,
                () = until(due) => inbox.try_recv().ok(),
            };
            while let Some(next) = message {
                if matches!(next, ToRunner::Close) {
                    return;
                }
                at_work.take(next);
                message = inbox.try_recv().ok();
            }
            at_work.pump();
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

struct AtWork {
    queue: Queue,
    running: HashMap<CallId, Call>,
    /// Over, but that isn't on disk yet.
    ending: HashMap<CallId, Call>,
    waiters: HashMap<CallId, Vec<oneshot::Sender<()>>>,
    /// Bytes of bodies in memory of calls that wait.
    held_bytes: u64,
    next_worker: usize,
    stopped: bool,
    posts: Rc<std::cell::RefCell<Posts>>,
    own: UnboundedSender<ToRunner>,
    writer: Sender<Op>,
    reader: Reader,
    workers: Vec<UnboundedSender<ToWorker>>,
    callees: Arc<dyn Callees>,
    defaults: Policy,
    in_flight_max: usize,
    body_max: usize,
    memory_max: u64,
    clock: Clock,
    room: Arc<Room>,
    stats: Arc<Stats>,
}

impl AtWork {
    fn next_due(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let posts = self.posts.borrow().next_due();
        [self.queue.next_due(), posts].into_iter().flatten().min()
    }

    fn take(&mut self, message: ToRunner) {
        match message {
            ToRunner::Run(call) => self.wait(call),
            ToRunner::Ran { id, ran } => self.ran(id, ran),
            ToRunner::Ended { id, callback } => {
                self.over(id);
                if let Some(callback) = callback {
                    self.posts.borrow_mut().insert(callback);
                }
            }
            ToRunner::Cancelled(call) => {
                self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
                self.over(call.id);
            }
            ToRunner::Posted(post) => self.posted(post),
            ToRunner::Cancel { id, done } => self.cancel(id, done),
            ToRunner::Look { id, done } => {
                let _ = done.send(self.look(id));
            }
            ToRunner::Stop => self.stopped = true,
            ToRunner::Close => {}
        }
    }

    /// Takes a call into the queue, with its body if there is memory for it.
    fn wait(&mut self, mut call: Call) {
        self.ending.remove(&call.id);
        if call.body.is_some() {
            if self.held_bytes + call.body_len > self.memory_max {
                call.body = None;
            } else {
                self.held_bytes += call.body_len;
            }
        }
        self.queue.insert(call, Instant::now());
    }

    /// Starts what can be started.
    fn pump(&mut self) {
        let now = Instant::now();
        let callees = Arc::clone(&self.callees);
        let fallback = self.defaults;
        let limit_of = move |name: &str| callees.policy(name).unwrap_or(fallback).in_flight as usize;
        while !self.stopped
            && let Some(call) = self.queue.next(now, self.in_flight_max, &limit_of)
        {
            self.launch(call);
        }
        if !self.stopped {
            Posts::pump(&self.posts, now, &self.own);
        }
        let (queued, delayed) = self.queue.waiting();
        self.stats.queued.store(queued as u64, Ordering::Relaxed);
        self.stats.delayed.store(delayed as u64, Ordering::Relaxed);
        self.stats.running.store(self.queue.in_flight() as u64, Ordering::Relaxed);
    }

    fn launch(&mut self, mut call: Call) {
        let id = call.id;
        let body = match call.body.take() {
            Some(body) => {
                self.held_bytes -= call.body_len;
                Ok(Some(body))
            }
            None => self.reader.body(call.seq).map(|body| body.map(Into::into)),
        };
        let body = match body {
            Ok(Some(body)) => body,
            Ok(None) => {
                self.running.insert(id, call);
                return self.ran(id, Some(unrunnable("body_lost", "its body is gone from the database")));
            }
            // Out of descriptors or memory: the next time may be better.
            Err(error) => {
                tracing::warn!(call = %id, %error, "a call's body can't be read; tried again later");
                self.running.insert(id, call);
                return self.ran(id, None);
            }
        };
        let body_max = if call.callback.is_some() { usize::MAX } else { self.body_max };
        let mut launch = Some(Launch::new(&call, body, body_max, self.own.clone()));
        self.running.insert(id, call);
        self.next_worker = (self.next_worker + 1) % self.workers.len().max(1);
        if let (Some(worker), Some(launch)) = (self.workers.get(self.next_worker), launch.take()) {
            // A worker that is gone drops it, and so it comes back.
            let _ = worker.send(ToWorker::Call(Box::new(launch)));
        }
    }

    fn ran(&mut self, id: CallId, ran: Option<Ran>) {
        let Some(mut call) = self.running.remove(&id) else { return };
        self.queue.ended(id);
        let now = Instant::now();
        let policy = self.callees.policy(&call.function).unwrap_or(self.defaults);
        let draw = crate::sys::random_u64().map_or(0.5, |bits| (bits >> 11) as f64 / (1u64 << 53) as f64);
        let age = call.age(now);
        let Some(Ran { outcome, again }) = ran else {
            call.refusals += 1;
            return match policy.verdict_on_overload(call.refusals, age, draw) {
                Verdict::Again(wait) => self.again(call, now + wait),
                Verdict::GiveUp => {
                    self.end(call, unrunnable("not_run", "the node never got to run it").outcome, true);
                }
            };
        };
        let verdict = match again {
            None => return self.end(call, outcome, false),
            Some(Again::Never) => Verdict::GiveUp,
            Some(Again::Counted) => {
                call.failures += 1;
                call.refusals = 0;
                policy.verdict(call.failures, age, draw)
            }
            Some(Again::Free) => {
                call.refusals += 1;
                policy.verdict_on_overload(call.refusals, age, draw)
            }
        };
        match verdict {
            Verdict::GiveUp => self.end(call, outcome, true),
            Verdict::Again(wait) => {
                self.stats.retried.fetch_add(1, Ordering::Relaxed);
                let _ =
                    self.writer.send(Op::Postpone { seq: call.seq, failures: call.failures, delay: wait });
                self.again(call, now + wait);
            }
        }
    }

    fn again(&mut self, mut call: Call, due: Instant) {
        call.due = due;
        self.wait(call);
    }

    fn end(&mut self, call: Call, outcome: Outcome, dead: bool) {
        let counter = if dead { &self.stats.dead } else { &self.stats.done };
        counter.fetch_add(1, Ordering::Relaxed);
        if dead {
            tracing::warn!(call = %call.id, function = &*call.function, status = outcome.status, "a call was given up");
        }
        let ended = self.ended(&call, outcome, dead);
        let callback = call.callback.clone().map(|url| Callback {
            seq: call.seq,
            url,
            ended: ended.clone(),
            attempts: 0,
            due: Instant::now(),
        });
        let mut kept = ended;
        if kept.outcome.body.len() > self.body_max {
            kept.outcome.body.truncate(self.body_max);
            kept.outcome.truncated = true;
        }
        self.room.give_back(call.body_len);
        let _ = self.writer.send(Op::End { seq: call.seq, ended: kept, callback });
        self.ending.insert(call.id, call);
    }

    fn ended(&self, call: &Call, outcome: Outcome, dead: bool) -> Ended {
        Ended {
            id: call.id,
            function: Arc::clone(&call.function),
            attempts: call.failures + u32::from(!dead),
            accepted_unix_ms: call.accepted_unix_ms,
            ended_unix_ms: (self.clock)(),
            outcome,
            dead,
        }
    }

    fn cancel(&mut self, id: CallId, done: oneshot::Sender<Result<(), CallsError>>) {
        let Some(mut call) = self.queue.withdraw(id) else {
            let refusal = match self.queue.place(id) {
                Some(_) => CallsError::Running(id),
                None => CallsError::NoSuchCall(id),
            };
            let _ = done.send(Err(refusal));
            return;
        };
        if call.body.take().is_some() {
            self.held_bytes -= call.body_len;
        }
        let outcome = Outcome {
            status: 499,
            headers: Default::default(),
            body: Default::default(),
            truncated: false,
            error: Some("cancelled".into()),
            took: Duration::ZERO,
        };
        let mut ended = self.ended(&call, outcome, false);
        ended.attempts = call.failures;
        self.ending.insert(id, call.clone());
        let _ = self.writer.send(Op::Cancel { call, ended, done });
    }

    fn look(&mut self, id: CallId) -> Option<Live> {
        let state = match self.queue.place(id) {
            Some(Place::Ready(..)) => "queued",
            Some(Place::Delayed(..)) => "delayed",
            Some(Place::Running(_)) | None => "running",
        };
        let call = self.queue.waiting_call(id).or_else(|| self.running.get(&id));
        let call = call.or_else(|| self.ending.get(&id))?;
        let (told, over) = oneshot::channel();
        let live = Live {
            function: Arc::clone(&call.function),
            state,
            failures: call.failures,
            accepted_unix_ms: call.accepted_unix_ms,
            due_in: call.due.saturating_duration_since(Instant::now()),
            over,
        };
        let waiters = self.waiters.entry(id).or_default();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.push(told);
        Some(live)
    }

    fn over(&mut self, id: CallId) {
        self.ending.remove(&id);
        for waiter in self.waiters.remove(&id).into_iter().flatten() {
            let _ = waiter.send(());
        }
    }

    fn posted(&mut self, post: Post) {
        match self.posts.borrow_mut().posted(post) {
            super::callback::Next::Over { seq, made } => {
                let counter = if made { &self.stats.callbacks } else { &self.stats.callbacks_lost };
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = self.writer.send(Op::CalledBack { seq });
            }
            super::callback::Next::Later { seq, tries, delay } => {
                let _ = self.writer.send(Op::CallBackLater { seq, tries, delay });
            }
        }
    }
}
