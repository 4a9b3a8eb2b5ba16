//! `calls.db`: accepted calls, their ends, callbacks to be made, dead letters, idempotency keys.
//!
//! A file of its own beside the registry's: SQLite has one writer at a time for each file, and neither should a deploy
//! wait for a thousand calls nor a call for a deploy. WAL with `synchronous = FULL`: a committed transaction is on disk.
//! Bodies lie in the rows: SQLite keeps what is long in pages of its own, which nothing reads that doesn't want the body,
//! and a call is one thing that is there or isn't, whatever the moment of a crash.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::call::{Call, remaining};
use super::rows::{CALL_COLUMNS, Callback, DeadLetter, Ended, StoredTrigger, read_call};
use crate::gateway::call_id::CallId;
use crate::store::{StoreError, sqlite};

/// What each version of the schema adds to the one before. Never changed once it is released, only added to.
const SCHEMA: [&str; 2] = [CALLS, TRIGGERS];
/// SQLite's `application_id` of this file: "spyc".
const APPLICATION_ID: i32 = 0x7370_7963;
/// Bytes of an answer that a dead letter shows.
const REASON_MAX: usize = 4096;

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
        let bytes = "SELECT coalesce(sum(128 + length(body)), 0) FROM ends";
        let end_bytes = connection
            .query_row(bytes, [], |row| row.get(0))
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
        let columns = Ended::COLUMNS;
        let sql =
            format!("SELECT {columns}, seq, url, noted_unix_ms, delay_ms, tries FROM callbacks ORDER BY seq");
        let mut statement = self.connection.prepare(&sql)?;
        let callbacks = statement.query_map([], |row| {
            let (noted, delay) = (row.get(14)?, Duration::from_millis(row.get(15)?));
            Ok(Callback {
                ended: Ended::read(row)?,
                seq: row.get(12)?,
                url: row.get::<_, String>(13)?.into(),
                due: now + remaining(delay, noted, now_unix_ms),
                attempts: row.get(16)?,
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
        Ok(Batch { transaction, end_bytes: &mut self.end_bytes, added: 0 })
    }
}

/// One transaction: many operations, one flush.
pub(super) struct Batch<'a> {
    transaction: Transaction<'a>,
    end_bytes: &'a mut u64,
    added: u64,
}

impl Batch<'_> {
    pub(super) fn commit(self) -> Sql<()> {
        self.transaction.commit()?;
        *self.end_bytes += self.added;
        Ok(())
    }

    /// Whether this key was used before; if not, it is used now.
    pub(super) fn know(
        &self,
        function: &str,
        key: &Key,
        id: CallId,
        now_unix_ms: u64,
        age: Duration,
    ) -> Sql<Option<Known>> {
        let oldest = now_unix_ms.saturating_sub(age.as_millis() as u64);
        let sql = "SELECT id, digest FROM keys WHERE function = ?1 AND key = ?2 AND unix_ms >= ?3";
        let mut statement = self.transaction.prepare_cached(sql)?;
        let known = statement.query_row(params![function, key.key, oldest], |row| {
            Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?))
        });
        if let Some((known, digest)) = known.optional()? {
            return Ok(Some(if digest == key.digest { Known::Same(known) } else { Known::Other(known) }));
        }
        let sql = "INSERT OR REPLACE INTO keys VALUES (?1, ?2, ?3, ?4, ?5)";
        self.transaction.prepare_cached(sql)?.execute(params![
            function,
            key.key,
            id,
            key.digest,
            now_unix_ms
        ])?;
        Ok(None)
    }

    pub(super) fn insert(&self, call: &Call, delay: Duration) -> Sql<()> {
        let sql = "INSERT INTO calls VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, 0, ?8)";
        let body = call.body.as_deref().unwrap_or_default();
        self.transaction.prepare_cached(sql)?.execute(params![
            call.seq,
            call.id,
            &*call.function,
            call.head.encode(),
            call.callback.as_deref(),
            call.accepted_unix_ms,
            delay.as_millis() as u64,
            body,
        ])?;
        Ok(())
    }

    pub(super) fn delete(&self, seq: u64) -> Sql<()> {
        self.transaction.prepare_cached("DELETE FROM calls WHERE seq = ?1")?.execute([seq])?;
        Ok(())
    }

    pub(super) fn postpone(&self, seq: u64, failures: u32, now_unix_ms: u64, delay: Duration) -> Sql<()> {
        let sql = "UPDATE calls SET failures = ?2, noted_unix_ms = ?3, delay_ms = ?4 WHERE seq = ?1";
        let values = params![seq, failures, now_unix_ms, delay.as_millis() as u64];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    pub(super) fn end(&mut self, ended: &Ended) -> Sql<()> {
        let columns = Ended::COLUMNS;
        let sql = format!(
            "INSERT OR REPLACE INTO ends ({columns}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)"
        );
        let mut statement = self.transaction.prepare_cached(&sql)?;
        ended.bind(&mut statement)?;
        statement.raw_execute()?;
        self.added += ended.weight();
        Ok(())
    }

    pub(super) fn call_back(&self, callback: &Callback) -> Sql<()> {
        let columns = Ended::COLUMNS;
        let sql = format!(
            "INSERT INTO callbacks ({columns}, seq, url, noted_unix_ms, delay_ms, tries) \
             VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?11,0,0)"
        );
        let mut statement = self.transaction.prepare_cached(&sql)?;
        callback.ended.bind(&mut statement)?;
        statement.raw_bind_parameter(13, callback.seq)?;
        statement.raw_bind_parameter(14, &*callback.url)?;
        statement.raw_execute()?;
        Ok(())
    }

    pub(super) fn call_back_later(&self, seq: u64, tries: u32, now_unix_ms: u64, delay: Duration) -> Sql<()> {
        let sql = "UPDATE callbacks SET tries = ?2, noted_unix_ms = ?3, delay_ms = ?4 WHERE seq = ?1";
        let values = params![seq, tries, now_unix_ms, delay.as_millis() as u64];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    pub(super) fn called_back(&self, seq: u64) -> Sql<()> {
        self.transaction.prepare_cached("DELETE FROM callbacks WHERE seq = ?1")?.execute([seq])?;
        Ok(())
    }

    /// Moves a call to the dead letters.
    pub(super) fn bury(&self, seq: u64, ended: &Ended) -> Sql<()> {
        let sql = "INSERT OR REPLACE INTO dead (id, function, head, callback, accepted_unix_ms, died_unix_ms, attempts, \
                   status, error, reason, body) \
                   SELECT id, function, head, callback, accepted_unix_ms, ?2, ?3, ?4, ?5, ?6, body \
                   FROM calls WHERE seq = ?1";
        let shown = &ended.outcome.body[..ended.outcome.body.len().min(REASON_MAX)];
        let reason = String::from_utf8_lossy(shown);
        let values = params![
            seq,
            ended.ended_unix_ms,
            ended.attempts,
            ended.outcome.status,
            ended.outcome.error,
            reason,
        ];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        self.delete(seq)
    }

    /// Makes a dead letter a call again; `None`: there is none.
    pub(super) fn revive(&self, id: CallId, seq: u64, now_unix_ms: u64, now: Instant) -> Sql<Option<Call>> {
        // Its age counts from now on: it gets all its chances again.
        let sql = "INSERT INTO calls SELECT ?2, id, function, head, callback, ?3, ?3, 0, 0, body FROM dead \
                   WHERE id = ?1";
        if self.transaction.execute(sql, params![id, seq, now_unix_ms])? == 0 {
            return Ok(None);
        }
        self.transaction.execute("DELETE FROM dead WHERE id = ?1", [id])?;
        self.transaction.execute("DELETE FROM ends WHERE id = ?1", [id])?;
        let sql = format!("SELECT {CALL_COLUMNS} FROM calls WHERE seq = ?1");
        self.transaction.query_row(&sql, [seq], |row| read_call(row, now_unix_ms, now))
    }

    /// Removes a dead letter; false: there is none.
    pub(super) fn drop_dead(&self, id: CallId) -> Sql<bool> {
        Ok(self.transaction.execute("DELETE FROM dead WHERE id = ?1", [id])? > 0)
    }

    /// Stores a trigger in the place of the one of its name.
    pub(super) fn put_trigger(&self, trigger: &StoredTrigger) -> Sql<()> {
        let sql = "INSERT OR REPLACE INTO triggers VALUES (?1, ?2, ?3, ?4)";
        let values = params![trigger.name, trigger.text, trigger.paused, trigger.fired_unix_ms];
        self.transaction.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    /// Notes the instant that a trigger has fired for.
    pub(super) fn fired(&self, name: &str, unix_ms: u64) -> Sql<()> {
        let sql = "UPDATE triggers SET fired_unix_ms = ?2 WHERE name = ?1";
        self.transaction.prepare_cached(sql)?.execute(params![name, unix_ms])?;
        Ok(())
    }

    /// Removes a trigger; false: there is none.
    pub(super) fn remove_trigger(&self, name: &str) -> Sql<bool> {
        Ok(self.transaction.execute("DELETE FROM triggers WHERE name = ?1", [name])? > 0)
    }

    /// Forgets what is beyond its bounds; says how many dead letters went.
    pub(super) fn trim(&mut self, keep: &Keep, now_unix_ms: u64) -> Sql<usize> {
        let before = |age: Duration| now_unix_ms.saturating_sub(age.as_millis() as u64);
        let tx = &self.transaction;
        tx.execute("DELETE FROM keys WHERE unix_ms < ?1", [before(keep.key_age)])?;
        let by_count = "DELETE FROM ends WHERE n <= (SELECT max(n) FROM ends) - ?1";
        tx.execute(by_count, [keep.count])?;
        // The oldest are first; the clock may have been set meanwhile, which costs an end its place at worst.
        let by_age = "DELETE FROM ends WHERE n < (SELECT coalesce(min(n), 9223372036854775807) FROM ends WHERE ended_unix_ms >= ?1)";
        tx.execute(by_age, [before(keep.age)])?;
        let sum = "SELECT coalesce(sum(128 + length(body)), 0) FROM ends";
        let mut bytes: u64 = tx.query_row(sum, [], |row| row.get(0))?;
        while bytes > keep.bytes {
            let sql = "DELETE FROM ends WHERE n IN (SELECT n FROM ends ORDER BY n LIMIT 64)";
            if tx.execute(sql, [])? == 0 {
                break;
            }
            bytes = tx.query_row(sum, [], |row| row.get(0))?;
        }
        *self.end_bytes = bytes;
        self.added = 0;
        let sql = "DELETE FROM dead WHERE n <= (SELECT max(n) FROM dead) - ?1";
        tx.execute(sql, [keep.dead_count])
    }
}

/// A connection that only reads; it sees what has been committed.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

impl Reader {
    /// Opens the file that the writer has made.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { connection: sqlite::open_to_read(path, "open the calls for reading")? })
    }

    /// A call's body.
    pub fn body(&self, seq: u64) -> Sql<Option<Vec<u8>>> {
        let mut statement = self.connection.prepare_cached("SELECT body FROM calls WHERE seq = ?1")?;
        statement.query_row([seq], |row| row.get(0)).optional()
    }

    /// How a call ended.
    pub fn ended(&self, id: CallId) -> Sql<Option<Ended>> {
        let sql = format!("SELECT {} FROM ends WHERE id = ?1", Ended::COLUMNS);
        self.connection.prepare_cached(&sql)?.query_row([id], Ended::read).optional()
    }

    /// Dead letters, the newest first.
    pub fn dead(&self, function: Option<&str>, limit: usize) -> Sql<Vec<DeadLetter>> {
        let sql = format!(
            "SELECT {} FROM dead WHERE ?1 IS NULL OR function = ?1 ORDER BY n DESC LIMIT ?2",
            DeadLetter::COLUMNS
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        statement.query_map(params![function, limit as i64], DeadLetter::read)?.collect()
    }

    /// All triggers, by name.
    pub fn triggers(&self) -> Sql<Vec<StoredTrigger>> {
        let sql = "SELECT name, text, paused, fired_unix_ms FROM triggers ORDER BY name";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map([], |row| {
            let (name, text, paused, fired_unix_ms) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(StoredTrigger { name, text, paused, fired_unix_ms })
        })?;
        rows.collect()
    }

    /// How many dead letters there are.
    pub fn dead_count(&self) -> Sql<u64> {
        self.connection.query_row("SELECT count(*) FROM dead", [], |row| row.get(0))
    }
}

/// Where the file is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("calls.db")
}
