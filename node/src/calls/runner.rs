//! The thread that runs accepted calls: it alone knows where each of them is.
//!
//! It waits for messages and for the next instant at which something is due, whichever comes first; nothing is polled. A
//! call is launched on a gateway worker, as if a client had sent it there; what comes of it comes back as a message, and
//! its end is written before anybody is told.

mod at_work;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use super::call::Call;
use super::callback::{Post, Posts};
use super::database::Reader;
use super::launch::Ran;
use super::policy::Policy;
use super::rows::Callback;
use super::writer::Op;
use super::{CallsError, Clock, Room};
use crate::dispatch::ToWorker;
use crate::gateway::call_id::CallId;
use at_work::AtWork;

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
    pub posts: Posts,
    pub parts: Parts,
}

/// What it works with.
pub(super) struct Parts {
    pub own: UnboundedSender<ToRunner>,
    pub writer: Sender<Op>,
    pub reader: Reader,
    pub workers: Vec<UnboundedSender<ToWorker>>,
    pub callees: Arc<dyn Callees>,
    pub defaults: Policy,
    pub in_flight_max: usize,
    /// Bytes of an answer that are kept, and that a callback gets.
    pub body_max: usize,
    pub told_max: usize,
    pub memory_max: u64,
    pub clock: Clock,
    pub room: Arc<Room>,
    pub stats: Arc<Stats>,
}

impl Runner {
    /// Works until it is told to close.
    pub(super) async fn run(self) {
        let Self { mut inbox, posts, parts } = self;
        let mut at_work = AtWork::new(parts, posts);
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
