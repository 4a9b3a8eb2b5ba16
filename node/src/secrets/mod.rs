//! Secrets: what a function must know and nobody else: passwords, keys, tokens of other services.
//!
//! An operator sets one by name ([`Secrets::set`]); a function that lists it in `spry.toml` finds it in a file,
//! `/run/secrets/NAME`, on a small file system of its own that only its own user can read. It is never in an environment,
//! a log, or what the control API shows: a value can be set and removed, not read.
//!
//! At rest each is encrypted by a key that lies in a file of its own ([`key`]), bound to its name, so that neither a copy
//! of the database nor rows that were swapped in it give anything away. In memory values are overwritten when they are
//! no longer needed ([`Value`]). What isn't hidden from: root, and whoever can read spryd's memory.

pub mod key;
mod seal;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::store::{Removal, Store, StoreError};
use key::{Key, KeyError};

/// Bytes of one secret at most.
pub const VALUE_MAX: usize = 64 * 1024;
/// Secrets of one function at most.
pub const PER_FUNCTION_MAX: usize = 32;

/// A secret's name: a letter, then letters, digits, `_`, `-` and `.`; 64 of them at most. Safe as a file's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that can't name a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} can't be a secret's name: use a letter, then letters, digits, _ - and . (64 at most)")]
pub struct SecretNameError(pub String);

impl TryFrom<String> for SecretName {
    type Error = SecretNameError;
    fn try_from(text: String) -> Result<Self, SecretNameError> {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let first = text.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
        if first && text.len() <= 64 && text.bytes().all(letter) {
            Ok(Self(text))
        } else {
            Err(SecretNameError(text))
        }
    }
}

impl std::str::FromStr for SecretName {
    type Err = SecretNameError;
    fn from_str(text: &str) -> Result<Self, SecretNameError> {
        text.to_owned().try_into()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl std::fmt::Display for SecretName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// A secret's bytes: overwritten when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    /// Of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Value(…)")
    }
}

/// A secret as a function gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The file's name.
    pub name: SecretName,
    /// What is in it.
    pub value: Value,
}

/// What may be said of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretView {
    /// Its name.
    pub name: SecretName,
    /// When it was set.
    pub set_unix_ms: u64,
}

/// Why a secret can't be set, removed or given.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It isn't there.
    #[error("there is no secret \"{0}\"; set it with `spry secret set {0}`")]
    Missing(SecretName),
    /// It is empty, or too long.
    #[error("a secret has 1 to {VALUE_MAX} bytes; this one has {0}")]
    Length(usize),
    /// The key doesn't open it.
    #[error("the secret \"{name}\" can't be opened with the key {}: bring the right key back, or set it again", key.display())]
    Sealed {
        /// Which.
        name: SecretName,
        /// The file.
        key: PathBuf,
    },
    /// Functions list it.
    #[error("the secret \"{name}\" is used by {}; change or remove that first", functions.join(", "))]
    InUse {
        /// Which.
        name: SecretName,
        /// By whom.
        functions: Vec<String>,
    },
    /// The key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All secrets of a node.
#[derive(Debug)]
pub struct Secrets {
    store: Arc<Store>,
    key_file: PathBuf,
}

impl Secrets {
    /// Those in this store, under the key of this file (made when the first is set).
    pub fn new(store: Arc<Store>, key_file: PathBuf) -> Self {
        Self { store, key_file }
    }

    /// Sets one, or replaces it. Blocks on the disk.
    pub fn set(&self, name: &SecretName, value: &Value) -> Result<(), SecretError> {
        let length = value.as_bytes().len();
        if !(1..=VALUE_MAX).contains(&length) {
            return Err(SecretError::Length(length));
        }
        let key = Key::load_or_create(&self.key_file)?;
        let sealed =
            seal::seal(&key, name, value).map_err(|source| KeyError::random(&self.key_file, source))?;
        Ok(self.store.set_secret(name, &sealed)?)
    }

    /// Names and times, by name.
    pub fn list(&self) -> Result<Vec<SecretView>, SecretError> {
        Ok(self.store.secrets()?)
    }

    /// Forgets one that no function lists.
    pub fn remove(&self, name: &SecretName) -> Result<(), SecretError> {
        match self.store.remove_secret(name)? {
            Removal::Done => Ok(()),
            Removal::Missing => Err(SecretError::Missing(name.clone())),
            Removal::Listed(functions) => Err(SecretError::InUse { name: name.clone(), functions }),
        }
    }

    /// Opens these.
    pub fn open(&self, names: &[SecretName]) -> Result<Vec<Secret>, SecretError> {
        names.iter().map(|name| self.open_one(name)).collect()
    }

    fn open_one(&self, name: &SecretName) -> Result<Secret, SecretError> {
        let sealed = self.store.secret(name)?.ok_or_else(|| SecretError::Missing(name.clone()))?;
        let unopened = || SecretError::Sealed { name: name.clone(), key: self.key_file.clone() };
        let key = match Key::load(&self.key_file) {
            Err(KeyError::Absent { .. }) => return Err(unopened()),
            key => key?,
        };
        let value = seal::open(&key, name, &sealed).ok_or_else(unopened)?;
        Ok(Secret { name: name.clone(), value })
    }
}

#[cfg(test)]
mod tests;
