//! The rows of chains: their texts, and which names each of them uses.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{Database, StoreError, failed};

/// What version 2 of the schema adds. `uses` are names, not references: they may be of functions or of chains.
pub(super) const CHAINS: &str = "
CREATE TABLE chains (
    name            TEXT PRIMARY KEY,
    source          TEXT NOT NULL,
    applied_unix_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE chain_uses (
    chain TEXT NOT NULL REFERENCES chains(name) ON DELETE CASCADE,
    uses  TEXT NOT NULL,
    PRIMARY KEY (chain, uses)
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_uses_by_use ON chain_uses (uses);
";

/// A chain as it lies in the database.
#[derive(Debug, Clone)]
pub(in crate::store) struct ChainRow {
    pub(in crate::store) name: String,
    pub(in crate::store) source: String,
    pub(in crate::store) applied_unix_ms: u64,
}

impl Database {
    /// Every chain, by name.
    pub(in crate::store) fn chains(&self) -> Result<Vec<ChainRow>, StoreError> {
        let failed = failed("list the chains");
        let sql = "SELECT name, source, applied_unix_ms FROM chains ORDER BY name";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let rows = statement.query_map([], |row| {
            Ok(ChainRow { name: row.get(0)?, source: row.get(1)?, applied_unix_ms: row.get(2)? })
        });
        rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
    }

    /// The name of every function.
    pub(in crate::store) fn function_names(&self) -> Result<Vec<String>, StoreError> {
        let failed = failed("list the functions");
        let mut statement = self.connection.prepare_cached("SELECT name FROM functions").map_err(failed)?;
        let rows = statement.query_map([], |row| row.get(0)).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// Whether a chain has this name.
    pub(in crate::store) fn is_chain(&self, name: &str) -> Result<bool, StoreError> {
        is_chain(&self.connection, name)
    }

    /// The chains that name it themselves.
    pub(in crate::store) fn users_of(&self, name: &str) -> Result<Vec<String>, StoreError> {
        users_of(&self.connection, name)
    }

    /// Makes this the chain of its name.
    pub(in crate::store) fn apply(&mut self, row: &ChainRow, uses: &[&str]) -> Result<(), StoreError> {
        let failed = failed("apply a chain");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let function = "SELECT 1 FROM functions WHERE name = ?1";
        let taken: Option<i64> =
            transaction.query_row(function, [&row.name], |row| row.get(0)).optional().map_err(failed)?;
        if taken.is_some() {
            return Err(StoreError::NameIsFunction(row.name.clone()));
        }
        let chain = "INSERT INTO chains VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE \
                     SET source = excluded.source, applied_unix_ms = excluded.applied_unix_ms";
        transaction.execute(chain, params![row.name, row.source, row.applied_unix_ms]).map_err(failed)?;
        transaction.execute("DELETE FROM chain_uses WHERE chain = ?1", [&row.name]).map_err(failed)?;
        for used in uses {
            transaction
                .execute("INSERT INTO chain_uses VALUES (?1, ?2)", params![row.name, used])
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }

    /// Removes a chain that no other one uses.
    pub(in crate::store) fn remove_chain(&mut self, name: &str) -> Result<(), StoreError> {
        let failed = failed("remove a chain");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        refuse_if_used(&transaction, name)?;
        let removed = transaction.execute("DELETE FROM chains WHERE name = ?1", [name]).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        if removed == 0 { Err(StoreError::NoSuchChain(name.into())) } else { Ok(()) }
    }
}

pub(super) fn is_chain(connection: &Connection, name: &str) -> Result<bool, StoreError> {
    let failed = failed("look up a chain");
    let mut statement = connection.prepare_cached("SELECT 1 FROM chains WHERE name = ?1").map_err(failed)?;
    statement.exists([name]).map_err(failed)
}

pub(super) fn refuse_if_used(connection: &Connection, name: &str) -> Result<(), StoreError> {
    let chains = users_of(connection, name)?;
    if chains.is_empty() { Ok(()) } else { Err(StoreError::InUse { name: name.into(), chains }) }
}

fn users_of(connection: &Connection, name: &str) -> Result<Vec<String>, StoreError> {
    let failed = failed("look up who uses a name");
    let sql = "SELECT chain FROM chain_uses WHERE uses = ?1 ORDER BY chain";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map([name], |row| row.get(0)).map_err(failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}
