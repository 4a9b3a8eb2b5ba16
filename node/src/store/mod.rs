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
//! one. A [`Staged`] that is dropped takes its folder along. The old version's folder stays until
//! [`Store::forget`], so that what still runs can drain.
//!
//! **A crash**, at any point, leaves folders without a row (swept at the next open) or rows of superseded
//! versions (removed at the next open); never a current version without its folder.
//!
//! **A chain** is its text. [`Store::plan_chain`] checks it against what else there is, [`Store::commit_chain`] makes it
//! the one of its name, in one transaction. Functions and chains share one space of names, and what a chain uses
//! can't be removed: both are kept by the database itself. See [`chains`].
//!
//! Functions' user ids: each name keeps a *slot* while it is deployed; the slot after the last one given out
//! is tried first, so that an id comes back as late as can be.

pub mod chains;
mod database;
pub mod fault;
mod lock;
mod secrets;
pub(crate) mod sqlite;
mod stage;
mod tokens;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::chain::spec::ChainError;
use crate::config::UploadLimits;
use crate::config::raw::UID_COUNT;
use crate::manifest::{Manifest, ManifestError, Name};
pub use chains::{PlannedChain, Retired, StoredChain, StoredPlan};
use database::Database;
use fault::{Seam, Step};
pub use stage::{Staged, Upload};
pub use unpack::{UnpackError, Unpacked};

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder; made if it is absent.
    pub state_dir: PathBuf,
    /// The user id of slot 0.
    pub uid_base: u32,
    /// What may be uploaded.
    pub upload: UploadLimits,
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
}

/// Why the store can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon has the state folder.
    #[error("{} is in use by another spryd ({owner}); stop it, or use another --state-dir", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// `pid 123`, or that it isn't known.
        owner: String,
    },
    /// A file operation failed.
    #[error("{operation} {}: {source}", path.display())]
    Os {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The database is damaged.
    #[error(
        "the database {} is damaged ({problem}). Restore it from a backup; or move it and its -wal and -shm \
         files away, start spryd, and deploy the functions again", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite found.
        problem: String,
    },
    /// The database belongs to another program, or to a newer spry.
    #[error("the database {} has {found}; this spryd reads version {known}. {advice}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: String,
        /// What is known here.
        known: i32,
        /// What to do.
        advice: &'static str,
    },
    /// A database operation failed (a full disk, most often).
    #[error("{operation} in the database: {source}")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A stored manifest can't be read: it was written by another version.
    #[error("the stored manifest of \"{name}\" can't be read: {source}; deploy it again")]
    StoredManifest {
        /// Which function.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The upload is longer than what is accepted.
    #[error("the upload is over the limit of {limit} bytes (`upload.size` of spryd.toml)")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// The upload is no archive that is accepted.
    #[error("the uploaded archive: {0}")]
    Archive(#[from] UnpackError),
    /// The upload holds no function.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There is no such function.
    #[error("no function named \"{0}\" is stored")]
    NoSuchFunction(String),
    /// The version serves and can't be forgotten.
    #[error("version {version} of \"{name}\" is the current one")]
    IsCurrent {
        /// Which function.
        name: String,
        /// Which version.
        version: u64,
    },
    /// All user ids are taken.
    #[error("all {UID_COUNT} user ids for functions are taken")]
    NoSlot,
    /// The text is no chain that can be applied.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A chain that goes through this one would no longer be one.
    #[error("the chain \"{chain}\" goes through this one, and with it would be refused: {source}")]
    Dependent {
        /// Which.
        chain: String,
        /// Why.
        source: ChainError,
    },
    /// There is no such chain.
    #[error("no chain named \"{0}\" is stored")]
    NoSuchChain(String),
    /// A function can't have the name of a chain.
    #[error("\"{0}\" is the name of a chain; give the function another one, or remove the chain first")]
    NameIsChain(String),
    /// A chain can't have the name of a function.
    #[error("\"{0}\" is the name of a function; give the chain another one, or remove the function first")]
    NameIsFunction(String),
    /// Chains name it.
    #[error("\"{name}\" is used by {}; change or remove that first", chains_in_words(chains))]
    InUse {
        /// What was to be removed.
        name: String,
        /// By which chains.
        chains: Vec<String>,
    },
    /// What a chain names changed between its check and its commit.
    #[error("what the chain \"{0}\" names was changed meanwhile by somebody else; apply it again")]
    ChainOvertaken(String),
    /// A newer upload of the same function was committed first.
    #[error("version {version} of \"{name}\" was overtaken by a later deploy")]
    Overtaken {
        /// Which function.
        name: String,
        /// Which version.
        version: u64,
    },
}

fn chains_in_words(chains: &[String]) -> String {
    let named: Vec<String> = chains.iter().map(|name| format!("\"{name}\"")).collect();
    let word = if named.len() == 1 { "the chain" } else { "the chains" };
    format!("{word} {}", named.join(", "))
}

impl StoreError {
    pub(crate) fn os(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Os { operation, path, source }
    }
}

/// What [`Store::open`] found and mended, for the log.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Unfinished uploads that were removed.
    pub uploads_swept: usize,
    /// Folders that no row names, removed.
    pub folders_swept: usize,
    /// Superseded versions that were removed.
    pub versions_swept: usize,
    /// Functions whose code is gone from the disk. They can't be served; deploy them again.
    pub missing: Vec<String>,
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
    /// Versions and slots that uploads hold before they are committed.
    reserved: Mutex<BTreeMap<String, Reserved>>,
    /// Names that are being removed: no chain may begin to use them.
    retired: Mutex<BTreeSet<Name>>,
    seam: Seam,
}

#[derive(Debug, Default)]
struct Reserved {
    uploads: u32,
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
        let database = Database::open(&state.join("spry.db"))?;
        let opened = sweep(state, &database)?;
        let shared = Shared {
            database: Mutex::new(database),
            reserved: Mutex::default(),
            retired: Mutex::default(),
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

    /// The current version of every function, by name.
    pub fn functions(&self) -> Result<Vec<StoredFunction>, StoreError> {
        let rows = self.shared.database.lock().functions()?;
        rows.into_iter().map(|row| self.stored(row)).collect()
    }

    /// The current version of one function.
    pub fn function(&self, name: &str) -> Result<Option<StoredFunction>, StoreError> {
        let row = self.shared.database.lock().function(name)?;
        row.map(|row| self.stored(row)).transpose()
    }

    /// Makes a staged version the current one, durably and at once. The version that it replaces stays on
    /// disk until it is forgotten.
    pub fn commit(&self, staged: Staged) -> Result<StoredFunction, StoreError> {
        stage::commit(self, staged)
    }

    /// Removes a superseded version: its row and its folder. Call it when nothing uses the folder any more.
    pub fn forget(&self, name: &Name, version: u64) -> Result<(), StoreError> {
        self.shared.database.lock().forget(name.as_str(), version)?;
        remove_folder(&version_folder(self.state_dir(), name.as_str(), version))
    }

    /// Removes a function with all its versions. Call it when its last process is gone: its user id is free
    /// from then on.
    pub fn remove(&self, name: &Name) -> Result<(), StoreError> {
        self.shared.seam.pass(Step::RemoveRow)?;
        let versions = self.shared.database.lock().remove(name.as_str())?;
        self.shared.seam.pass(Step::RemoveFolder)?;
        // By version: an upload of the same name may be staged beside them.
        for version in versions {
            remove_folder(&version_folder(self.state_dir(), name.as_str(), version))?;
        }
        let reserved = self.shared.reserved.lock();
        if !reserved.contains_key(name.as_str()) {
            let _ = fs::remove_dir(self.state_dir().join("functions").join(name.as_str()));
        }
        Ok(())
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
        })
    }
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

/// Removes what no current version needs; the lock is held and nothing runs yet.
fn sweep(state: &Path, database: &Database) -> Result<Opened, StoreError> {
    let mut opened = Opened { versions_swept: database.forget_superseded()?, ..Opened::default() };
    for path in entries(&state.join("staging"))? {
        remove_any(&path)?;
        opened.uploads_swept += 1;
    }
    let current: BTreeMap<String, u64> =
        database.functions()?.into_iter().map(|row| (row.name, row.version)).collect();
    for folder in entries(&state.join("functions"))? {
        let version = folder.file_name().and_then(|name| name.to_str()).and_then(|name| current.get(name));
        let Some(version) = version else {
            remove_any(&folder)?;
            opened.folders_swept += 1;
            continue;
        };
        for path in entries(&folder)? {
            if path.file_name().and_then(|name| name.to_str()) != Some(version.to_string().as_str()) {
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
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
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

#[cfg(test)]
mod tests;
