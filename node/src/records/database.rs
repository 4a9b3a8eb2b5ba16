//! `activations.db`: records and lines in batches, with what is needed to find them.
//!
//! A row for each call would cost a request thread nothing, but spryd a tenth of a core at full load, for data that is
//! looked at once in a while. So a *batch* (what came within a tenth of a second) is one row with all its entries in one
//! value; beside it lie the functions in it, its first and last instant, and which ids are in it: a worker counts its ids
//! up, so a batch has a handful of ranges. To look something up is to decode the batches that may have it.
//!
//! WAL with `synchronous = NORMAL`: a crash of spryd loses nothing that was written, a power cut maybe the last seconds,
//! and no call waits for a flush on their account.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior, params};

use super::entry::{Entries, Entry, StoredLine, StoredRecord, StoredResult};
use crate::gateway::call_id::CallId;
use crate::store::{StoreError, sqlite};

const SCHEMA: [&str; 1] = [BATCHES];
/// SQLite's `application_id` of this file: "spya".
const APPLICATION_ID: i32 = 0x7370_7961;

const BATCHES: &str = "
CREATE TABLE batches (
    batch        INTEGER PRIMARY KEY,
    from_unix_ms INTEGER NOT NULL,
    to_unix_ms   INTEGER NOT NULL,
    records      INTEGER NOT NULL,
    entries      BLOB NOT NULL
) STRICT;
CREATE TABLE functions (
    function TEXT NOT NULL,
    batch    INTEGER NOT NULL,
    PRIMARY KEY (function, batch)
) STRICT, WITHOUT ROWID;
CREATE TABLE ids (
    high     INTEGER NOT NULL,
    low_from INTEGER NOT NULL,
    low_to   INTEGER NOT NULL,
    batch    INTEGER NOT NULL,
    PRIMARY KEY (high, batch)
) STRICT, WITHOUT ROWID;
CREATE INDEX functions_of_batch ON functions (batch);
CREATE INDEX ids_of_batch ON ids (batch);
";

/// What a line may be late after its call's end, or early.
const SLACK_MS: u64 = 5_000;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Records, at most.
    pub count: u64,
    /// Bytes, at most.
    pub bytes: u64,
    /// For so long.
    pub age: Duration,
}

/// Which records are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this function or chain.
    pub function: Option<String>,
    /// That went so.
    pub status: Option<Status>,
    /// That were accepted at this instant or later.
    pub since_unix_ms: Option<u64>,
    /// That were accepted before this instant.
    pub until_unix_ms: Option<u64>,
}

/// How calls went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Below 400, and no error.
    Ok,
    /// Everything else.
    Failed,
    /// This HTTP status.
    Http(u16),
    /// This error's code.
    Code(String),
}

impl std::str::FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "ok" => Self::Ok,
            "failed" => Self::Failed,
            _ => match text.parse() {
                Ok(status) => Self::Http(status),
                Err(_)
                    if text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                        && !text.is_empty() =>
                {
                    Self::Code(text.to_owned())
                }
                Err(_) => {
                    return Err(format!(
                        "\"{}\" is not ok, failed, an HTTP status or an error's code",
                        text.escape_debug()
                    ));
                }
            },
        })
    }
}

impl Filter {
    fn admits(&self, stored: &StoredRecord) -> bool {
        let record = &stored.record;
        let ok = stored.error.is_none() && record.status < 400;
        self.function.as_ref().is_none_or(|function| *function == stored.function)
            && self.since_unix_ms.is_none_or(|since| record.started_unix_ms >= since)
            && self.until_unix_ms.is_none_or(|until| record.started_unix_ms < until)
            && match &self.status {
                None => true,
                Some(Status::Ok) => ok,
                Some(Status::Failed) => !ok,
                Some(Status::Http(status)) => record.status == *status,
                Some(Status::Code(code)) => stored.error.as_ref() == Some(code),
            }
    }
}

type Sql<T> = rusqlite::Result<T>;

#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    records: u64,
    bytes: u64,
}

pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("activations.db")
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = sqlite::open(path, APPLICATION_ID, &SCHEMA)?;
        let failed = |source| StoreError::Database { operation: "open the records", source };
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        let sum = "SELECT coalesce(sum(records), 0), coalesce(sum(length(entries)), 0) FROM batches";
        let (records, bytes) =
            connection.query_row(sum, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        Ok(Self { connection, records, bytes })
    }

    /// Writes a batch and forgets what is beyond the bounds. Returns how many records there were in it.
    pub(super) fn append(&mut self, entries: &[u8], keep: &Keep, now_unix_ms: u64) -> Sql<u64> {
        let (mut from, mut to, mut records) = (u64::MAX, 0, 0u64);
        let mut functions: BTreeSet<String> = BTreeSet::new();
        let mut ids: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut has = |id: CallId| {
            let (high, low) = id.halves();
            let range = ids.entry(high).or_insert((low, low));
            *range = (range.0.min(low), range.1.max(low));
        };
        for entry in Entries(entries) {
            let (function, at) = match entry {
                Entry::Record(stored) => {
                    records += 1;
                    has(stored.record.call_id);
                    (stored.function, stored.record.started_unix_ms)
                }
                Entry::Line(line) => (line.function, line.at_unix_ms),
                Entry::Result(result) => {
                    has(result.call);
                    (result.function, result.at_unix_ms)
                }
            };
            (from, to) = (from.min(at), to.max(at));
            if !functions.contains(&function) {
                functions.insert(function);
            }
        }
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "INSERT INTO batches (from_unix_ms, to_unix_ms, records, entries) VALUES (?1, ?2, ?3, ?4)";
        tx.prepare_cached(sql)?.execute(params![from.min(to), to, records, entries])?;
        let batch = tx.last_insert_rowid();
        for function in &functions {
            tx.prepare_cached("INSERT INTO functions VALUES (?1, ?2)")?.execute(params![function, batch])?;
        }
        for (high, (low_from, low_to)) in ids {
            // As bits: SQLite's integers have a sign.
            let values = params![high as i64, low_from as i64, low_to as i64, batch];
            tx.prepare_cached("INSERT INTO ids VALUES (?1, ?2, ?3, ?4)")?.execute(values)?;
        }
        let (mut all, mut bytes) = (self.records + records, self.bytes + entries.len() as u64);
        let oldest = "SELECT batch, to_unix_ms, records, length(entries) FROM batches ORDER BY batch LIMIT 1";
        let too_old = now_unix_ms.saturating_sub(keep.age.as_millis() as u64);
        loop {
            let (first, ended, count, length): (i64, u64, u64, u64) = tx
                .prepare_cached(oldest)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            let beyond = all > keep.count || bytes > keep.bytes || ended < too_old;
            if !beyond || first == batch {
                break;
            }
            tx.prepare_cached("DELETE FROM batches WHERE batch = ?1")?.execute([first])?;
            tx.prepare_cached("DELETE FROM functions WHERE batch = ?1")?.execute([first])?;
            tx.prepare_cached("DELETE FROM ids WHERE batch = ?1")?.execute([first])?;
            (all, bytes) = (all - count, bytes - length);
        }
        tx.commit()?;
        (self.records, self.bytes) = (all, bytes);
        Ok(records)
    }

    /// Records and bytes that there are.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.records, self.bytes)
    }
}

/// A connection that only reads.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Connection,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { connection: sqlite::open_to_read(path, "open the records for reading")? })
    }

    /// Records, the newest first.
    pub(super) fn list(&self, filter: &Filter, limit: usize) -> Sql<Vec<StoredRecord>> {
        let sql = "SELECT b.entries FROM batches b WHERE b.to_unix_ms >= ?1 AND b.from_unix_ms < ?2 AND \
                   (?3 IS NULL OR EXISTS (SELECT 1 FROM functions f WHERE f.function = ?3 AND f.batch = b.batch)) \
                   ORDER BY b.batch DESC";
        let mut statement = self.connection.prepare_cached(sql)?;
        let since = filter.since_unix_ms.unwrap_or(0).min(i64::MAX as u64);
        let until = filter.until_unix_ms.unwrap_or(u64::MAX).min(i64::MAX as u64);
        let mut rows = statement.query(params![since, until, filter.function])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            if found.len() >= limit {
                break;
            }
            let entries: Vec<u8> = row.get(0)?;
            let mut here: Vec<_> = Entries(&entries)
                .filter_map(|entry| match entry {
                    Entry::Record(stored) if filter.admits(&stored) => Some(stored),
                    _ => None,
                })
                .collect();
            here.reverse();
            found.append(&mut here);
        }
        found.sort_by_key(|stored| std::cmp::Reverse(stored.record.started_unix_ms));
        found.truncate(limit);
        Ok(found)
    }

    /// What a call answered last.
    pub(super) fn answer(&self, id: CallId) -> Sql<Option<StoredResult>> {
        let all = self.with_id(id, |entry| match entry {
            Entry::Result(result) if result.call == id => Some(result),
            _ => None,
        })?;
        Ok(all.into_iter().last())
    }

    /// What is wanted from the batches that may have this id.
    fn with_id<T>(&self, id: CallId, wanted: impl Fn(Entry) -> Option<T>) -> Sql<Vec<T>> {
        let (high, low) = id.halves();
        let sql = "SELECT b.entries FROM ids i JOIN batches b USING (batch) \
                   WHERE i.high = ?1 AND i.low_from <= ?2 AND i.low_to >= ?2 ORDER BY b.batch";
        let mut found = Vec::new();
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![high as i64, low as i64])?;
        while let Some(row) = rows.next()? {
            let entries: Vec<u8> = row.get(0)?;
            found.extend(Entries(&entries).filter_map(&wanted));
        }
        Ok(found)
    }

    /// The records of one call (one for each attempt), oldest first, and what it wrote.
    pub(super) fn call(&self, id: CallId) -> Sql<(Vec<StoredRecord>, Vec<StoredLine>)> {
        let records = self.with_id(id, |entry| match entry {
            Entry::Record(stored) if stored.record.call_id == id => Some(stored),
            _ => None,
        })?;
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return Ok((records, Vec::new()));
        };
        let took = (last.record.queue_ns + last.record.start_ns + last.record.exec_ns) / 1_000_000;
        let from = first.record.started_unix_ms.saturating_sub(SLACK_MS);
        let to = last.record.started_unix_ms + took + SLACK_MS;
        // A chain's functions write under their own names.
        let sql = "SELECT entries FROM batches WHERE to_unix_ms >= ?1 AND from_unix_ms <= ?2 ORDER BY batch";
        let mut lines = Vec::new();
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![from, to])?;
        while let Some(row) = rows.next()? {
            let entries: Vec<u8> = row.get(0)?;
            lines.extend(Entries(&entries).filter_map(|entry| match entry {
                Entry::Line(line) if line.call == Some(id) => Some(line),
                _ => None,
            }));
        }
        Ok((records, lines))
    }
}
