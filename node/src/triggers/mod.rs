//! What starts functions and chains by itself: schedules, and files that arrive in a folder.
//!
//! A trigger fires by submitting an asynchronous call ([`crate::calls`]), so what it has started survives a crash, is retried,
//! and can be looked at like any other. It submits under a key that names the instant or the file: a trigger that fires
//! again after a crash, because it could not note that it had, makes no second call.
//!
//! Each trigger is a task on a thread of their own. A schedule waits on a timer of the wall clock that also wakes it when
//! the clock is set; a spool folder waits for inotify. `docs/async.md` is for users, `docs/decisions/0016-triggers.md`
//! says why it is like this.

mod firing;
pub mod spec;
mod spool;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::activation::unix_ms;
use crate::calls::rows::StoredTrigger;
use crate::calls::runner::Callees;
use crate::calls::{Calls, CallsError};
use firing::Firing;
use spec::{Source, Spec, SpecError};
use spool::Spool;

/// Why a trigger was not applied, changed or found.
#[derive(Debug, thiserror::Error)]
pub enum TriggerError {
    /// The text is no trigger.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The path and the text name different triggers.
    #[error("the path names the trigger \"{path}\", its text \"{text}\"")]
    OtherName {
        /// In the path.
        path: String,
        /// In the text.
        text: String,
    },
    /// What it calls isn't there.
    #[error("the trigger calls \"{0}\", but no function or chain of that name is there")]
    NoSuchCallee(String),
    /// There is no such trigger.
    #[error("no trigger named \"{0}\" is applied; `spry trigger list` shows those that are")]
    NoSuchTrigger(String),
    /// Its folder can't be watched.
    #[error("watch the folder {folder}: {source}")]
    Folder {
        /// Which.
        folder: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It can't be stored.
    #[error(transparent)]
    Calls(#[from] CallsError),
}

/// A trigger as the control API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerState {
    /// Its name.
    pub name: String,
    /// The function or chain that it calls.
    pub call: String,
    /// `cron` or `spool`.
    pub kind: String,
    /// Its schedule and zone, or its folder.
    pub source: String,
    /// It doesn't fire until it is resumed.
    pub paused: bool,
    /// When it fires next, by the wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_unix_ms: Option<u64>,
    /// The last instant that it has fired for, or when it was applied.
    pub fired_unix_ms: u64,
    /// How often it has fired since spryd's start.
    pub fired: u64,
    /// Why it can't fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its text.
    pub text: String,
}

/// All triggers. Shared by all threads.
pub struct Triggers {
    calls: Arc<Calls>,
    callees: Arc<dyn Callees>,
    table: Mutex<BTreeMap<String, Entry>>,
    /// Held while one changes, so that the table is what the disk is. Whoever begins a change sees it to its end: in a
    /// task of its own, if need be.
    changes: tokio::sync::Mutex<()>,
    runtime: Handle,
    end: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

struct Entry {
    spec: Spec,
    text: String,
    paused: bool,
    shared: Arc<Shared>,
    task: Option<tokio::task::AbortHandle>,
}

/// What a trigger's task and those who look at it share.
#[derive(Default)]
struct Shared {
    fired_unix_ms: AtomicU64,
    fired: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Triggers {
    /// Starts what is stored.
    pub fn start(calls: Arc<Calls>, callees: Arc<dyn Callees>) -> std::io::Result<Arc<Self>> {
        let (ready, wait) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("triggers".into()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => {
                    let _ = ready.send(Ok(runtime.handle().clone()));
                    let _ = runtime.block_on(ended);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let runtime = wait.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))?;
        let (table, end) = (Mutex::default(), Mutex::new(Some((end, thread))));
        let triggers = Arc::new(Self { calls, callees, table, changes: Default::default(), runtime, end });
        match triggers.calls.triggers() {
            Ok(stored) => stored.into_iter().for_each(|stored| triggers.restore(stored)),
            Err(error) => tracing::error!(%error, "the stored triggers can't be read"),
        }
        Ok(triggers)
    }

    fn restore(&self, stored: StoredTrigger) {
        match stored.text.parse::<Spec>() {
            Ok(spec) => {
                let shared = Arc::new(Shared::default());
                shared.fired_unix_ms.store(stored.fired_unix_ms, Ordering::Relaxed);
                let task = (!stored.paused).then(|| self.spawn(&spec, &shared));
                let entry = Entry { spec, text: stored.text, paused: stored.paused, shared, task };
                self.table.lock().insert(stored.name, entry);
            }
            Err(error) => tracing::error!(trigger = stored.name, %error, "a stored trigger can't be used"),
        }
    }

    fn spawn(&self, spec: &Spec, shared: &Arc<Shared>) -> tokio::task::AbortHandle {
        let firing = Firing {
            spec: spec.clone(),
            calls: Arc::clone(&self.calls),
            callees: Arc::clone(&self.callees),
            shared: Arc::clone(shared),
        };
        self.runtime.spawn(firing.run()).abort_handle()
    }

    /// Puts a trigger in place of the one of its name; says whether there was one.
    pub async fn apply(&self, name: &str, text: String) -> Result<bool, TriggerError> {
        let spec: Spec = text.parse()?;
        if spec.name.as_str() != name {
            return Err(TriggerError::OtherName { path: name.into(), text: spec.name.to_string() });
        }
        if self.callees.policy(spec.call.as_str()).is_none() {
            return Err(TriggerError::NoSuchCallee(spec.call.to_string()));
        }
        if let Source::Spool { folder, done } = &spec.source {
            Spool::open(folder, done.as_deref())
                .map_err(|source| TriggerError::Folder { folder: folder.display().to_string(), source })?;
        }
        let _one_at_a_time = self.changes.lock().await;
        // What passed before it was applied isn't missed.
        let fired_unix_ms = unix_ms();
        let stored = StoredTrigger { name: name.into(), text: text.clone(), paused: false, fired_unix_ms };
        self.calls.put_trigger(stored).await?;
        let shared = Arc::new(Shared::default());
        shared.fired_unix_ms.store(fired_unix_ms, Ordering::Relaxed);
        let mut table = self.table.lock();
        let before = table.remove(name);
        if let Some(task) = before.as_ref().and_then(|before| before.task.as_ref()) {
            task.abort();
        }
        let task = Some(self.spawn(&spec, &shared));
        table.insert(name.into(), Entry { spec, text, paused: false, shared, task });
        Ok(before.is_some())
    }

    /// Lets a trigger rest, or fire again. What passes meanwhile isn't missed; files that arrive wait.
    pub async fn pause(&self, name: &str, paused: bool) -> Result<(), TriggerError> {
        let gone = || TriggerError::NoSuchTrigger(name.into());
        let _one_at_a_time = self.changes.lock().await;
        let mut stored = self.stored(name).ok_or_else(gone)?;
        (stored.paused, stored.fired_unix_ms) = (paused, unix_ms().max(stored.fired_unix_ms));
        let fired_unix_ms = stored.fired_unix_ms;
        self.calls.put_trigger(stored).await?;
        let mut table = self.table.lock();
        let entry = table.get_mut(name).ok_or_else(gone)?;
        if let Some(task) = entry.task.take() {
            task.abort();
        }
        entry.paused = paused;
        entry.shared.fired_unix_ms.store(fired_unix_ms, Ordering::Relaxed);
        if !paused {
            entry.task = Some(self.spawn(&entry.spec, &entry.shared));
        }
        Ok(())
    }

    fn stored(&self, name: &str) -> Option<StoredTrigger> {
        let table = self.table.lock();
        let entry = table.get(name)?;
        let fired_unix_ms = entry.shared.fired_unix_ms.load(Ordering::Relaxed);
        Some(StoredTrigger {
            name: name.into(),
            text: entry.text.clone(),
            paused: entry.paused,
            fired_unix_ms,
        })
    }

    /// Removes a trigger. Calls that it has made stay.
    pub async fn remove(&self, name: &str) -> Result<(), TriggerError> {
        let _one_at_a_time = self.changes.lock().await;
        let was_stored = self.calls.remove_trigger(name).await?;
        let entry = self.table.lock().remove(name);
        if !was_stored && entry.is_none() {
            return Err(TriggerError::NoSuchTrigger(name.into()));
        }
        if let Some(task) = entry.and_then(|entry| entry.task) {
            task.abort();
        }
        Ok(())
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<TriggerState> {
        self.table.lock().values().map(state).collect()
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<TriggerState> {
        self.table.lock().get(name).map(state)
    }

    /// Ends them all.
    pub fn close(&self) {
        if let Some((end, thread)) = self.end.lock().take() {
            drop(end);
            let _ = thread.join();
        }
    }
}

fn state(entry: &Entry) -> TriggerState {
    let Entry { spec, text, paused, shared, .. } = entry;
    let fired_unix_ms = shared.fired_unix_ms.load(Ordering::Relaxed);
    let (kind, source, next_unix_ms) = match &spec.source {
        Source::Cron(schedule) => {
            let next = schedule.next(fired_unix_ms.max(unix_ms())).filter(|_| !paused);
            ("cron", format!("{} {}", schedule.text, schedule.zone()), next)
        }
        Source::Spool { folder, .. } => ("spool", folder.display().to_string(), None),
    };
    TriggerState {
        name: spec.name.to_string(),
        call: spec.call.to_string(),
        kind: kind.into(),
        source,
        paused: *paused,
        next_unix_ms,
        fired_unix_ms,
        fired: shared.fired.load(Ordering::Relaxed),
        problem: shared.problem.lock().clone(),
        text: text.clone(),
    }
}

#[cfg(test)]
mod tests;
