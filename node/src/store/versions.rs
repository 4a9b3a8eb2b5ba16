//! The versions of a function that are kept beside the one that serves: going back to one, and sweeping those beyond.
//!
//! A version's number is its own for ever: going back makes the old number the current one again, and the next deploy gets a
//! number that nobody has had. What is about to serve, or still does, is held or `busy`, and isn't swept.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::database::Database;
use super::fault::Step;
use super::{Reserved, Shared, Store, StoreError, StoredFunction, digest, remove_folder, version_folder};
use crate::manifest::Name;

/// A version that is kept, and may be served again. It isn't swept while this value lives; nor, if the function is removed
/// meanwhile, are its numbers and its user id given out anew: what comes under its name then is never taken for what was recalled.
#[derive(Debug)]
pub struct Recalled {
    function: StoredFunction,
    from: u64,
    folder: PathBuf,
    shared: Arc<Shared>,
}

impl Recalled {
    /// The version to go back to.
    pub fn function(&self) -> &StoredFunction {
        &self.function
    }
}

impl Drop for Recalled {
    fn drop(&mut self) {
        let mut held = self.shared.held.lock();
        let key = (self.function.manifest.name.to_string(), self.function.version);
        if let Some(at) = held.iter().position(|one| *one == key) {
            held.swap_remove(at);
        }
        drop(held);
        self.shared.release(self.function.manifest.name.as_str(), &self.folder);
    }
}

impl Store {
    /// Every version of a function that is kept and can be read, the newest first.
    pub fn versions(&self, name: &str) -> Result<Vec<StoredFunction>, StoreError> {
        let rows = self.shared.database.lock().versions(name)?;
        Ok(self.readable(rows))
    }

    /// Holds a version to go back to: `to`, or the newest before the current one.
    pub fn recall(&self, name: &Name, to: Option<u64>) -> Result<Recalled, StoreError> {
        let mut reserved = self.shared.reserved.lock();
        let mut held = self.shared.held.lock();
        let database = self.shared.database.lock();
        let gone = || StoreError::NoSuchFunction(name.to_string());
        let from = database.current(name.as_str())?.ok_or_else(gone)?;
        let rows = database.versions(name.as_str())?;
        let (slot, last_version) = database.slot_and_version(name.as_str())?.ok_or_else(gone)?;
        drop(database);
        if to == Some(from) {
            return Err(StoreError::IsCurrent { name: name.to_string(), version: from });
        }
        let kept: Vec<u64> = rows.iter().map(|row| row.version).filter(|version| *version != from).collect();
        let wanted = to.or_else(|| kept.iter().copied().find(|version| *version < from));
        let row = rows.into_iter().find(|row| Some(row.version) == wanted);
        let row = row.ok_or_else(|| StoreError::NoSuchVersion { name: name.to_string(), to, kept })?;
        let function = self.stored(row)?;
        held.push((name.to_string(), function.version));
        Reserved::hold(&mut reserved, name.as_str(), slot, last_version);
        let folder = self.state_dir().join("functions").join(name.as_str());
        Ok(Recalled { function, from, folder, shared: Arc::clone(&self.shared) })
    }

    /// Makes a version the current one, durably and at once, unless another one was deployed since it was recalled.
    pub fn roll_back(&self, recalled: &Recalled) -> Result<StoredFunction, StoreError> {
        let function = &recalled.function;
        self.shared.seam.pass(Step::BeforeRollback)?;
        let name = function.manifest.name.as_str();
        let database = self.shared.database.lock();
        let secrets = &function.manifest.secrets;
        if !database.make_current(name, recalled.from, function.version, secrets)? {
            return Err(StoreError::Overtaken { name: name.into(), version: function.version });
        }
        drop(database);
        self.shared.seam.pass(Step::AfterRollback)?;
        Ok(function.clone())
    }

    /// Removes the versions that are beyond what is kept, but for those that still run.
    pub fn prune(&self, name: &Name, busy: &BTreeSet<u64>) -> Result<(), StoreError> {
        let gone = {
            let held = self.shared.held.lock();
            let is_held =
                |version: u64| held.iter().any(|(of, held)| of == name.as_str() && *held == version);
            let busy = |version| busy.contains(&version) || is_held(version);
            self.shared.database.lock().prune(name.as_str(), self.options.versions, &busy)?
        };
        self.shared.seam.pass(Step::Prune)?;
        gone.iter()
            .try_for_each(|version| remove_folder(&version_folder(self.state_dir(), name.as_str(), *version)))
    }

    /// Whether a version's files are those that were deployed. Reads all of them.
    pub fn check(&self, stored: &StoredFunction) -> Result<(), StoreError> {
        match digest::of_tree(&stored.code) {
            Ok(found) if found == stored.code_sha256 => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::os("read", &stored.code)(source)),
        }
        Err(StoreError::Altered {
            name: stored.manifest.name.to_string(),
            version: stored.version,
            path: stored.code.clone(),
        })
    }

    /// Notes when functions were used last (milliseconds since the epoch), durably; what is no function's name is passed over.
    pub fn note_uses(&self, uses: &[(String, u64)]) -> Result<(), StoreError> {
        self.shared.database.lock().note_uses(uses)
    }
}

/// Takes the files of versions that an earlier spryd stored for what was deployed: it noted nothing to hold them to.
pub(super) fn trust_those_before(state: &Path, database: &Database) -> Result<(), StoreError> {
    for current in database.functions()? {
        for row in database.versions(&current.name)? {
            let code = version_folder(state, &row.name, row.version).join("code");
            // (Files that can't be read now aren't taken for good.)
            if row.code_sha256.is_empty()
                && let Ok(sha) = digest::of_tree(&code)
            {
                database.set_digest(&row.name, row.version, &sha)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "version_tests.rs"]
mod tests;
