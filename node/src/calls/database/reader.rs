//! What is read beside the writer.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::Sql;
use crate::calls::rows::{DeadLetter, Ended, StoredTrigger};
use crate::gateway::call_id::CallId;
use crate::store::{StoreError, sqlite};

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

    /// What a callback says.
    pub fn told(&self, seq: u64) -> Sql<Option<Ended>> {
        let sql = format!("SELECT {} FROM callbacks WHERE seq = ?1", Ended::COLUMNS);
        self.connection.prepare_cached(&sql)?.query_row([seq], Ended::read).optional()
    }

    /// How a call ended.
    pub fn ended(&self, id: CallId) -> Sql<Option<Ended>> {
        let sql = format!("SELECT {} FROM ends WHERE id = ?1", Ended::COLUMNS);
        self.connection.prepare_cached(&sql)?.query_row([id], Ended::read).optional()
    }

    /// Dead letters, those that have died by this instant, the newest first.
    pub fn dead(&self, function: Option<&str>, until_unix_ms: u64, limit: usize) -> Sql<Vec<DeadLetter>> {
        let sql = format!(
            "SELECT {} FROM dead WHERE (?1 IS NULL OR function = ?1) AND died_unix_ms <= ?2 \
             ORDER BY n DESC LIMIT ?3",
            DeadLetter::COLUMNS
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let until = until_unix_ms.min(i64::MAX as u64);
        statement.query_map(params![function, until, limit as i64], DeadLetter::read)?.collect()
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
