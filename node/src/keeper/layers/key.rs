//! What layers, versions and what these import on are called.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fit;
use crate::packages::Site;
use crate::store::StoredFunction;
use crate::zygote::{Runtime, ZygoteSpec};

/// Names what functions import on: the hash of the interpreter's file, the manifest's variables, and the packages' folder where all
/// of them lie in one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct GroundKey(pub(super) String);

/// What they import on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ground {
    pub(super) interpreter: PathBuf,
    /// The packages, where all of them lie in one folder.
    pub(super) whole: Option<Site>,
    pub(super) env: BTreeMap<String, String>,
}

impl Ground {
    /// Of a function's process; only Python's are looked at.
    pub(super) fn of(spec: &ZygoteSpec) -> Option<(GroundKey, Self)> {
        let Runtime::Python { interpreter } = &spec.runtime else { return None };
        let file = fs::metadata(interpreter).ok()?;
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(interpreter.as_os_str().as_encoded_bytes());
        for number in [file.dev(), file.ino(), file.size(), file.mtime() as u64, file.mtime_nsec() as u64] {
            add(&number.to_le_bytes());
        }
        let whole = spec.packages.as_ref().filter(|site| site.whole.is_some());
        let folder = whole.and_then(|site| site.folders.first());
        add(folder.map_or(Path::new(""), PathBuf::as_path).as_os_str().as_encoded_bytes());
        for (name, value) in &spec.env {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        let key = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let ground = Self { interpreter: interpreter.clone(), whole: whole.cloned(), env: spec.env.clone() };
        Some((GroundKey(key), ground))
    }
}

/// The folders of the distributions that a function's process is given, where each has its own: sorted.
pub(super) fn distributions(spec: &ZygoteSpec) -> Vec<String> {
    let site = spec.packages.iter().filter(|site| site.whole.is_none());
    let mut folders: Vec<String> =
        site.flat_map(|site| &site.folders).map(|folder| folder.to_string_lossy().into_owned()).collect();
    folders.sort_unstable();
    folders
}

/// Names a version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct VersionKey {
    pub(super) code: String,
    pub(super) handler: String,
    pub(super) ground: GroundKey,
    /// The folders of its distributions, where each has its own: sorted.
    #[serde(default)]
    pub(super) packages: Vec<String>,
}

impl VersionKey {
    pub(super) fn of(stored: &StoredFunction, ground: &GroundKey, packages: Vec<String>) -> Self {
        let (code, handler) = names_of(stored);
        Self { code: code.to_owned(), handler: handler.to_owned(), ground: ground.clone(), packages }
    }

    /// Its code and handler: what it is on whatever ground.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.code, &self.handler)
    }

    /// The first part of the name of its handler's module.
    pub(super) fn module(&self) -> &str {
        fit::top(self.handler.split(':').next().unwrap_or(&self.handler))
    }
}

/// As [`VersionKey::names`], of a function's version.
pub(super) fn names_of(stored: &StoredFunction) -> (&str, &str) {
    let code = if stored.code_sha256.is_empty() { &stored.sha256 } else { &stored.code_sha256 };
    (code, &stored.manifest.handler)
}

/// Names a layer: what it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LayerKey {
    pub(super) ground: GroundKey,
    /// Sorted: in that order they are imported, so that none of the functions has a say in it.
    pub(super) modules: Vec<String>,
    /// The folders of the distributions among which they are: sorted.
    pub(super) packages: Vec<String>,
}
