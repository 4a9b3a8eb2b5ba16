//! What survives a restart: the functions that are deployed, and their code; the chains that are applied; secrets.
//!
//! ```text
//! STATE/                    0711 root          passed through by functions, listed by none
//!   lock                    0600               flock'd by the daemon, holds its pid
//!   spry.db, -wal, -shm     0600               SQLite: what is deployed
//!   secrets.key             0600               (see `secrets::key`)
//!   api-token               0600               (see `control::token`)
//!   staging/                0700               uploads while they arrive; emptied at open
//!   functions/NAME/VERSION/ 0750 root:FUNCTION  one version
//!     code/                                    its files, 0640 or 0750, dirs 0750, all root:FUNCTION
//! ```
//!
//! **A deploy.** [`Store::stage`] unpacks and checks an upload in `staging/` and then moves it to the folder that it
//! will keep, so that nothing moves under a zygote that loads it; but no row of the database names it.
//! [`Store::commit`] is one SQLite transaction: before it, the old version is the current one; after it, the new
//! one. A [`Staged`] that is dropped takes its folder along. The old version stays, to go back to
//! ([`Store::roll_back`]); those beyond `versions` go when nothing of them runs any more ([`Store::prune`]).
//!
//! **A crash**, at any point, leaves folders without a row, or more versions than are kept (swept at the next open);
//! never a current version without its folder. Files that a crash of the machine tore are found by [`Store::check`].
//!
//! **A chain** is its text. [`Store::plan_chain`] checks it against what else there is, [`Store::commit_chain`] makes it
//! the one of its name, in one transaction. Functions and chains share one space of names, and what a chain uses
//! can't be removed: both are kept by the database itself. See [`chains`].
//!
//! Functions' user ids: each name keeps a *slot* while it is deployed; the slot after the last one given out
//! is tried first, so that an id comes back as late as can be.

pub mod chains;
mod database;
mod digest;
mod error;
pub mod fault;
mod lock;
mod secrets;
pub(crate) mod sqlite;
mod stage;
mod sweep;
mod tokens;
mod unpack;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::UploadLimits;
use crate::manifest::{Manifest, Name};
pub use chains::{PlannedChain, Retired, StoredChain, StoredPlan};
use database::Database;
pub use error::StoreError;
use fault::{Seam, Step};
pub use secrets::Removal;
pub use stage::{Leaving, Staged, Upload};
pub use sweep::Opened;
pub use unpack::{UnpackError, Unpacked};
pub use versions::Recalled;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder; made if it is absent.
    pub state_dir: PathBuf,
    /// The user id of slot 0.
    pub uid_base: u32,
    /// What may be uploaded.
    pub upload: UploadLimits,
    /// Versions of a function that are kept, the current one included.
    pub versions: usize,
}

/// A function as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredFunction {
    /// Its checked manifest.
    pub manifest: Manifest,
    /// Which deploy of that name this is, from 1.
    pub version: u64,
    /// Of the upload, in hexadecimal.
    pub sha256: String,
    /// Its place among the functions' user ids.
    pub slot: u32,
    /// The user and group that its processes run as.
    pub uid: u32,
    /// Its files.
    pub code: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was committed: milliseconds since the Unix epoch.
    pub deployed_unix_ms: u64,
    /// Of its files, in hexadecimal.
    pub code_sha256: String,
    /// When the function was used last, as far as it was noted: milliseconds since the Unix epoch; 0: never.
    pub used_unix_ms: u64,
}

/// The open store; one per state folder.
#[derive(Debug)]
pub struct Store {
    options: Options,
    opened: Opened,
    shared: Arc<Shared>,
    /// Last, so that it is released when everything else is closed.
    _lock: lock::Lock,
}

/// What a [`Staged`] still needs when it cleans up after itself.
#[derive(Debug)]
struct Shared {
    database: Mutex<Database>,
    /// Versions and slots that are held by uploads before they are committed, by rollbacks, and by a removal until the folders are
    /// gone.
    reserved: Mutex<BTreeMap<String, Reserved>>,
    /// Names that are being removed: no chain may begin to use them.
    retired: Mutex<BTreeSet<Name>>,
    /// Versions that somebody is about to serve again: they aren't swept.
    held: Mutex<Vec<(String, u64)>>,
    seam: Seam,
}

#[derive(Debug, Default)]
struct Reserved {
    users: u32,
    last_version: u64,
    slot: u32,
}

impl Store {
    /// Opens the state folder, and mends what a crash left.
    pub fn open(options: Options) -> Result<Self, StoreError> {
        Self::open_with(options, Seam::default())
    }

    /// The same with a seam at which tests make steps fail.
    pub fn open_with(options: Options, seam: Seam) -> Result<Self, StoreError> {
        let state = &options.state_dir;
        make_folder(state, 0o711)?;
        let lock = lock::Lock::take(state)?;
        for (name, mode) in [("staging", 0o700), ("functions", 0o711)] {
            make_folder(&state.join(name), mode)?;
        }
        let mut database = Database::open(&state.join("spry.db"))?;
        let opened = sweep::sweep(state, &mut database, options.versions)?;
        versions::trust_those_before(state, &database)?;
        let shared = Shared {
            database: Mutex::new(database),
            reserved: Mutex::default(),
            retired: Mutex::default(),
            held: Mutex::default(),
            seam,
        };
        Ok(Self { options, opened, shared: Arc::new(shared), _lock: lock })
    }

    /// What was found at open.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// The folder that this is.
    pub fn state_dir(&self) -> &Path {
        &self.options.state_dir
    }

    /// The current version of every function, by name. One whose manifest can't be read (another version of spry wrote it) is
    /// told to the log, and no other misses anything by it.
    pub fn functions(&self) -> Result<Vec<StoredFunction>, StoreError> {
        let rows = self.shared.database.lock().functions()?;
        Ok(self.readable(rows))
    }

    fn readable(&self, rows: Vec<database::Row>) -> Vec<StoredFunction> {
        let stored = rows.into_iter().map(|row| self.stored(row));
        let told = stored.map(|one| {
            one.inspect_err(|error| tracing::error!(%error, "a stored version of a function can't be served"))
        });
        told.filter_map(Result::ok).collect()
    }

    /// The current version of one function.
    pub fn function(&self, name: &str) -> Result<Option<StoredFunction>, StoreError> {
        let row = self.shared.database.lock().function(name)?;
        row.map(|row| self.stored(row)).transpose()
    }

    /// Makes a staged version the current one, durably and at once. The version that it replaces stays on
    /// disk until it is pruned.
    pub fn commit(&self, staged: Staged) -> Result<StoredFunction, StoreError> {
        stage::commit(self, staged)
    }

    /// Removes a function with all its versions, durably; if that fails, nothing has changed. Its files stay, and its user id is
    /// nobody else's, until its last process is gone and [`Leaving::clear`] is called.
    pub fn remove(&self, name: &Name) -> Result<Leaving, StoreError> {
        self.shared.seam.pass(Step::RemoveRow)?;
        let folder = self.state_dir().join("functions").join(name.as_str());
        stage::remove_rows(&self.shared, name.as_str(), folder)
    }

    fn uid_of(&self, slot: u32) -> u32 {
        self.options.uid_base + slot
    }

    fn stored(&self, row: database::Row) -> Result<StoredFunction, StoreError> {
        let manifest = serde_json::from_str(&row.manifest)
            .map_err(|source| StoreError::StoredManifest { name: row.name.clone(), source })?;
        Ok(StoredFunction {
            manifest,
            version: row.version,
            code: version_folder(self.state_dir(), &row.name, row.version).join("code"),
            sha256: row.sha256,
            slot: row.slot,
            uid: self.uid_of(row.slot),
            bytes: row.bytes,
            deployed_unix_ms: row.deployed_unix_ms,
            code_sha256: row.code_sha256,
            used_unix_ms: row.used_unix_ms,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn version_folder(state: &Path, name: &str, version: u64) -> PathBuf {
    state.join("functions").join(name).join(version.to_string())
}

/// Makes a folder (and those above it) and gives it `mode`, whatever the umask.
fn make_folder(path: &Path, mode: u32) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(StoreError::os("make the folder", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(StoreError::os("set the mode of", path))
}

fn remove_folder(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::os("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
