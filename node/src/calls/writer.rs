//! The thread that writes `calls.db`: group commit.
//!
//! Whatever has been asked for while the last transaction was being flushed goes into the next one: alone, a call pays for
//! one flush; a thousand at once pay for one flush together. Nobody is answered before the flush has returned.
//!
//! A transaction that fails (a full disk, a broken one) fails everybody in it who can be told: submissions, cancellations,
//! retries by hand. What *has happened* (a call has ended) can't be refused: it is owed, and written before anything
//! else once writing works again. A crash before then repeats the call, which "at least once" allows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::call::Call;
use super::database::{Batch, Database, Keep, Key, Known, Trimmed};
use super::rows::{Callback, Ended, StoredTrigger};
use super::runner::{Stats, ToRunner};
use super::{CallsError, Clock, Room};
use crate::gateway::call_id::CallId;
use crate::store::fault::{Seam, Step};

/// Operations in one transaction.
const BATCH_MAX: usize = 4096;
/// Bytes of calls and answers in one transaction: bounds how long the first waits for the last.
const BATCH_BYTES: u64 = 32 << 20;
/// What is owed is tried again this often, and sooner when something new comes.
const OWED_RETRY: Duration = Duration::from_millis(250);
/// Ends between two looks for what can be forgotten, unless they have too many bytes or something gets too old before.
const TRIM_EVERY: u64 = 1024;
/// A look that something's age calls for comes no sooner after the one before.
const TRIM_PAUSE: Duration = Duration::from_secs(1);
/// A look that failed is tried again after so long.
const TRIM_FAILED_PAUSE: Duration = Duration::from_secs(60);

/// What the writer is asked for.
pub(super) enum Op {
    /// Accept a call.
    Accept {
        /// The call, with its body.
        call: Call,
        /// How long after its acceptance it may run.
        delay: Duration,
        /// What makes a repetition the same call.
        key: Option<Key>,
        /// Told once it is on disk.
        done: oneshot::Sender<Result<Accepted, CallsError>>,
    },
    /// Forget a call that won't run.
    Cancel {
        /// Already taken out of the queue; put back if this can't be written.
        call: Call,
        /// How it is remembered.
        ended: Ended,
        /// Told once it is on disk.
        done: oneshot::Sender<Result<(), CallsError>>,
    },
    /// A call has ended.
    End {
        /// Its place.
        seq: u64,
        /// How.
        ended: Ended,
        /// Whom to tell, and what.
        callback: Option<(Callback, Ended)>,
    },
    /// A call has failed and is to run again.
    Postpone {
        /// Its place.
        seq: u64,
        /// How often it has failed.
        failures: u32,
        /// The wait.
        delay: Duration,
    },
    /// A callback has failed and is to be tried again.
    CallBackLater {
        /// Its place.
        seq: u64,
        /// How often it has been tried.
        tries: u32,
        /// The wait.
        delay: Duration,
    },
    /// A callback is over.
    CalledBack {
        /// Its place.
        seq: u64,
    },
    /// Make a dead letter a call again.
    Revive {
        /// Which.
        id: CallId,
        /// Its new place.
        seq: u64,
        /// Told once it is on disk.
        done: oneshot::Sender<Result<bool, CallsError>>,
    },
    /// Remove a dead letter.
    DropDead {
        /// Which.
        id: CallId,
        /// Told once it is on disk.
        done: oneshot::Sender<Result<bool, CallsError>>,
    },
    /// Store a trigger.
    PutTrigger {
        /// The trigger.
        trigger: StoredTrigger,
        /// Told once it is on disk.
        done: oneshot::Sender<Result<(), CallsError>>,
    },
    /// Remove a trigger.
    RemoveTrigger {
        /// Its name.
        name: String,
        /// Told once it is on disk.
        done: oneshot::Sender<Result<bool, CallsError>>,
    },
    /// Note the instant that a trigger has fired for. (If that is lost it fires again, under the same key.)
    Fired {
        /// Its name.
        name: String,
        /// The instant.
        unix_ms: u64,
    },
    /// Write what came before this, and end.
    Close,
}

/// A submission that is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The call.
    pub id: CallId,
    /// It was accepted before, under the same key.
    pub repeated: bool,
}

/// What an operation found, told when the transaction is on disk.
enum Found {
    Nothing,
    Known(Known),
    Revived(Option<Call>),
    Was(bool),
}

/// What can be seen of the writer from elsewhere.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The last transaction failed.
    pub broken: AtomicBool,
    /// Transactions that have failed.
    pub failures: AtomicU64,
    /// Transactions that are on disk.
    pub commits: AtomicU64,
}

pub(super) struct Writer {
    pub database: Database,
    pub inbox: Receiver<Op>,
    pub runner: UnboundedSender<ToRunner>,
    pub keep: Keep,
    pub clock: Clock,
    pub seam: Seam,
    pub health: Arc<Health>,
    pub room: Arc<Room>,
    pub stats: Arc<Stats>,
}

impl Writer {
    /// Works until it is told to close.
    pub(super) fn run(mut self) {
        let mut owed: VecDeque<Op> = VecDeque::new();
        let (mut ends_since_trim, mut trim_failed_until) = (0, Instant::now());
        let mut trim_at = Some(trim_failed_until);
        loop {
            let until_trim = trim_at.map(|at| at.saturating_duration_since(Instant::now()));
            let patience = if owed.is_empty() { until_trim } else { Some(OWED_RETRY) };
            let first = match patience {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => self.inbox.recv_timeout(patience),
            };
            let mut closed = matches!(first, Err(RecvTimeoutError::Disconnected));
            let mut batch: Vec<Op> = owed.drain(..).chain(first.ok()).collect();
            let mut bytes: u64 = batch.iter().map(Op::bytes).sum();
            while batch.len() < BATCH_MAX && bytes < BATCH_BYTES {
                let Ok(op) = self.inbox.try_recv() else { break };
                bytes += op.bytes();
                batch.push(op);
            }
            batch.retain(|op| {
                closed |= matches!(op, Op::Close);
                !matches!(op, Op::Close)
            });
            ends_since_trim += batch.iter().filter(|op| op.is_end()).count() as u64;
            if !batch.is_empty() {
                owed = self.write(batch);
            }
            // (The last look found nothing that could get too old.)
            if ends_since_trim > 0 && trim_at.is_none() {
                trim_at = Some(Instant::now() + self.keep.age.min(self.keep.key_age).max(TRIM_PAUSE));
            }
            let now = Instant::now();
            let is_much = ends_since_trim >= TRIM_EVERY || self.database.end_bytes() > self.keep.bytes;
            let is_due = trim_at.is_some_and(|at| at <= now) || is_much && trim_failed_until <= now;
            if is_due && owed.is_empty() && !closed {
                ends_since_trim = 0;
                let trimmed = self.trim();
                if trimmed.is_err() {
                    trim_failed_until = now + TRIM_FAILED_PAUSE;
                }
                let again_in = trimmed.unwrap_or(Some(TRIM_FAILED_PAUSE));
                trim_at = again_in.map(|again_in| now + again_in.max(TRIM_PAUSE));
            }
            if closed {
                if !owed.is_empty() {
                    tracing::error!(
                        count = owed.len(),
                        "ends of calls could not be written: those calls run again"
                    );
                }
                return;
            }
        }
    }

    /// One transaction. Returns what is owed.
    fn write(&mut self, batch: Vec<Op>) -> VecDeque<Op> {
        match self.commit(&batch) {
            Ok(found) => {
                self.health.commits.fetch_add(1, Ordering::Relaxed);
                if self.health.broken.swap(false, Ordering::Relaxed) {
                    tracing::info!("calls can be written again");
                }
                for (op, found) in batch.into_iter().zip(found) {
                    self.committed(op, found);
                }
                VecDeque::new()
            }
            Err(error) => {
                self.health.failures.fetch_add(1, Ordering::Relaxed);
                if !self.health.broken.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "calls can't be written; new ones are refused until they can");
                }
                batch.into_iter().filter_map(|op| self.failed(op, &error)).collect()
            }
        }
    }

    fn commit(&mut self, batch: &[Op]) -> Result<Vec<Found>, CallsError> {
        let now_unix_ms = (self.clock)();
        self.seam.pass(Step::CallsBegin)?;
        let mut transaction = self.database.begin()?;
        let mut found = Vec::with_capacity(batch.len());
        for op in batch {
            self.seam.pass(op.step())?;
            found.push(op.put(&mut transaction, &self.keep, now_unix_ms)?);
        }
        self.seam.pass(Step::CallsBeforeCommit)?;
        transaction.commit()?;
        self.seam.pass(Step::CallsAfterCommit)?;
        Ok(found)
    }

    /// It is on disk: whoever waits may know. The runner hears of a call before its submitter does, so that a cancellation
    /// always finds it.
    fn committed(&self, op: Op, found: Found) {
        match (op, found) {
            (Op::Accept { call, done, .. }, Found::Known(Known::Same(id))) => {
                self.room.give_back(call.bytes());
                let _ = done.send(Ok(Accepted { id, repeated: true }));
            }
            (Op::Accept { call, done, .. }, Found::Known(Known::Other(id))) => {
                self.room.give_back(call.bytes());
                tracing::debug!(call = %id, "a submission was refused: its key is this call's");
                let _ = done.send(Err(CallsError::KeyReused));
            }
            (Op::Accept { call, done, .. }, _) => {
                let id = call.id;
                self.stats.accepted.fetch_add(1, Ordering::Relaxed);
                let _ = self.runner.send(ToRunner::Run(call));
                let _ = done.send(Ok(Accepted { id, repeated: false }));
            }
            (Op::Cancel { call, done, .. }, _) => {
                self.room.give_back(call.bytes());
                let _ = self.runner.send(ToRunner::Cancelled(call));
                let _ = done.send(Ok(()));
            }
            (Op::End { ended, callback, .. }, _) => {
                let callback = callback.map(|(callback, _told)| callback);
                let _ = self.runner.send(ToRunner::Ended { id: ended.id, callback });
            }
            (Op::Revive { done, .. }, Found::Revived(call)) => {
                let was_there = call.is_some();
                if let Some(call) = call {
                    self.room.take_anyway(call.bytes());
                    let _ = self.runner.send(ToRunner::Run(call));
                }
                let _ = done.send(Ok(was_there));
            }
            (Op::DropDead { done, .. } | Op::RemoveTrigger { done, .. }, Found::Was(there)) => {
                let _ = done.send(Ok(there));
            }
            (Op::PutTrigger { done, .. }, _) => drop(done.send(Ok(()))),
            _ => {}
        }
    }

    /// It is not on disk. Returns it if it can't be refused.
    fn failed(&self, op: Op, error: &CallsError) -> Option<Op> {
        match op {
            Op::Accept { call, done, .. } => {
                self.room.give_back(call.bytes());
                let _ = done.send(Err(error.clone()));
            }
            Op::Cancel { call, done, .. } => {
                let _ = self.runner.send(ToRunner::Run(call));
                let _ = done.send(Err(error.clone()));
            }
            Op::Revive { done, .. } | Op::DropDead { done, .. } | Op::RemoveTrigger { done, .. } => {
                let _ = done.send(Err(error.clone()));
            }
            Op::PutTrigger { done, .. } => drop(done.send(Err(error.clone()))),
            Op::Fired { .. } | Op::Close => {}
            owed @ (Op::End { .. }
            | Op::Postpone { .. }
            | Op::CallBackLater { .. }
            | Op::CalledBack { .. }) => {
                return Some(owed);
            }
        }
        None
    }

    /// Forgets what is beyond its bounds; says after how long something gets too old.
    fn trim(&mut self) -> rusqlite::Result<Option<Duration>> {
        let now_unix_ms = (self.clock)();
        let trimmed = self.database.begin().and_then(|mut batch| {
            let trimmed = batch.trim(&self.keep, now_unix_ms)?;
            batch.commit().map(|()| trimmed)
        });
        match &trimmed {
            Ok(Trimmed { dead: 0, .. }) => {}
            Ok(Trimmed { dead, .. }) => {
                tracing::warn!(dead, "the oldest dead letters made room (`async.dead`)");
            }
            Err(error) => tracing::warn!(%error, "old calls could not be forgotten; tried again later"),
        }
        trimmed.map(|trimmed| trimmed.again_in)
    }
}

impl Op {
    fn bytes(&self) -> u64 {
        match self {
            Self::Accept { call, .. } => call.bytes(),
            Self::End { ended, callback, .. } => {
                ended.bytes() + callback.as_ref().map_or(0, |(callback, _)| callback.bytes)
            }
            _ => 0,
        }
    }

    /// Whether it adds to the ends that are remembered.
    fn is_end(&self) -> bool {
        matches!(self, Self::End { .. } | Self::Cancel { .. })
    }

    fn step(&self) -> Step {
        match self {
            Self::Accept { .. } => Step::CallAccept,
            Self::Cancel { .. } => Step::CallCancel,
            Self::End { .. } => Step::CallEnd,
            Self::Postpone { .. } => Step::CallPostpone,
            Self::CallBackLater { .. } | Self::CalledBack { .. } => Step::CallBack,
            Self::Revive { .. } | Self::DropDead { .. } | Self::Close => Step::CallDead,
            Self::PutTrigger { .. } | Self::RemoveTrigger { .. } | Self::Fired { .. } => Step::CallTrigger,
        }
    }

    fn put(&self, batch: &mut Batch<'_>, keep: &Keep, now_unix_ms: u64) -> rusqlite::Result<Found> {
        match self {
            Self::Accept { call, delay, key, .. } => {
                if let Some(key) = key
                    && let Some(known) =
                        batch.know(&call.function, key, call.id, now_unix_ms, keep.key_age)?
                {
                    return Ok(Found::Known(known));
                }
                batch.insert(call, *delay)?;
            }
            Self::Cancel { call, ended, .. } => {
                batch.delete(call.seq)?;
                batch.end(ended)?;
            }
            Self::End { seq, ended, callback } => {
                match ended.dead {
                    true => batch.bury(*seq, ended)?,
                    false => batch.delete(*seq)?,
                }
                batch.end(ended)?;
                if let Some((callback, told)) = callback {
                    batch.call_back(callback, told)?;
                }
            }
            Self::Postpone { seq, failures, delay } => {
                batch.postpone(*seq, *failures, now_unix_ms, *delay)?;
            }
            Self::CallBackLater { seq, tries, delay } => {
                batch.call_back_later(*seq, *tries, now_unix_ms, *delay)?;
            }
            Self::CalledBack { seq } => batch.called_back(*seq)?,
            Self::Revive { id, seq, .. } => {
                return batch.revive(*id, *seq, now_unix_ms, Instant::now()).map(Found::Revived);
            }
            Self::DropDead { id, .. } => return batch.drop_dead(*id).map(Found::Was),
            Self::PutTrigger { trigger, .. } => batch.put_trigger(trigger)?,
            Self::RemoveTrigger { name, .. } => return batch.remove_trigger(name).map(Found::Was),
            Self::Fired { name, unix_ms } => batch.fired(name, *unix_ms)?,
            Self::Close => {}
        }
        Ok(Found::Nothing)
    }
}
