//! Opening the state folder's SQLite files: each is ours, whole, and of a version that is known, or spryd says what to do.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::StoreError;

/// Opens a file, or makes it, in WAL mode with `synchronous = FULL`: a committed transaction is on disk. A file that an
/// earlier version wrote is brought up to date, in one transaction. `schema` is what each version adds to the one before.
pub(crate) fn open(path: &Path, application_id: i32, schema: &[&str]) -> Result<Connection, StoreError> {
    // SQLite gives its -wal and -shm files the mode of the database.
    let mut options = OpenOptions::new();
    let made = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map_err(StoreError::os("open", path))?;
    let at_open = |source| describe(path, "open", source);
    let mut connection = Connection::open(path).map_err(at_open)?;
    prepare(&mut connection, path, application_id, schema)?;
    Ok(connection)
}

/// A further connection to a file that [`open`] has opened; it only reads, and sees what has been committed.
pub(crate) fn open_to_read(path: &Path, operation: &'static str) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Database { operation, source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    // The first read opens the log beside the file: now, while there are descriptors for it.
    let tables: rusqlite::Result<i64> =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0));
    tables.map_err(failed)?;
    Ok(connection)
}

/// Checks that the file is ours, whole, and of a version that is known; makes the tables that it doesn't have.
fn prepare(
    connection: &mut Connection,
    path: &Path,
    application_id: i32,
    schema: &[&str],
) -> Result<(), StoreError> {
    let at_open = |source| describe(path, "open", source);
    connection.pragma_update(None, "journal_mode", "WAL").map_err(at_open)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(at_open)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(at_open)?;
    // A burst must not leave a log of its size behind for ever.
    connection.pragma_update(None, "journal_size_limit", 64 << 20).map_err(at_open)?;
    let number = |connection: &Connection, pragma: &str| -> Result<i32, StoreError> {
        connection.pragma_query_value(None, pragma, |row| row.get(0)).map_err(at_open)
    };
    let known = schema.len() as i32;
    let (application, version) = (number(connection, "application_id")?, number(connection, "user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(at_open)?;
    if application == 0 && version == 0 && tables == 0 {
        return migrate(connection, application_id, schema, 0).map_err(at_open);
    }
    let refuse = |found: String, advice| {
        let path = path.to_owned();
        Err(StoreError::Schema { path, found, known, advice })
    };
    if application != application_id {
        return refuse("another program's mark".into(), "Name another --state-dir.");
    }
    if !(1..=known).contains(&version) {
        return refuse(format!("version {version}"), "Use the spryd that wrote it, or a newer one.");
    }
    let found: String =
        connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(at_open)?;
    if found != "ok" {
        return Err(StoreError::Corrupt { path: path.to_owned(), problem: found });
    }
    if version < known {
        migrate(connection, application_id, schema, version).map_err(at_open)
    } else {
        Ok(())
    }
}

/// Adds what the schema has beyond `version`.
fn migrate(
    connection: &mut Connection,
    application_id: i32,
    schema: &[&str],
    version: i32,
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for addition in schema.iter().skip(version as usize) {
        transaction.execute_batch(addition)?;
    }
    transaction.pragma_update(None, "application_id", application_id)?;
    transaction.pragma_update(None, "user_version", schema.len() as i32)?;
    transaction.commit()
}

fn describe(path: &Path, operation: &'static str, source: rusqlite::Error) -> StoreError {
    let path: PathBuf = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { path, problem: source.to_string() }
        }
        _ => StoreError::Database { operation, source },
    }
}
