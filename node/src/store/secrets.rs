//! Secrets as the store keeps them: names, and bytes that only [`crate::secrets`] can open.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Store, StoreError};
use crate::secrets::{SecretName, SecretView};

/// What came of a secret that was to be forgotten.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is.
    Done,
    /// There was none.
    Missing,
    /// It isn't: the current versions of these functions list it.
    Listed(Vec<String>),
}

impl Store {
    /// Sets one, or replaces it, durably.
    pub fn set_secret(&self, name: &SecretName, sealed: &[u8]) -> Result<(), StoreError> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64);
        self.shared.database.lock().set_secret(name.as_str(), sealed, now_ms)
    }

    /// Names, and when each was set.
    pub fn secrets(&self) -> Result<Vec<SecretView>, StoreError> {
        let rows = self.shared.database.lock().secrets()?;
        // (A name that isn't one was not written by spry.)
        let view =
            |(name, set_unix_ms): (String, u64)| Some(SecretView { name: name.parse().ok()?, set_unix_ms });
        Ok(rows.into_iter().filter_map(view).collect())
    }

    /// One, as it was given to [`Self::set_secret`].
    pub fn secret(&self, name: &SecretName) -> Result<Option<Vec<u8>>, StoreError> {
        self.shared.database.lock().secret(name.as_str())
    }

    /// Forgets one that the current version of no function lists.
    pub fn remove_secret(&self, name: &SecretName) -> Result<Removal, StoreError> {
        // Under one lock, so that none becomes the current one in between.
        let database = self.shared.database.lock();
        let functions = database.functions()?.into_iter().map(|row| self.stored(row));
        let mut users = Vec::new();
        for stored in functions {
            let manifest = stored?.manifest;
            if manifest.secrets.contains(name) {
                users.push(manifest.name.to_string());
            }
        }
        if !users.is_empty() {
            return Ok(Removal::Listed(users));
        }
        Ok(if database.remove_secret(name.as_str())? { Removal::Done } else { Removal::Missing })
    }
}
