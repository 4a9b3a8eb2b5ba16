//! Where every call is, and what happens to it next.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Live, Parts, ToRunner};
use crate::calls::CallsError;
use crate::calls::call::Call;
use crate::calls::callback::{Post, Posts};
use crate::calls::launch::{Again, Launch, Ran, unrunnable};
use crate::calls::policy::Verdict;
use crate::calls::queue::{Place, Queue};
use crate::calls::rows::{Callback, Ended, Outcome};
use crate::calls::writer::Op;
use crate::dispatch::ToWorker;
use crate::gateway::call_id::CallId;

pub(super) struct AtWork {
    queue: Queue,
    running: HashMap<CallId, Call>,
    /// Over, but that isn't on disk yet.
    ending: HashMap<CallId, Call>,
    waiters: HashMap<CallId, Vec<oneshot::Sender<()>>>,
    /// Bytes of bodies in memory of calls that wait.
    held_bytes: u64,
    next_worker: usize,
    stopped: bool,
    posts: Rc<RefCell<Posts>>,
    parts: Parts,
}

impl AtWork {
    pub(super) fn new(parts: Parts, posts: Posts) -> Self {
        Self {
            queue: Queue::default(),
            running: HashMap::new(),
            ending: HashMap::new(),
            waiters: HashMap::new(),
            held_bytes: 0,
            next_worker: 0,
            stopped: false,
            posts: Rc::new(RefCell::new(posts)),
            parts,
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.stopped {
            return None;
        }
        let posts = self.posts.borrow().next_due();
        [self.queue.next_due(), posts].into_iter().flatten().min()
    }

    pub(super) fn take(&mut self, message: ToRunner) {
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
                self.parts.stats.cancelled.fetch_add(1, Ordering::Relaxed);
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
            if self.held_bytes + call.body_len > self.parts.memory_max {
                call.body = None;
            } else {
                self.held_bytes += call.body_len;
            }
        }
        self.queue.insert(call, Instant::now());
    }

    /// Starts what can be started.
    pub(super) fn pump(&mut self) {
        let now = Instant::now();
        let callees = Arc::clone(&self.parts.callees);
        let fallback = self.parts.defaults;
        let limit_of = move |name: &str| callees.policy(name).unwrap_or(fallback).in_flight as usize;
        while !self.stopped
            && let Some(call) = self.queue.next(now, self.parts.in_flight_max, &limit_of)
        {
            self.launch(call);
        }
        if !self.stopped {
            Posts::pump(&self.posts, now, &self.parts.reader, &self.parts.own);
        }
        let (queued, delayed) = self.queue.waiting();
        self.parts.stats.queued.store(queued as u64, Ordering::Relaxed);
        self.parts.stats.delayed.store(delayed as u64, Ordering::Relaxed);
        self.parts.stats.running.store(self.queue.in_flight() as u64, Ordering::Relaxed);
    }

    fn launch(&mut self, mut call: Call) {
        let id = call.id;
        let body = match call.body.take() {
            Some(body) => {
                self.held_bytes -= call.body_len;
                Ok(Some(body))
            }
            None => self.parts.reader.body(call.seq).map(|body| body.map(Into::into)),
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
        let body_max = if call.callback.is_some() { self.parts.told_max } else { self.parts.body_max };
        let mut launch = Some(Launch::new(&call, body, body_max, self.parts.own.clone()));
        self.running.insert(id, call);
        self.next_worker = (self.next_worker + 1) % self.parts.workers.len().max(1);
        if let (Some(worker), Some(launch)) = (self.parts.workers.get(self.next_worker), launch.take()) {
            // A worker that is gone drops it, and so it comes back.
            let _ = worker.send(ToWorker::Call(Box::new(launch)));
        }
    }

    fn ran(&mut self, id: CallId, ran: Option<Ran>) {
        let Some(mut call) = self.running.remove(&id) else { return };
        self.queue.ended(id);
        // What the end of spryd has refused stays on disk as it is, and runs after the restart.
        if self.stopped && ran.as_ref().is_none_or(|ran| ran.again == Some(Again::Free)) {
            return self.wait(call);
        }
        let now = Instant::now();
        let policy = self.parts.callees.policy(&call.function).unwrap_or(self.parts.defaults);
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
                self.parts.stats.retried.fetch_add(1, Ordering::Relaxed);
                let _ = self.parts.writer.send(Op::Postpone {
                    seq: call.seq,
                    failures: call.failures,
                    delay: wait,
                });
                self.again(call, now + wait);
            }
        }
    }

    fn again(&mut self, mut call: Call, due: Instant) {
        call.due = due;
        self.wait(call);
    }

    fn end(&mut self, call: Call, outcome: Outcome, dead: bool) {
        let counter = if dead { &self.parts.stats.dead } else { &self.parts.stats.done };
        counter.fetch_add(1, Ordering::Relaxed);
        if dead {
            tracing::warn!(call = %call.id, function = &*call.function, status = outcome.status, "a call was given up");
        }
        let ended = self.ended(&call, outcome, dead);
        let callback = call.callback.clone().map(|url| {
            let (seq, id, bytes) = (call.seq, call.id, ended.bytes());
            (Callback { seq, id, url, bytes, attempts: 0, due: Instant::now() }, ended.clone())
        });
        let mut kept = ended;
        if kept.outcome.body.len() > self.parts.body_max {
            kept.outcome.body.truncate(self.parts.body_max);
            kept.outcome.truncated = true;
        }
        match &callback {
            Some((callback, _)) => self.parts.room.exchange(call.bytes(), callback.bytes),
            None => self.parts.room.give_back(call.bytes()),
        }
        let _ = self.parts.writer.send(Op::End { seq: call.seq, ended: kept, callback });
        self.ending.insert(call.id, call);
    }

    fn ended(&self, call: &Call, outcome: Outcome, dead: bool) -> Ended {
        Ended {
            id: call.id,
            function: Arc::clone(&call.function),
            attempts: call.failures + u32::from(!dead),
            accepted_unix_ms: call.accepted_unix_ms,
            ended_unix_ms: (self.parts.clock)(),
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
        let _ = self.parts.writer.send(Op::Cancel { call, ended, done });
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
            crate::calls::callback::Next::Over { seq, bytes, made } => {
                self.parts.room.give_back(bytes);
                let counter =
                    if made { &self.parts.stats.callbacks } else { &self.parts.stats.callbacks_lost };
                counter.fetch_add(1, Ordering::Relaxed);
                let _ = self.parts.writer.send(Op::CalledBack { seq });
            }
            crate::calls::callback::Next::Later { seq, tries, delay } => {
                let _ = self.parts.writer.send(Op::CallBackLater { seq, tries, delay });
            }
        }
    }
}
