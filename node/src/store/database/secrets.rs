//! The rows of secrets: names, and what [`crate::secrets`] made of the values.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Database, StoreError, failed};
use crate::secrets::SecretName;

/// What this version of the schema adds.
pub(super) const SECRETS: &str = "
CREATE TABLE secrets (
    name        TEXT PRIMARY KEY,
    sealed      BLOB NOT NULL,
    set_unix_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

impl Database {
    /// Sets one, or replaces it.
    pub(in crate::store) fn set_secret(
        &self,
        name: &str,
        sealed: &[u8],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO secrets VALUES (?1, ?2, ?3) ON CONFLICT (name) \
                   DO UPDATE SET sealed = excluded.sealed, set_unix_ms = excluded.set_unix_ms";
        self.connection.execute(sql, params![name, sealed, now_ms]).map_err(failed("set a secret"))?;
        Ok(())
    }

    /// Names, and when each was set.
    pub(in crate::store) fn secrets(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let failed = failed("list the secrets");
        let sql = "SELECT name, set_unix_ms FROM secrets ORDER BY name";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// What was made of one.
    pub(in crate::store) fn secret(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT sealed FROM secrets WHERE name = ?1";
        let found = self.connection.query_row(sql, [name], |row| row.get(0));
        found.optional().map_err(failed("read a secret"))
    }

    /// Forgets one; says whether it was there.
    pub(in crate::store) fn remove_secret(&self, name: &str) -> Result<bool, StoreError> {
        let sql = "DELETE FROM secrets WHERE name = ?1";
        let removed = self.connection.execute(sql, [name]).map_err(failed("remove a secret"))?;
        Ok(removed > 0)
    }
}

/// What becomes a function's current version has all that it lists: whoever removes one asks the current versions.
pub(super) fn refuse_if_missing(
    connection: &Connection,
    name: &str,
    secrets: &[SecretName],
) -> Result<(), StoreError> {
    let failed = failed("look for a secret");
    let mut statement = connection.prepare_cached("SELECT 1 FROM secrets WHERE name = ?1").map_err(failed)?;
    for secret in secrets {
        if !statement.exists([secret.as_str()]).map_err(failed)? {
            return Err(StoreError::SecretRemoved { name: name.into(), secret: secret.as_str().into() });
        }
    }
    Ok(())
}
