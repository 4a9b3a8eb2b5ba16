//! Opening the calls, and beginning to run what is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::mpsc::channel;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::callback::Posts;
use super::database::{self, Database, Reader};
use super::policy::Policy;
use super::runner::{self, Callees, Runner, Stats, ToRunner};
use super::writer::{Health, Writer};
use super::{Calls, Parts, Room};
use crate::dispatch::ToWorker;
use crate::store::StoreError;

/// What the runner is made of, until there are workers.
pub(super) struct Unstarted {
    inbox: UnboundedReceiver<ToRunner>,
    reader: Reader,
    posts: Posts,
    defaults: Policy,
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
            room.take_anyway(call.bytes());
            let _ = to_runner.send(ToRunner::Run(call));
        }
        let mut posts = Posts::new(&settings.callback);
        for callback in loaded.callbacks {
            room.take_anyway(callback.bytes);
            posts.insert(callback);
        }
        let (to_writer, operations) = channel();
        let (health, stats): (Arc<Health>, Arc<Stats>) = Default::default();
        let writer = Writer {
            database,
            inbox: operations,
            runner: to_runner.clone(),
            keep: settings.keep,
            clock: Arc::clone(&clock),
            seam,
            health: Arc::clone(&health),
            room: Arc::clone(&room),
            stats: Arc::clone(&stats),
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
            stats,
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
        let parts = runner::Parts {
            own: self.runner.clone(),
            writer: self.writer.clone(),
            reader,
            workers,
            callees,
            defaults,
            in_flight_max: self.settings.in_flight,
            body_max: self.settings.result_max,
            told_max: self.settings.callback.body_max,
            memory_max: self.settings.memory,
            clock: Arc::clone(&self.clock),
            room: Arc::clone(&self.room),
            stats: Arc::clone(&self.stats),
        };
        let (ready, wait) = channel();
        let thread = std::thread::Builder::new().name("calls-runner".into()).spawn(move || {
            let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match made {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let _ = ready.send(Ok(()));
            let runner = Runner { inbox, posts, parts };
            tokio::task::LocalSet::new().block_on(&runtime, runner.run());
        })?;
        self.threads.lock().push(thread);
        wait.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::BrokenPipe.into()))
    }
}
