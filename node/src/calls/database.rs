//! `calls.db`: accepted calls, their ends, callbacks to be made, dead letters, idempotency keys.
//!
//! A file of its own beside the registry's: SQLite has one writer at a time for each file, and neither should a deploy
//! wait for a thousand calls nor a call for a deploy. WAL with `synchronous = FULL`: a committed transaction is on disk.
//! Bodies lie in the rows: SQLite keeps what is long in pages of its own, which nothing reads that doesn't want the body,
//! and a call is one thing that is there or isn't, whatever the moment of a crash.

mod batch;
mod reader;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};

use super::call::{Call, remaining};
use super::rows::{CALL_COLUMNS, Callback, read_call};
use crate::gateway::call_id::CallId;
use crate::store::{StoreError, sqlite};
use batch::END_WEIGHT;
pub(super) use batch::{Batch, Trimmed};
pub use reader::Reader;

/// What each version of the schema adds to the one before. Never changed once it is released, only added to.
const SCHEMA: [&str; 3] = [CALLS, TRIGGERS, RIPENESS];
/// SQLite's `application_id` of this file: "spyc".
const APPLICATION_ID: i32 = 0x7370_7963;

const CALLS: &str = "
CREATE TABLE calls (
    seq              INTEGER PRIMARY KEY,
    id               TEXT NOT NULL,
    function         TEXT NOT NULL,
    head             BLOB NOT NULL,
    callback         TEXT,
    accepted_unix_ms INTEGER NOT NULL,
    noted_unix_ms    INTEGER NOT NULL,
    delay_ms         INTEGER NOT NULL,
    failures         INTEGER NOT NULL,
    body             BLOB NOT NULL
) STRICT;
CREATE TABLE keys (
    function TEXT NOT NULL,
    key      BLOB NOT NULL,
    id       TEXT NOT NULL,
    digest   BLOB NOT NULL,
    unix_ms  INTEGER NOT NULL,
    PRIMARY KEY (function, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX keys_by_age ON keys (unix_ms);
CREATE TABLE ends (
    n                INTEGER PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    function         TEXT NOT NULL,
    status           INTEGER NOT NULL,
    headers          BLOB NOT NULL,
    truncated        INTEGER NOT NULL,
    error            TEXT,
    took_ms          INTEGER NOT NULL,
    attempts         INTEGER NOT NULL,
    accepted_unix_ms INTEGER NOT NULL,
    ended_unix_ms    INTEGER NOT NULL,
    dead             INTEGER NOT NULL,
    body             BLOB NOT NULL
) STRICT;
CREATE TABLE callbacks (
    seq              INTEGER PRIMARY KEY,
    url              TEXT NOT NULL,
    noted_unix_ms    INTEGER NOT NULL,
    delay_ms         INTEGER NOT NULL,
    tries            INTEGER NOT NULL,
    id               TEXT NOT NULL,
    function         TEXT NOT NULL,
    status           INTEGER NOT NULL,
    headers          BLOB NOT NULL,
    truncated        INTEGER NOT NULL,
    error            TEXT,
    took_ms          INTEGER NOT NULL,
    attempts         INTEGER NOT NULL,
    accepted_unix_ms INTEGER NOT NULL,
    ended_unix_ms    INTEGER NOT NULL,
    dead             INTEGER NOT NULL,
    body             BLOB NOT NULL
) STRICT;
CREATE TABLE dead (
    n                INTEGER PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    function         TEXT NOT NULL,
    head             BLOB NOT NULL,
    callback         TEXT,
    accepted_unix_ms INTEGER NOT NULL,
    died_unix_ms     INTEGER NOT NULL,
    attempts         INTEGER NOT NULL,
    status           INTEGER NOT NULL,
    error            TEXT,
    reason           TEXT NOT NULL,
    body             BLOB NOT NULL
) STRICT;
CREATE INDEX dead_by_function ON dead (function);
";

const TRIGGERS: &str = "
CREATE TABLE triggers (
    name          TEXT PRIMARY KEY,
    text          TEXT NOT NULL,
    paused        INTEGER NOT NULL,
    fired_unix_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// When a call was first due, which its age counts from. The table is made anew: what stood behind the body could not be
/// read without it. Of a call that has been put off since, the instant is no longer known: the next one counts.
const RIPENESS: &str = "
CREATE TABLE calls_with_ripeness (
    seq              INTEGER PRIMARY KEY,
    id               TEXT NOT NULL,
    function         TEXT NOT NULL,
    head             BLOB NOT NULL,
    callback         TEXT,
    accepted_unix_ms INTEGER NOT NULL,
    ripe_unix_ms     INTEGER NOT NULL,
    noted_unix_ms    INTEGER NOT NULL,
    delay_ms         INTEGER NOT NULL,
    failures         INTEGER NOT NULL,
    body             BLOB NOT NULL
) STRICT;
INSERT INTO calls_with_ripeness SELECT seq, id, function, head, callback, accepted_unix_ms, noted_unix_ms + delay_ms,
    noted_unix_ms, delay_ms, failures, body FROM calls;
DROP TABLE calls;
ALTER TABLE calls_with_ripeness RENAME TO calls;
";

/// What makes a retried submission the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The caller's `Idempotency-Key`.
    pub key: Vec<u8>,
    /// Of everything that the submission says.
    pub digest: [u8; 32],
}

/// A submission with a key that was used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// For the same: this call.
    Same(CallId),
    /// For something else.
    Other(CallId),
}

/// What a restart finds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Calls that have not ended, the oldest first.
    pub calls: Vec<Call>,
    /// Callbacks that have not been made.
    pub callbacks: Vec<Callback>,
    /// The number of the next call.
    pub next_seq: u64,
    /// Rows that can't be read, which are left where they are.
    pub unreadable: usize,
}

/// How much is remembered of what is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Ends, at most.
    pub count: u64,
    /// Bytes of them, at most.
    pub bytes: u64,
    /// For so long.
    pub age: Duration,
    /// Dead letters, at most.
    pub dead_count: u64,
    /// Idempotency keys, for so long.
    pub key_age: Duration,
}

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    end_bytes: u64,
}

type Sql<T> = rusqlite::Result<T>;

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = sqlite::open(path, APPLICATION_ID, &SCHEMA)?;
        let bytes = format!("SELECT coalesce(sum({END_WEIGHT}), 0) FROM ends");
        let end_bytes = connection
            .query_row(&bytes, [], |row| row.get(0))
            .map_err(|source| StoreError::Database { operation: "read the calls", source })?;
        Ok(Self { connection, end_bytes })
    }

    pub(super) fn load(&self, now_unix_ms: u64, now: Instant) -> Sql<Loaded> {
        let mut loaded = Loaded::default();
        let mut statement =
            self.connection.prepare(&format!("SELECT {CALL_COLUMNS} FROM calls ORDER BY seq"))?;
        for call in statement.query_map([], |row| read_call(row, now_unix_ms, now))? {
            match call? {
                Some(call) => loaded.calls.push(call),
                None => loaded.unreadable += 1,
            }
        }
        let sql = "SELECT seq, id, url, length(headers) + length(body), noted_unix_ms, delay_ms, tries \
                   FROM callbacks ORDER BY seq";
        let mut statement = self.connection.prepare(sql)?;
        let callbacks = statement.query_map([], |row| {
            let (noted, delay) = (row.get(4)?, Duration::from_millis(row.get(5)?));
            Ok(Callback {
                seq: row.get(0)?,
                id: row.get(1)?,
                url: row.get::<_, String>(2)?.into(),
                bytes: row.get(3)?,
                attempts: row.get(6)?,
                due: now + remaining(delay, noted, now_unix_ms),
            })
        })?;
        loaded.callbacks = callbacks.collect::<Sql<_>>()?;
        let next = "SELECT 1 + max((SELECT coalesce(max(seq), 0) FROM calls), \
                    (SELECT coalesce(max(seq), 0) FROM callbacks))";
        loaded.next_seq = self.connection.query_row(next, [], |row| row.get(0))?;
        Ok(loaded)
    }

    pub(super) fn begin(&mut self) -> Sql<Batch<'_>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let end_bytes_then = self.end_bytes;
        Ok(Batch { transaction, end_bytes: &mut self.end_bytes, end_bytes_then })
    }

    /// Bytes of the ends that are remembered.
    pub(super) fn end_bytes(&self) -> u64 {
        self.end_bytes
    }
}

/// Where the file is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("calls.db")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_an_earlier_version_are_as_old_as_since_they_are_due() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path(folder.path());
        let before = sqlite::open(&path, APPLICATION_ID, &SCHEMA[..2]).expect("opens");
        let sql = "INSERT INTO calls VALUES (?1, ?2, 'f', x'504f5354202f', NULL, 1000, ?3, ?4, ?5, x'00')";
        for (seq, noted, delay, failures) in [(1, 1000, 0, 0), (2, 1000, 5000, 0), (3, 4000, 2000, 1)] {
            let id = CallId::new(0, seq);
            before.execute(sql, rusqlite::params![seq, id, noted, delay, failures]).expect("written");
        }
        drop(before);
        let now = Instant::now();
        let loaded = Database::open(&path).expect("opens").load(10_000, now).expect("readable");
        let seen: Vec<_> = loaded
            .calls
            .iter()
            .map(|call| (call.seq, call.age(now).as_millis(), call.failures, call.body_len))
            .collect();
        assert_eq!(seen, [(1, 9000, 0, 1), (2, 4000, 0, 1), (3, 4000, 1, 1)]);
    }
}
