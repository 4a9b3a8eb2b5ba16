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
mod counts;
pub mod database;
mod error;
pub mod launch;
pub mod policy;
mod queue;
mod room;
pub mod rows;
pub mod runner;
pub mod settings;
mod start;
pub mod target;
mod trust;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use call::{Call, Head};
pub use counts::Counts;
use database::{Key, Reader};
pub use error::CallsError;
use policy::Policy;
pub(crate) use room::Room;
use rows::{DeadLetter, Ended, StoredTrigger};
use runner::{Live, Stats, ToRunner};
use settings::Settings;
use start::Unstarted;
use target::Target;
pub use writer::Accepted;
use writer::{Health, Op};

use crate::gateway::call_id::CallId;
use crate::store::fault::Seam;

/// The wall clock, in milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A call can't be put off for longer.
pub const DELAY_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of a call's body, and of an answer for a callback, at most. SQLite stores no row of a billion bytes (with what else is in
/// it), and one that it refuses would take everything in its transaction along.
pub const BODY_MAX: u64 = 900 << 20;
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

impl Calls {
    /// Puts a call on disk. Returns once it is there.
    pub async fn accept(&self, new: NewCall) -> Result<Accepted, CallsError> {
        if let Some(url) = &new.callback {
            Target::parse(url)?.check(&self.settings.callback.rules)?;
        }
        let key = new.key.as_ref().map(|key| Key { key: key.clone(), digest: digest(&new) });
        let id = CallId::random().map_err(|error| CallsError::Unwritable(error.to_string()))?;
        let due = Instant::now() + new.delay;
        let call = Call {
            id,
            seq: self.next_seq.fetch_add(1, Ordering::Relaxed),
            function: new.function,
            head: Arc::new(new.head),
            body_len: new.body.len() as u64,
            body: Some(new.body),
            callback: new.callback.map(Into::into),
            accepted_unix_ms: (self.clock)(),
            ripe_at: due,
            due,
            failures: 0,
            refusals: 0,
        };
        self.room.take(call.bytes())?;
        let (done, wait) = oneshot::channel();
        // From here on the room is the writer's to give back: whoever waits here may leave before it has answered.
        self.ask(Op::Accept { call, delay: new.delay, key, done }, wait).await
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

    /// Dead letters, those that have died by this instant, the newest first. Blocks on the disk.
    pub fn dead(
        &self,
        function: Option<&str>,
        until_unix_ms: u64,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, CallsError> {
        Ok(self.reader.lock().dead(function, until_unix_ms, limit)?)
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
