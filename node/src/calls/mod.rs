//! Asynchronous calls: accepted once they are on disk, run at least once, retried, reported, buried.
//!
//! ```text
//! POST /async-function/NAME                        one thread each
//!      │ Calls::accept                 ┌────────────────────────────────────┐
//!      ├──────────────────────────────►│ writer: many operations, one flush │──► 202
//!      │                               └──────▲──────────────────┬──────────┘
//!      │                        ends, retries │                  │ "is on disk"
//!      │                               ┌──────┴──────────────────▼──────────┐
//!      │         DELETE, GET ─────────►│ runner: queue, timers, callbacks   │
//!      │                               └──────┬──────────────────▲──────────┘
//!      │                               launch │                  │ what came of it
//!      │                               ┌──────▼──────────────────┴──────────┐
//!      └── the same gateway workers ──►│ a request like any other           │
//!                                      └────────────────────────────────────┘
//! ```
//!
//! The life of a call: *accepted* (on disk, 202) → *queued* or *delayed* → *running* → done, or *delayed* again, or *dead*.
//! Which of these it is in lives in the runner's memory only; the disk knows calls that have not ended, and how often they
//! have failed. After a crash they all start over from there: a call that was running runs again, one that had ended does
//! not. `docs/async.md` is for users, `docs/decisions/0015-asynchronous-calls.md` says why it is like this.

pub mod call;
mod callback;
pub mod database;
mod error;
pub mod launch;
pub mod policy;
mod queue;
mod room;
pub mod rows;
pub mod runner;
pub mod settings;
pub mod target;
mod trust;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use call::{Call, Head};
use callback::Posts;
use database::{Database, Key, Reader};
pub use error::CallsError;
use policy::Policy;
pub(crate) use room::Room;
use rows::{DeadLetter, Ended, StoredTrigger};
use runner::{Callees, Live, Runner, Stats, ToRunner};
use settings::Settings;
use target::Target;
pub use writer::Accepted;
use writer::{Health, Op, Writer};

use crate::dispatch::ToWorker;
use crate::gateway::call_id::CallId;
use crate::store::StoreError;
use crate::store::fault::Seam;

/// The wall clock, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A call can't be put off for longer.
pub const DELAY_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of an idempotency key.
pub const KEY_MAX: usize = 255;

/// A submission.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// Whom to call; it must be there.
    pub function: Arc<str>,
    /// What to send.
    pub head: Head,
    /// Its body.
    pub body: Bytes,
    /// Whom to tell.
    pub callback: Option<String>,
    /// How long to wait first.
    pub delay: Duration,
    /// What makes a repetition the same call.
    pub key: Option<Vec<u8>>,
}

/// What is needed to open the calls.
pub struct Parts<'a> {
    /// Where `calls.db` is.
    pub state_dir: &'a Path,
    /// `[async]`.
    pub settings: Settings,
    /// Of functions and chains that say nothing.
    pub defaults: Policy,
    /// The wall clock.
    pub clock: Clock,
    /// Where tests make steps fail.
    pub seam: Seam,
}

/// The asynchronous calls of a node. Shared by all threads.
pub struct Calls {
    settings: Settings,
    writer: Sender<Op>,
    runner: UnboundedSender<ToRunner>,
    reader: Mutex<Reader>,
    room: Arc<Room>,
    next_seq: AtomicU64,
    clock: Clock,
    health: Arc<Health>,
    stats: Arc<Stats>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    unstarted: Mutex<Option<Unstarted>>,
}

/// What the runner is made of, until there are workers.
struct Unstarted {
    inbox: tokio::sync::mpsc::UnboundedReceiver<ToRunner>,
    reader: Reader,
    posts: Posts,
    defaults: Policy,
}

/// Numbers for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Calls that wait for their turn.
    pub queued: u64,
    /// Calls that wait for their time.
    pub delayed: u64,
    /// Calls that run.
    pub running: u64,
    /// Accepted since the start.
    pub accepted: u64,
    /// Ended with an answer since the start.
    pub done: u64,
    /// Failed runs that were followed by another, since the start.
    pub retried: u64,
    /// Given up since the start.
    pub died: u64,
    /// Cancelled since the start.
    pub cancelled: u64,
    /// Dead letters there are.
    pub dead: u64,
    /// Callbacks made since the start.
    pub callbacks: u64,
    /// Callbacks given up since the start.
    pub callbacks_lost: u64,
    /// Bytes of bodies that wait.
    pub bytes: u64,
    /// Transactions on disk since the start.
    pub commits: u64,
    /// Transactions that failed since the start.
    pub commit_failures: u64,
    /// Calls can't be written now.
    pub broken: bool,
}

impl Calls {
    /// Opens `calls.db` and starts to write; nothing runs before [`Self::start`].
    pub fn open(parts: Parts<'_>) -> Result<Arc<Self>, StoreError> {
        let Parts { state_dir, settings, defaults, clock, seam } = parts;
        let failed = |source| StoreError::Database { operation: "read the calls", source };
        let path = database::path(state_dir);
        let database = Database::open(&path)?;
        let loaded = database.load(clock(), Instant::now()).map_err(failed)?;
        if loaded.unreadable > 0 {
            tracing::error!(
                count = loaded.unreadable,
                "stored calls can't be read and were left as they are"
            );
        }
        let room = Arc::new(Room {
            calls: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            calls_max: settings.calls,
            bytes_max: settings.bytes,
        });
        let (to_runner, inbox) = unbounded_channel();
        if !loaded.calls.is_empty() {
            tracing::info!(count = loaded.calls.len(), "accepted calls from before the restart will run");
        }
        for call in loaded.calls {
            room.take_anyway(call.body_len);
            let _ = to_runner.send(ToRunner::Run(call));
        }
        let mut posts = Posts::new(&settings.callback);
        loaded.callbacks.into_iter().for_each(|callback| posts.insert(callback));
        let (to_writer, operations) = channel();
        let health = Arc::new(Health::default());
        let writer = Writer {
            database,
            inbox: operations,
            runner: to_runner.clone(),
            keep: settings.keep,
            clock: Arc::clone(&clock),
            seam,
            health: Arc::clone(&health),
            room: Arc::clone(&room),
        };
        let thread = std::thread::Builder::new().name("calls-writer".into()).spawn(move || writer.run());
        let thread = thread.map_err(StoreError::os("start a thread for", &path))?;
        Ok(Arc::new(Self {
            settings,
            writer: to_writer,
            runner: to_runner,
            reader: Mutex::new(Reader::open(&path)?),
            room,
            next_seq: AtomicU64::new(loaded.next_seq),
            clock,
            health,
            stats: Arc::default(),
            threads: Mutex::new(vec![thread]),
            unstarted: Mutex::new(Some(Unstarted { inbox, reader: Reader::open(&path)?, posts, defaults })),
        }))
    }

    /// Begins to run what is there, on these workers.
    pub fn start(
        &self,
        workers: Vec<UnboundedSender<ToWorker>>,
        callees: Arc<dyn Callees>,
    ) -> std::io::Result<()> {
        let Some(Unstarted { inbox, reader, posts, defaults }) = self.unstarted.lock().take() else {
            return Ok(());
        };
        let runtime_and_rest = RunnerParts {
            own: self.runner.clone(),
            writer: self.writer.clone(),
            clock: Arc::clone(&self.clock),
            room: Arc::clone(&self.room),
            stats: Arc::clone(&self.stats),
            settings: self.settings.clone(),
        };
        let (ready, wait) = channel();
        let thread = std::thread::Builder::new().name("calls-runner".into()).spawn(move || {
            let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match made {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            let RunnerParts { own, writer, clock, room, stats, settings } = runtime_and_rest;
            let runner = Runner {
                inbox,
                own,
                writer,
                reader,
                workers,
                callees,
                defaults,
                in_flight_max: settings.in_flight,
                body_max: settings.result_max,
                memory_max: settings.memory,
                clock,
                room,
                stats,
                posts,
            };
            tokio::task::LocalSet::new().block_on(&runtime, runner.run());
        })?;
        self.threads.lock().push(thread);
        wait.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))
    }

    /// Puts a call on disk. Returns once it is there.
    pub async fn accept(&self, new: NewCall) -> Result<Accepted, CallsError> {
        if let Some(url) = &new.callback {
            Target::parse(url)?.check(&self.settings.callback.rules)?;
        }
        let key = new.key.as_ref().map(|key| Key { key: key.clone(), digest: digest(&new) });
        let body_len = new.body.len() as u64;
        self.room.take(body_len)?;
        let id = match CallId::random() {
            Ok(id) => id,
            Err(error) => {
                self.room.give_back(body_len);
                return Err(CallsError::Unwritable(error.to_string()));
            }
        };
        let now = Instant::now();
        let call = Call {
            id,
            seq: self.next_seq.fetch_add(1, Ordering::Relaxed),
            function: new.function,
            head: Arc::new(new.head),
            body: Some(new.body),
            body_len,
            callback: new.callback.map(Into::into),
            accepted_unix_ms: (self.clock)(),
            accepted_at: now,
            due: now + new.delay,
            failures: 0,
            refusals: 0,
        };
        let (done, wait) = oneshot::channel();
        let accepted = self.ask(Op::Accept { call, delay: new.delay, key, done }, wait).await;
        match &accepted {
            Ok(accepted) if !accepted.repeated => {
                self.stats.accepted.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.room.give_back(body_len),
        }
        accepted
    }

    /// Takes back a call that has not begun. Once this has returned, it never runs.
    pub async fn cancel(&self, id: CallId) -> Result<(), CallsError> {
        let (done, wait) = oneshot::channel();
        self.runner.send(ToRunner::Cancel { id, done }).map_err(|_| CallsError::ShuttingDown)?;
        wait.await.unwrap_or(Err(CallsError::ShuttingDown))
    }

    /// Where a call is that has not ended.
    pub async fn live(&self, id: CallId) -> Option<Live> {
        let (done, wait) = oneshot::channel();
        self.runner.send(ToRunner::Look { id, done }).ok()?;
        wait.await.ok().flatten()
    }

    /// How a call ended. Blocks on the disk.
    pub fn ended(&self, id: CallId) -> Result<Option<Ended>, CallsError> {
        Ok(self.reader.lock().ended(id)?)
    }

    /// Dead letters, the newest first. Blocks on the disk.
    pub fn dead(&self, function: Option<&str>, limit: usize) -> Result<Vec<DeadLetter>, CallsError> {
        Ok(self.reader.lock().dead(function, limit)?)
    }

    /// Makes a dead letter a call again, with all its chances.
    pub async fn revive(&self, id: CallId) -> Result<(), CallsError> {
        let (done, wait) = oneshot::channel();
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        let there = self.ask(Op::Revive { id, seq, done }, wait).await?;
        there.then_some(()).ok_or(CallsError::NoSuchDead(id))
    }

    /// Removes a dead letter.
    pub async fn drop_dead(&self, id: CallId) -> Result<(), CallsError> {
        let (done, wait) = oneshot::channel();
        let there = self.ask(Op::DropDead { id, done }, wait).await?;
        there.then_some(()).ok_or(CallsError::NoSuchDead(id))
    }

    /// All triggers. Blocks on the disk.
    pub fn triggers(&self) -> Result<Vec<StoredTrigger>, CallsError> {
        Ok(self.reader.lock().triggers()?)
    }

    /// Stores a trigger in the place of the one of its name.
    pub async fn put_trigger(&self, trigger: StoredTrigger) -> Result<(), CallsError> {
        let (done, wait) = oneshot::channel();
        self.ask(Op::PutTrigger { trigger, done }, wait).await
    }

    /// Removes a trigger; false: there is none.
    pub async fn remove_trigger(&self, name: &str) -> Result<bool, CallsError> {
        let (done, wait) = oneshot::channel();
        self.ask(Op::RemoveTrigger { name: name.to_owned(), done }, wait).await
    }

    /// Notes the instant that a trigger has fired for.
    pub fn note_fired(&self, name: &str, unix_ms: u64) {
        let _ = self.writer.send(Op::Fired { name: name.to_owned(), unix_ms });
    }

    async fn ask<T>(&self, op: Op, wait: oneshot::Receiver<Result<T, CallsError>>) -> Result<T, CallsError> {
        self.writer.send(op).map_err(|_| CallsError::ShuttingDown)?;
        wait.await.unwrap_or(Err(CallsError::ShuttingDown))
    }

    /// Numbers for status and metrics.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            queued: of(&self.stats.queued),
            delayed: of(&self.stats.delayed),
            running: of(&self.stats.running),
            accepted: of(&self.stats.accepted),
            done: of(&self.stats.done),
            retried: of(&self.stats.retried),
            died: of(&self.stats.dead),
            cancelled: of(&self.stats.cancelled),
            dead: self.reader.lock().dead_count().unwrap_or_default(),
            callbacks: of(&self.stats.callbacks),
            callbacks_lost: of(&self.stats.callbacks_lost),
            bytes: of(&self.room.bytes),
            commits: of(&self.health.commits),
            commit_failures: of(&self.health.failures),
            broken: self.health.broken.load(Ordering::Relaxed),
        }
    }

    /// Starts nothing more.
    pub fn stop(&self) {
        let _ = self.runner.send(ToRunner::Stop);
    }

    /// Writes what is to be written, and ends. Call it when the workers have ended.
    pub fn close(&self) {
        let _ = self.runner.send(ToRunner::Close);
        let threads = std::mem::take(&mut *self.threads.lock());
        // The runner first: what it has to say is written.
        for thread in threads.into_iter().rev() {
            if thread.thread().name() == Some("calls-writer") {
                let _ = self.writer.send(Op::Close);
            }
            let _ = thread.join();
        }
    }
}

struct RunnerParts {
    own: UnboundedSender<ToRunner>,
    writer: Sender<Op>,
    clock: Clock,
    room: Arc<Room>,
    stats: Arc<Stats>,
    settings: Settings,
}

/// Of what makes two submissions the same: whom, what, and who is told. Headers may differ (dates, traces).
fn digest(new: &NewCall) -> [u8; 32] {
    let mut digest = Sha256::new();
    let callback = new.callback.as_deref().unwrap_or_default();
    for part in [&*new.function, new.head.method.as_str(), &new.head.rest, callback] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.update(&new.body);
    digest.finalize().into()
}

#[cfg(test)]
mod tests;
