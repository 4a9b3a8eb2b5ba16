//! The rows of a function's versions beside the current one, and when functions were used last.

use rusqlite::{OptionalExtension, TransactionBehavior, params};

use super::{Database, Row, StoreError, failed, row};
use crate::secrets::SecretName;

/// What version 5 of the schema adds. `last` is the highest number that was given out, so that none comes twice;
/// `code_sha256` is of the files, or nothing for those that an earlier spryd stored; `used_unix_ms` 0 is never.
pub(super) const VERSIONS: &str = "
ALTER TABLE versions ADD COLUMN code_sha256 TEXT NOT NULL DEFAULT '';
ALTER TABLE functions ADD COLUMN last INTEGER NOT NULL DEFAULT 0;
ALTER TABLE functions ADD COLUMN used_unix_ms INTEGER NOT NULL DEFAULT 0;
UPDATE functions SET last = current;
";

const ALL: &str = "
SELECT f.name, f.slot, v.version, v.sha256, v.manifest, v.bytes, v.deployed_unix_ms, v.code_sha256, f.used_unix_ms
FROM functions f JOIN versions v ON v.name = f.name WHERE f.name = ?1 ORDER BY v.version DESC";

impl Database {
    /// Every version of a function that is kept, the newest first.
    pub(in crate::store) fn versions(&self, name: &str) -> Result<Vec<Row>, StoreError> {
        let failed = failed("list a function's versions");
        let mut statement = self.connection.prepare_cached(ALL).map_err(failed)?;
        let rows = statement.query_map([name], row).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// The number of the current version.
    pub(in crate::store) fn current(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let sql = "SELECT current FROM functions WHERE name = ?1";
        let found = self.connection.query_row(sql, [name], |row| row.get(0));
        found.optional().map_err(failed("look up a function"))
    }

    /// Makes a version that is kept, and lists these secrets, the current one, if `from` still is. False when it isn't.
    pub(in crate::store) fn make_current(
        &self,
        name: &str,
        from: u64,
        to: u64,
        secrets: &[SecretName],
    ) -> Result<bool, StoreError> {
        super::secrets::refuse_if_missing(&self.connection, name, secrets)?;
        let sql = "UPDATE functions SET current = ?3 WHERE name = ?1 AND current = ?2 \
                   AND EXISTS (SELECT 1 FROM versions WHERE name = ?1 AND version = ?3)";
        let changed = self.connection.execute(sql, params![name, from, to]);
        changed.map(|rows| rows > 0).map_err(failed("roll back to a version"))
    }

    /// Removes what is beyond the newest `keep` versions (the current one counts, whichever it is), but for those
    /// that are `busy`. Returns which.
    pub(in crate::store) fn prune(
        &mut self,
        name: &str,
        keep: usize,
        busy: &dyn Fn(u64) -> bool,
    ) -> Result<Vec<u64>, StoreError> {
        let failed = failed("remove old versions");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let others: Vec<u64> = {
            let sql = "SELECT v.version FROM functions f JOIN versions v USING (name) \
                       WHERE f.name = ?1 AND v.version <> f.current ORDER BY v.version DESC";
            let mut statement = transaction.prepare_cached(sql).map_err(failed)?;
            let rows = statement.query_map([name], |row| row.get(0)).map_err(failed)?;
            rows.collect::<Result<_, _>>().map_err(failed)?
        };
        let beyond = others.into_iter().skip(keep.saturating_sub(1)).filter(|version| !busy(*version));
        let gone: Vec<u64> = beyond.collect();
        for version in &gone {
            let sql = "DELETE FROM versions WHERE name = ?1 AND version = ?2";
            transaction.execute(sql, params![name, version]).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(gone)
    }

    /// Notes what the files of a version come to, where an earlier spryd didn't.
    pub(in crate::store) fn set_digest(&self, name: &str, version: u64, sha: &str) -> Result<(), StoreError> {
        let sql = "UPDATE versions SET code_sha256 = ?3 WHERE name = ?1 AND version = ?2";
        let changed = self.connection.execute(sql, params![name, version, sha]);
        changed.map(drop).map_err(failed("note what a version's files come to"))
    }

    /// Notes when functions were used last; one transaction for all of them.
    pub(in crate::store) fn note_uses(&mut self, uses: &[(String, u64)]) -> Result<(), StoreError> {
        let failed = failed("note when functions were used");
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        for (name, unix_ms) in uses {
            let sql = "UPDATE functions SET used_unix_ms = ?2 WHERE name = ?1";
            transaction
                .prepare_cached(sql)
                .map_err(failed)?
                .execute(params![name, unix_ms])
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)
    }
}
