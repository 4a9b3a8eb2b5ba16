//! Records of calls, and what they wrote, kept over restarts.
//!
//! Request threads append to a buffer in memory (a lock, a few copies) and never wait for anything: when the buffer is full,
//! because the disk doesn't keep up, what comes is dropped and counted. A thread takes the buffer a tenth of a second after
//! the first entry came into it, and writes it as one batch ([`database`]). Whoever asks has what is in the buffer written
//! first, so that a call that has been answered is found.

mod database;
mod entry;
pub mod settings;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::activation::{Record, Stream, unix_ms};
use crate::gateway::call_id::CallId;
use crate::store::StoreError;
use database::{Database, Reader};
pub use database::{Filter, Keep, Status};
pub use entry::{StoredLine, StoredRecord, StoredResult};
use settings::Settings;

/// How long entries are gathered.
const GATHER: Duration = Duration::from_millis(100);

/// Takes records in, and finds them again. Shared by all threads.
#[derive(Debug)]
pub struct Recorder {
    buffer: Mutex<Buffer>,
    /// Rung for the writer: something has come, or is to be written at once.
    bell: Condvar,
    /// Rung by the writer: a batch is written.
    written: Condvar,
    settings: Settings,
    counts: Counters,
    reader: Option<Mutex<Reader>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Buffer {
    entries: Vec<u8>,
    /// Batches that were taken, and those that were written.
    taken: u64,
    written: u64,
    at_once: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Counters {
    recorded: AtomicU64,
    dropped: AtomicU64,
    kept: AtomicU64,
    kept_bytes: AtomicU64,
}

/// Numbers for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Records written since the start.
    pub written: u64,
    /// Records and lines dropped since the start.
    pub dropped: u64,
    /// Records there are.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
}

impl Recorder {
    /// Opens `activations.db` and starts to write. A damaged file is put aside: records aren't worth refusing service for.
    pub fn open(state_dir: &Path, settings: Settings) -> Result<Arc<Self>, StoreError> {
        if settings.keep.count == 0 {
            return Ok(Self::off());
        }
        let path = database::path(state_dir);
        let database = match Database::open(&path) {
            Err(StoreError::Corrupt { problem, .. }) => {
                tracing::error!(path = %path.display(), problem, "the records are damaged; put aside as .damaged");
                put_aside(&path)?;
                Database::open(&path)?
            }
            opened => opened?,
        };
        let reader = Some(Mutex::new(Reader::open(&path)?));
        let recorder = Arc::new(Self::new(settings, reader));
        recorder.note(&database);
        let writer = Arc::clone(&recorder);
        let thread = std::thread::Builder::new().name("records".into()).spawn(move || writer.write(database));
        *recorder.thread.lock() = Some(thread.map_err(StoreError::os("start a thread for", &path))?);
        Ok(recorder)
    }

    /// One that keeps nothing.
    pub fn off() -> Arc<Self> {
        Arc::new(Self::new(Settings::default(), None))
    }

    fn new(settings: Settings, reader: Option<Mutex<Reader>>) -> Self {
        Self {
            buffer: Mutex::default(),
            bell: Condvar::new(),
            written: Condvar::new(),
            settings,
            counts: Counters::default(),
            reader,
            thread: Mutex::default(),
        }
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.reader.is_some()
    }

    /// Takes a record in.
    pub fn record(&self, function: &str, record: &Record) {
        self.push(|entries| entry::put_record(entries, function, record));
    }

    /// Takes a line in.
    pub fn line(&self, function: &str, call: Option<CallId>, at_unix_ms: u64, stream: Stream, text: &str) {
        self.push(|entries| entry::put_line(entries, function, call, at_unix_ms, stream, text));
    }

    /// Bytes that are kept of an answer; 0: none is kept.
    pub fn result_max(&self) -> usize {
        if self.is_on() { self.settings.result_max } else { 0 }
    }

    /// Takes in what a call answered.
    pub fn result(&self, result: &StoredResult) {
        self.push(|entries| entry::put_result(entries, result));
    }

    fn push(&self, put: impl FnOnce(&mut Vec<u8>)) {
        if self.reader.is_none() {
            return;
        }
        let mut buffer = self.buffer.lock();
        if buffer.entries.len() >= self.settings.buffer {
            drop(buffer);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = buffer.entries.is_empty();
        put(&mut buffer.entries);
        drop(buffer);
        if first {
            self.bell.notify_one();
        }
    }

    /// The writer's thread.
    fn write(&self, mut database: Database) {
        let mut batch = Vec::new();
        let mut failing = false;
        loop {
            let mut buffer = self.buffer.lock();
            while buffer.entries.is_empty() && !buffer.closed {
                if buffer.at_once {
                    buffer.at_once = false;
                    self.written.notify_all();
                }
                self.bell.wait(&mut buffer);
            }
            if buffer.entries.is_empty() {
                return;
            }
            let until = std::time::Instant::now() + GATHER;
            while !buffer.at_once && !buffer.closed && !self.bell.wait_until(&mut buffer, until).timed_out() {
            }
            buffer.at_once = false;
            std::mem::swap(&mut buffer.entries, &mut batch);
            buffer.taken += 1;
            drop(buffer);
            match database.append(&batch, &self.settings.keep, unix_ms()) {
                Ok(records) => {
                    failing = false;
                    self.counts.recorded.fetch_add(records, Ordering::Relaxed);
                    self.note(&database);
                }
                Err(error) => {
                    let lost = entry::Entries(&batch).count() as u64;
                    self.counts.dropped.fetch_add(lost, Ordering::Relaxed);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, lost, "records of calls can't be written and are dropped");
                    }
                }
            }
            batch.clear();
            batch.shrink_to(self.settings.buffer / 4);
            let mut buffer = self.buffer.lock();
            buffer.written = buffer.taken;
            drop(buffer);
            self.written.notify_all();
        }
    }

    fn note(&self, database: &Database) {
        let (records, bytes) = database.size();
        self.counts.kept.store(records, Ordering::Relaxed);
        self.counts.kept_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns when what had come by now is written (or dropped). Blocks.
    pub fn flush(&self) {
        let mut buffer = self.buffer.lock();
        let wanted = match buffer.entries.is_empty() {
            true => buffer.taken,
            false => buffer.taken + 1,
        };
        while buffer.written < wanted && !buffer.closed {
            buffer.at_once = true;
            self.bell.notify_one();
            self.written.wait(&mut buffer);
        }
    }

    /// Records, the newest first. Blocks on the disk.
    pub fn list(&self, filter: &Filter, limit: usize) -> rusqlite::Result<Vec<StoredRecord>> {
        let Some(reader) = &self.reader else { return Ok(Vec::new()) };
        self.flush();
        reader.lock().list(filter, limit)
    }

    /// The records of one call (one for each attempt), oldest first, and what it wrote. Blocks on the disk.
    pub fn call(&self, id: CallId) -> rusqlite::Result<(Vec<StoredRecord>, Vec<StoredLine>)> {
        let Some(reader) = &self.reader else { return Ok((Vec::new(), Vec::new())) };
        self.flush();
        reader.lock().call(id)
    }

    /// What a call answered (the last time, if there were several), if that is kept. Blocks on the disk.
    pub fn answer(&self, id: CallId) -> rusqlite::Result<Option<StoredResult>> {
        let Some(reader) = &self.reader else { return Ok(None) };
        self.flush();
        reader.lock().answer(id)
    }

    /// Numbers for status and metrics.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            written: of(&self.counts.recorded),
            dropped: of(&self.counts.dropped),
            kept: of(&self.counts.kept),
            kept_bytes: of(&self.counts.kept_bytes),
        }
    }

    /// Writes what is there, and ends.
    pub fn close(&self) {
        self.buffer.lock().closed = true;
        self.bell.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        self.written.notify_all();
    }
}

fn put_aside(path: &Path) -> Result<(), StoreError> {
    let aside = path.with_extension("db.damaged");
    std::fs::rename(path, &aside).map_err(StoreError::os("put aside", path))?;
    for extension in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(path.with_extension(extension));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
