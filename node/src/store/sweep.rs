//! What is left of a daemon that was killed, and how it is cleared away when the store is opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::database::Database;
use super::{StoreError, version_folder};

/// What [`Store::open`](super::Store::open) found and mended, for the log.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Unfinished uploads that were removed.
    pub uploads_swept: usize,
    /// Folders that no row names, removed.
    pub folders_swept: usize,
    /// Versions beyond those that are kept, removed.
    pub versions_swept: usize,
    /// Functions whose code is gone from the disk. They can't be served; deploy them again.
    pub missing: Vec<String>,
}

/// Removes what no version that is kept needs; the lock is held and nothing runs yet.
pub(super) fn sweep(state: &Path, database: &mut Database, keep: usize) -> Result<Opened, StoreError> {
    let mut opened = Opened::default();
    for path in entries(&state.join("staging"))? {
        remove_any(&path)?;
        opened.uploads_swept += 1;
    }
    let current: BTreeMap<String, u64> =
        database.functions()?.into_iter().map(|row| (row.name, row.version)).collect();
    let mut kept = BTreeSet::new();
    for name in current.keys() {
        opened.versions_swept += database.prune(name, keep, &|_| false)?.len();
        let rows = database.versions(name)?.into_iter();
        kept.extend(rows.map(|row| version_folder(state, name, row.version)));
    }
    for folder in entries(&state.join("functions"))? {
        if !folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| current.contains_key(name)) {
            remove_any(&folder)?;
            opened.folders_swept += 1;
            continue;
        }
        // What a link leads to was put there by somebody else, and may not be there now.
        if folder.is_symlink() {
            continue;
        }
        for path in entries(&folder)? {
            if !kept.contains(&path) {
                remove_any(&path)?;
                opened.folders_swept += 1;
            }
        }
    }
    let gone =
        |(name, version): &(&String, &u64)| !version_folder(state, name, **version).join("code").is_dir();
    opened.missing = current.iter().filter(gone).map(|(name, _)| name.clone()).collect();
    Ok(opened)
}

/// What is in a folder; a stray file in its place has nothing in it.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = || StoreError::os("list", folder);
    let listing = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        listing => listing.map_err(failed())?,
    };
    listing.map(|entry| entry.map(|entry| entry.path()).map_err(failed())).collect()
}

fn remove_any(path: &Path) -> Result<(), StoreError> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(StoreError::os("remove", path))
}
