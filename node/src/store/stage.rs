//! From an upload to a staged version, and from there to the current one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::database::Row;
use super::fault::Step;
use super::unpack::{self, Unpacked};
use super::{
    Reserved, Shared, Store, StoreError, StoredFunction, digest, hex, make_folder, remove_folder,
    version_folder,
};
use crate::manifest::{Defaults, Manifest, Override};

/// An archive while it arrives: a file in `staging/` that goes away with this value.
#[derive(Debug)]
pub struct Upload {
    file: File,
    path: PathBuf,
    digest: Sha256,
    bytes: u64,
    limit: u64,
    shared: Arc<Shared>,
}

impl Upload {
    /// Appends what has arrived. Blocks on the disk.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        self.shared.seam.pass(Step::UploadWrite)?;
        self.bytes = self.bytes.saturating_add(piece.len() as u64);
        if self.bytes > self.limit {
            return Err(StoreError::TooLarge { limit: self.limit });
        }
        self.digest.update(piece);
        self.file.write_all(piece).map_err(StoreError::os("write", &self.path))
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A validated version with its files in place, which no row of the database names yet. Dropped, it takes its
/// files along; [`Store::commit`] makes it the current version.
#[derive(Debug)]
pub struct Staged {
    manifest: Manifest,
    version: u64,
    sha256: String,
    code_sha256: String,
    slot: u32,
    uid: u32,
    contents: Unpacked,
    folder: PathBuf,
    /// Cleared when the folder is to stay.
    sweep: bool,
    shared: Arc<Shared>,
}

impl Staged {
    /// What the function is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    /// The version that it will be.
    pub fn version(&self) -> u64 {
        self.version
    }
    /// Of the upload, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
    /// Of its files, in hexadecimal.
    pub fn code_sha256(&self) -> &str {
        &self.code_sha256
    }
    /// The function's place among the functions' user ids.
    pub fn slot(&self) -> u32 {
        self.slot
    }
    /// The user and group that its processes run as.
    pub fn uid(&self) -> u32 {
        self.uid
    }
    /// Its files, where they will stay.
    pub fn code(&self) -> PathBuf {
        self.folder.join("code")
    }
    /// How much was unpacked.
    pub fn contents(&self) -> Unpacked {
        self.contents
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.sweep {
            // What can't be removed now is swept at the next open.
            let _ = remove_folder(&self.folder);
        }
        if let Some(function) = self.folder.parent() {
            self.shared.release(self.manifest.name.as_str(), function);
        }
    }
}

/// A function that was removed and whose processes may run yet. Its numbers and its user id aren't given out anew while this value
/// lives: an upload of the same name gets a folder that is none of those that go.
#[derive(Debug)]
#[must_use = "its files stay"]
pub struct Leaving {
    name: String,
    folder: PathBuf,
    versions: Vec<u64>,
    shared: Arc<Shared>,
}

impl Leaving {
    /// Removes its files. What can't be removed now is swept at the next open.
    pub fn clear(self) -> Result<(), StoreError> {
        self.shared.seam.pass(Step::RemoveFolder)?;
        // By version: an upload of the same name may be staged beside them.
        self.versions.iter().try_for_each(|version| remove_folder(&self.folder.join(version.to_string())))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.shared.release(&self.name, &self.folder);
    }
}

/// Removes a function's rows.
pub(super) fn remove_rows(shared: &Arc<Shared>, name: &str, folder: PathBuf) -> Result<Leaving, StoreError> {
    let mut reserved = shared.reserved.lock();
    let mut database = shared.database.lock();
    let known = database.slot_and_version(name)?;
    let (slot, last_version) = known.ok_or_else(|| StoreError::NoSuchFunction(name.into()))?;
    let versions = database.remove(name)?;
    Reserved::hold(&mut reserved, name, slot, last_version);
    Ok(Leaving { name: name.to_owned(), folder, versions, shared: Arc::clone(shared) })
}

impl Store {
    /// Opens a file for an archive that is about to arrive.
    pub fn upload(&self) -> Result<Upload, StoreError> {
        self.shared.seam.pass(Step::UploadCreate)?;
        let path = self.staging_path("upload");
        let mut options = OpenOptions::new();
        let made = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = made.map_err(StoreError::os("make", &path))?;
        let limit = self.options.upload.size.as_bytes();
        Ok(Upload { file, path, digest: Sha256::new(), bytes: 0, limit, shared: Arc::clone(&self.shared) })
    }

    /// Checks and unpacks an archive. `name` and `overrides` win over its manifest, `defaults` fill in what it
    /// doesn't say. Blocks on the disk.
    pub fn stage(
        &self,
        mut upload: Upload,
        name: Option<&str>,
        overrides: &[Override],
        defaults: &Defaults,
    ) -> Result<Staged, StoreError> {
        let seam = &self.shared.seam;
        seam.pass(Step::Unpack)?;
        let room = Room(self.staging_path("unpack"));
        make_folder(&room.0, 0o700)?;
        let code = room.0.join("code");
        make_folder(&code, 0o700)?;
        upload.file.rewind().map_err(StoreError::os("read", &upload.path))?;
        let (tree, contents) = unpack::unpack(&upload.file, &code, self.options.upload)?;

        seam.pass(Step::ReadManifest)?;
        let manifest = Manifest::of_folder(&code, name, overrides, defaults)?;

        let (version, slot) = self.shared.reserve(manifest.name.as_str())?;
        let mut staged = Staged {
            folder: version_folder(self.state_dir(), manifest.name.as_str(), version),
            sha256: hex(&std::mem::take(&mut upload.digest).finalize()),
            code_sha256: String::new(),
            uid: self.uid_of(slot),
            sweep: true,
            shared: Arc::clone(&self.shared),
            manifest,
            version,
            slot,
            contents,
        };
        seam.pass(Step::Own)?;
        // Without root there is one user only, and nothing to give.
        let gid = nix::unistd::geteuid().is_root().then_some(staged.uid);
        unpack::own(&code, &tree, gid).map_err(StoreError::os("set the owner of", &code))?;
        unpack::own(&room.0, &unpack::Tree::new(), gid)
            .map_err(StoreError::os("set the owner of", &room.0))?;

        staged.code_sha256 = digest::of_tree(&code).map_err(StoreError::os("read", &code))?;

        seam.pass(Step::Place)?;
        let parent = self.state_dir().join("functions").join(staged.manifest.name.as_str());
        make_folder(&parent, 0o711)?;
        remove_folder(&staged.folder)?;
        fs::rename(&room.0, &staged.folder).map_err(StoreError::os("move to its place", &staged.folder))?;
        Ok(staged)
    }

    fn staging_path(&self, what: &str) -> PathBuf {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.state_dir().join("staging").join(format!("{what}-{number}"))
    }
}

/// See [`Store::commit`].
pub(super) fn commit(store: &Store, mut staged: Staged) -> Result<StoredFunction, StoreError> {
    let seam = &store.shared.seam;
    seam.pass(Step::Sync)?;
    sync(&staged.folder)?;
    let manifest = serde_json::to_string(&staged.manifest)
        .map_err(|source| StoreError::StoredManifest { name: staged.manifest.name.to_string(), source })?;
    let row = Row {
        name: staged.manifest.name.to_string(),
        slot: staged.slot,
        version: staged.version,
        sha256: staged.sha256.clone(),
        code_sha256: staged.code_sha256.clone(),
        used_unix_ms: 0,
        manifest,
        bytes: staged.contents.bytes,
        deployed_unix_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64),
    };
    seam.pass(Step::BeforeCommit)?;
    if !store.shared.database.lock().commit(&row, &staged.manifest.secrets)? {
        return Err(StoreError::Overtaken { name: row.name, version: row.version });
    }
    // From here on the row names the folder.
    staged.sweep = false;
    seam.pass(Step::AfterCommit)?;
    store.stored(row)
}

impl Reserved {
    /// Holds a function's user id, and the numbers that it has had, until [`Shared::release`].
    pub(super) fn hold(reserved: &mut BTreeMap<String, Self>, name: &str, slot: u32, last_version: u64) {
        let held = reserved.entry(name.to_owned()).or_insert(Self { users: 0, last_version: 0, slot });
        held.users += 1;
        held.last_version = held.last_version.max(last_version);
    }
}

impl Shared {
    /// The version and the slot of the next upload of this function.
    fn reserve(&self, name: &str) -> Result<(u64, u32), StoreError> {
        let mut reserved = self.reserved.lock();
        let database = self.database.lock();
        if database.is_chain(name)? {
            return Err(StoreError::NameIsChain(name.into()));
        }
        let known = database.slot_and_version(name)?;
        if !reserved.contains_key(name) {
            let slot = match known {
                Some((slot, _)) => slot,
                None => database.free_slot(&|slot| reserved.values().any(|held| held.slot == slot))?,
            };
            reserved.insert(name.to_owned(), Reserved { users: 0, last_version: 0, slot });
        }
        let held = reserved.get_mut(name).expect("inserted above, under the same lock");
        held.users += 1;
        held.last_version = held.last_version.max(known.map_or(0, |(_, version)| version)) + 1;
        Ok((held.last_version, held.slot))
    }

    /// Gives a reservation back. The last one takes the function's folder along, if nothing is in it.
    pub(super) fn release(&self, name: &str, folder: &Path) {
        let mut reserved = self.reserved.lock();
        let Some(held) = reserved.get_mut(name) else { return };
        held.users -= 1;
        if held.users == 0 {
            reserved.remove(name);
            let _ = fs::remove_dir(folder);
        }
    }
}

/// A folder in `staging/` that goes away with this value, unless it was moved.
struct Room(PathBuf);

impl Drop for Room {
    fn drop(&mut self) {
        let _ = remove_folder(&self.0);
    }
}

/// Makes the version's files durable: one flush of the file system instead of one for each file.
fn sync(folder: &Path) -> Result<(), StoreError> {
    let failed = || StoreError::os("flush", folder);
    let open = File::open(folder).map_err(failed())?;
    nix::unistd::syncfs(&open).map_err(|errno| failed()(errno.into()))
}
