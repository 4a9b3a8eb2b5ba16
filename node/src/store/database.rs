//! The SQLite file: which functions are deployed, in which version, which chains are applied, and
//! what is kept secret.
//!
//! WAL with `synchronous = FULL`: a committed transaction is on disk. Every method is one transaction. A file that an
//! earlier version wrote is brought up to date when it is opened, in one transaction as well.

mod chains;
mod secrets;
mod tokens;
mod versions;

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{StoreError, sqlite};
use crate::config::raw::UID_COUNT;
use crate::secrets::SecretName;

pub(super) use chains::ChainRow;

/// Stored as SQLite's `application_id`: "spry".
const APPLICATION_ID: i32 = 0x7370_7279;

/// What each version of the schema adds to the one before. Never changed once it is released, only added to.
pub(super) const SCHEMA: [&str; 5] =
    [FUNCTIONS, chains::CHAINS, secrets::SECRETS, tokens::TOKENS, versions::VERSIONS];

const FUNCTIONS: &str = "
CREATE TABLE functions (
    name    TEXT PRIMARY KEY,
    slot    INTEGER NOT NULL UNIQUE,
    current INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE versions (
    name             TEXT NOT NULL REFERENCES functions(name) ON DELETE CASCADE,
    version          INTEGER NOT NULL,
    sha256           TEXT NOT NULL,
    manifest         TEXT NOT NULL,
    bytes            INTEGER NOT NULL,
    deployed_unix_ms INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE counters (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

const SELECT: &str = "
SELECT f.name, f.slot, v.version, v.sha256, v.manifest, v.bytes, v.deployed_unix_ms, v.code_sha256, f.used_unix_ms
FROM functions f JOIN versions v ON v.name = f.name AND v.version = f.current";

/// A version of a function, as it lies in the database.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) slot: u32,
    pub(super) version: u64,
    pub(super) sha256: String,
    pub(super) manifest: String,
    pub(super) bytes: u64,
    pub(super) deployed_unix_ms: u64,
    pub(super) code_sha256: String,
    /// Of the function, whichever version served.
    pub(super) used_unix_ms: u64,
}

#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
}

impl Database {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { connection: sqlite::open(path, APPLICATION_ID, &SCHEMA)? })
    }

    /// The current version of every function, by name.
    pub(super) fn functions(&self) -> Result<Vec<Row>, StoreError> {
        let failed = failed("list the functions");
        let mut statement =
            self.connection.prepare_cached(&format!("{SELECT} ORDER BY f.name")).map_err(failed)?;
        let rows = statement.query_map([], row).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    pub(super) fn function(&self, name: &str) -> Result<Option<Row>, StoreError> {
        let failed = failed("look up a function");
        let mut statement =
            self.connection.prepare_cached(&format!("{SELECT} WHERE f.name = ?1")).map_err(failed)?;
        statement.query_row([name], row).optional().map_err(failed)
    }

    /// The slot of a function that is there, and the highest version that it has had.
    pub(super) fn slot_and_version(&self, name: &str) -> Result<Option<(u32, u64)>, StoreError> {
        let sql = "SELECT slot, last FROM functions WHERE name = ?1";
        let found = self.connection.query_row(sql, [name], |row| Ok((row.get(0)?, row.get(1)?)));
        found.optional().map_err(failed("look up a function"))
    }

    /// A slot that no function has and that `taken` doesn't hold; the one after the last given out first.
    pub(super) fn free_slot(&self, taken: &dyn Fn(u32) -> bool) -> Result<u32, StoreError> {
        let failed = failed("find a free user id");
        let next = "SELECT value FROM counters WHERE key = 'next_slot'";
        let next: Option<u32> =
            self.connection.query_row(next, [], |row| row.get(0)).optional().map_err(failed)?;
        let mut statement =
            self.connection.prepare_cached("SELECT 1 FROM functions WHERE slot = ?1").map_err(failed)?;
        for offset in 0..UID_COUNT {
            let slot = (next.unwrap_or(0) + offset) % UID_COUNT;
            if !taken(slot) && !statement.exists([slot]).map_err(failed)? {
                return Ok(slot);
            }
        }
        Err(StoreError::NoSlot)
    }

    /// Makes `row`, which lists these secrets, the current version of its function. False when a later one was deployed already.
    pub(super) fn commit(&mut self, row: &Row, secrets: &[SecretName]) -> Result<bool, StoreError> {
        let failed = failed("commit a version");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let known: Option<u64> = transaction
            .query_row("SELECT last FROM functions WHERE name = ?1", [&row.name], |found| found.get(0))
            .optional()
            .map_err(failed)?;
        if known.is_some_and(|last| last >= row.version) {
            return Ok(false);
        }
        if chains::is_chain(&transaction, &row.name)? {
            return Err(StoreError::NameIsChain(row.name.clone()));
        }
        secrets::refuse_if_missing(&transaction, &row.name, secrets)?;
        let function = "INSERT INTO functions (name, slot, current, last) VALUES (?1, ?2, ?3, ?3) \
                        ON CONFLICT (name) DO UPDATE SET current = excluded.current, last = excluded.last";
        transaction.execute(function, params![row.name, row.slot, row.version]).map_err(failed)?;
        let version = "INSERT INTO versions (name, version, sha256, manifest, bytes, deployed_unix_ms, \
                       code_sha256) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let values = params![
            row.name,
            row.version,
            row.sha256,
            row.manifest,
            row.bytes,
            row.deployed_unix_ms,
            row.code_sha256
        ];
        transaction.execute(version, values).map_err(failed)?;
        if known.is_none() {
            let next = "INSERT INTO counters VALUES ('next_slot', ?1) \
                        ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            transaction.execute(next, [(row.slot + 1) % UID_COUNT]).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(true)
    }

    /// Removes a function; returns the versions that it had.
    pub(super) fn remove(&mut self, name: &str) -> Result<Vec<u64>, StoreError> {
        let failed = failed("remove a function");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        chains::refuse_if_used(&transaction, name)?;
        let versions: Vec<u64> = {
            let sql = "SELECT version FROM versions WHERE name = ?1";
            let mut statement = transaction.prepare(sql).map_err(failed)?;
            let rows = statement.query_map([name], |row| row.get(0)).map_err(failed)?;
            rows.collect::<Result<_, _>>().map_err(failed)?
        };
        let removed = transaction.execute("DELETE FROM functions WHERE name = ?1", [name]).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        if removed == 0 { Err(StoreError::NoSuchFunction(name.into())) } else { Ok(versions) }
    }
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row {
        name: row.get(0)?,
        slot: row.get(1)?,
        version: row.get(2)?,
        sha256: row.get(3)?,
        manifest: row.get(4)?,
        bytes: row.get(5)?,
        deployed_unix_ms: row.get(6)?,
        code_sha256: row.get(7)?,
        used_unix_ms: row.get(8)?,
    })
}

fn failed(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + Copy {
    move |source| StoreError::Database { operation, source }
}
