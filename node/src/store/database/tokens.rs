//! The rows of tokens: hashes, and what their bearers may do.

use rusqlite::params;

use super::{Database, StoreError, failed};
use crate::access::{Scopes, StoredToken};

/// What this version of the schema adds. `functions` is a JSON list of names, or nothing: all.
pub(super) const TOKENS: &str = "
CREATE TABLE tokens (
    id              TEXT PRIMARY KEY,
    digest          BLOB NOT NULL CHECK (length(digest) = 32),
    scopes          TEXT NOT NULL,
    functions       TEXT,
    note            TEXT NOT NULL,
    created_unix_ms INTEGER NOT NULL,
    expires_unix_ms INTEGER
) STRICT, WITHOUT ROWID;
";

impl Database {
    pub(in crate::store) fn tokens(&self) -> Result<Vec<StoredToken>, StoreError> {
        let failed = failed("list the tokens");
        let sql = "SELECT id, digest, scopes, functions, note, created_unix_ms, expires_unix_ms \
                   FROM tokens ORDER BY created_unix_ms, id";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let rows = statement.query_map([], |row| {
            let functions: Option<String> = row.get(3)?;
            Ok(StoredToken {
                id: row.get(0)?,
                digest: row.get(1)?,
                scopes: Scopes::read(&row.get::<_, String>(2)?),
                // A list that can't be read is an empty one: a token must not grow by damage.
                functions: functions.map(|text| serde_json::from_str(&text).unwrap_or_default()),
                note: row.get(4)?,
                created_unix_ms: row.get(5)?,
                expires_unix_ms: row.get(6)?,
            })
        });
        rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
    }

    pub(in crate::store) fn add_token(&self, token: &StoredToken) -> Result<(), StoreError> {
        let functions = token.functions.as_ref().map(|names| serde_json::json!(names).to_string());
        let values = params![
            token.id,
            token.digest,
            token.scopes.words(),
            functions,
            token.note,
            token.created_unix_ms,
            token.expires_unix_ms
        ];
        let sql = "INSERT INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        self.connection.execute(sql, values).map(drop).map_err(failed("keep a token"))
    }

    pub(in crate::store) fn revoke_token(&self, id: &str) -> Result<bool, StoreError> {
        let revoked = self.connection.execute("DELETE FROM tokens WHERE id = ?1", [id]);
        revoked.map(|rows| rows > 0).map_err(failed("revoke a token"))
    }
}
