//! Sets of packages on the disk: where pip works, how what it made is taken over, and what is thrown away.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::{Identity, PackagesError};
use crate::manifest::Requirement;
use crate::units::Size;

/// Files and folders of one set at most.
const ENTRIES_MAX: u64 = 200_000;
/// Folders within folders.
const DEPTH_MAX: usize = 64;
/// Files that are shorter aren't looked for in other sets.
const SHARED_LEN_MIN: u64 = 64 << 10;

/// Names a set: the hash of what was asked for, of whom it is for, and of how it was made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The key of these requirements (sorted, each once).
    pub fn of(wanted: &[Requirement], identity: &Identity, build: bool) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("spry packages 1\n{}\nbuild {build}\n", identity.kind));
        for requirement in wanted {
            hash.update(format!("{requirement}\n"));
        }
        Self(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The folder with all sets.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    folder: PathBuf,
}

/// Where pip works. Goes away with this value.
#[derive(Debug)]
pub(super) struct Work(PathBuf);

impl Work {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
    pub(super) fn site(&self) -> PathBuf {
        self.0.join("site")
    }
    pub(super) fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }
    pub(super) fn requirements(&self) -> PathBuf {
        self.0.join("requirements.txt")
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What can't be removed now goes at the next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Shelf {
    pub(super) fn open(folder: &Path) -> Result<Self, PackagesError> {
        let shelf = Self { folder: folder.to_owned() };
        make_folder(folder, 0o711)?;
        let unfinished: Vec<PathBuf> = shelf.entries()?.into_iter().filter(|path| is_hidden(path)).collect();
        if !unfinished.is_empty() {
            tracing::info!("removing {} unfinished sets of packages", unfinished.len());
            remove(&unfinished);
        }
        Ok(shelf)
    }

    pub(super) fn find(&self, key: &Key) -> Option<PathBuf> {
        let site = self.folder.join(&key.0).join("site");
        site.is_dir().then_some(site)
    }

    /// A folder for pip.
    pub(super) fn work(&self, requirements: &str, owner: Option<(u32, u32)>) -> Result<Work, PackagesError> {
        let work = Work(self.hidden("work"));
        make_folder(work.path(), 0o700)?;
        make_folder(&work.site(), 0o700)?;
        make_folder(&work.tmp(), 0o700)?;
        let file = work.requirements();
        fs::write(&file, requirements).map_err(PackagesError::os("write", &file))?;
        if let Some((uid, gid)) = owner {
            for path in [work.path(), &work.site(), &work.tmp(), &file] {
                let given = std::os::unix::fs::chown(path, Some(uid), Some(gid));
                given.map_err(PackagesError::os("set the owner of", path))?;
            }
        }
        Ok(work)
    }

    /// Takes over what pip has made, as the set of that key.
    pub(super) fn keep(&self, work: &Work, key: &Key, limit: Size) -> Result<PathBuf, PackagesError> {
        let new = Work(self.hidden("new"));
        make_folder(new.path(), 0o755)?;
        let sets = self.entries()?.into_iter().filter(|path| !is_hidden(path));
        let sites = sets.map(|set| set.join("site")).collect();
        let mut copy = Copy { bytes: limit.as_bytes(), entries: ENTRIES_MAX, limit, sites };
        let source = open_folder(&work.site()).map_err(PackagesError::os("read", &work.site()))?;
        copy.folder(&source, Path::new(""), &new.site(), 0)?;
        let failed = |operation| PackagesError::os(operation, new.path());
        let opened = File::open(new.path()).map_err(failed("open"))?;
        nix::unistd::syncfs(&opened).map_err(|errno| failed("flush")(errno.into()))?;
        let place = self.folder.join(&key.0);
        fs::rename(new.path(), &place).map_err(failed("move to its place"))?;
        Ok(place.join("site"))
    }

    /// Puts every set that is neither one of these nor among the `given` folders out of reach; what is returned is to be removed.
    pub(super) fn take_away(
        &self,
        kept: &BTreeSet<Key>,
        given: &BTreeSet<PathBuf>,
    ) -> Result<Vec<PathBuf>, PackagesError> {
        let mut taken = Vec::new();
        for path in self.entries()?.into_iter().filter(|path| !is_hidden(path)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !kept.contains(&Key(name)) && !given.contains(&path.join("site")) {
                let away = self.hidden("old");
                fs::rename(&path, &away).map_err(PackagesError::os("move away", &path))?;
                taken.push(away);
            }
        }
        Ok(taken)
    }

    fn hidden(&self, what: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.folder.join(format!(".{what}-{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    fn entries(&self) -> Result<Vec<PathBuf>, PackagesError> {
        let failed = || PackagesError::os("list", &self.folder);
        let listing = fs::read_dir(&self.folder).map_err(failed())?;
        listing.map(|entry| entry.map(|entry| entry.path()).map_err(failed())).collect()
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

pub(super) fn remove(paths: &[PathBuf]) {
    for path in paths {
        if let Err(error) = fs::remove_dir_all(path) {
            tracing::warn!(%error, "{} is left", path.display());
        }
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), PackagesError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(PackagesError::os("make the folder", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(PackagesError::os("set the mode of", path))
}

/// A folder itself, never what a link leads to.
fn open_folder(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// What an open folder's entries are reached by: its name may mean another one by now.
fn by_descriptor(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// Copies files and folders, and nothing else, whatever is done to the source meanwhile.
///
/// What another set has at the same place, byte for byte, is linked: a library that lies in several sets is once on the disk,
/// and once in memory for all who map it. Nobody can write to either.
struct Copy {
    bytes: u64,
    entries: u64,
    limit: Size,
    /// Of the other sets.
    sites: Vec<PathBuf>,
}

impl Copy {
    /// `shown` is the folder's place within the set.
    fn folder(&mut self, from: &File, shown: &Path, to: &Path, depth: usize) -> Result<(), PackagesError> {
        let refused = |path: &Path, what| Err(PackagesError::Content { path: path.to_owned(), what });
        if depth > DEPTH_MAX {
            return refused(shown, "more than 64 folders in one another");
        }
        make_folder(to, 0o755)?;
        let place = by_descriptor(from);
        for entry in fs::read_dir(&place).map_err(PackagesError::os("list", shown))? {
            let name = entry.map_err(PackagesError::os("list", shown))?.file_name();
            let (path, target, source) = (shown.join(&name), to.join(&name), place.join(&name));
            self.entries = match self.entries.checked_sub(1) {
                Some(left) => left,
                None => return refused(&path, "more files than a set may have, the last of them"),
            };
            // (O_NONBLOCK: a fifo would wait for its other end.)
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let opened = OpenOptions::new().read(true).custom_flags(flags).open(&source);
            let opened = match opened {
                Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return refused(&path, "a link"),
                opened => opened.map_err(PackagesError::os("open", &path))?,
            };
            let metadata = opened.metadata().map_err(PackagesError::os("look at", &path))?;
            if metadata.is_dir() {
                self.folder(&opened, &path, &target, depth + 1)?;
            } else if metadata.is_file() {
                self.file(opened, &metadata, &path, &target)?;
            } else {
                return refused(&path, "a special file");
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        from: File,
        metadata: &fs::Metadata,
        shown: &Path,
        to: &Path,
    ) -> Result<(), PackagesError> {
        let failed = |operation| PackagesError::os(operation, shown);
        let mode = if metadata.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 };
        if let Some(len) = self.link(&from, metadata.len(), mode, shown, to) {
            self.bytes = self.bytes.checked_sub(len).ok_or(PackagesError::Size { limit: self.limit })?;
            return Ok(());
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(to);
        let mut file = made.map_err(failed("make"))?;
        (&from).rewind().map_err(failed("read"))?;
        let copied = std::io::copy(&mut from.take(self.bytes.saturating_add(1)), &mut file);
        let copied = copied.map_err(failed("copy"))?;
        self.bytes = self.bytes.checked_sub(copied).ok_or(PackagesError::Size { limit: self.limit })?;
        file.set_permissions(Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
        // Compiled code is valid for a source of this time.
        let modified = metadata.modified().map_err(failed("look at"))?;
        file.set_modified(modified).map_err(failed("set the time of"))
    }

    /// Links what another set has of this file, if that is the same. Returns its length.
    fn link(&self, from: &File, len: u64, mode: u32, shown: &Path, to: &Path) -> Option<u64> {
        // Compiled code knows the time of its source, so that each set has its own of both.
        let of_python = shown.extension().is_some_and(|extension| extension == "py" || extension == "pyc");
        if len < SHARED_LEN_MIN || of_python {
            return None;
        }
        self.sites.iter().find_map(|site| {
            let other = site.join(shown);
            let file = File::open(&other).ok()?;
            let metadata = file.metadata().ok()?;
            let alike = metadata.len() == len && metadata.permissions().mode() & 0o7777 == mode;
            (alike && same(from, &file).ok()? && fs::hard_link(&other, to).is_ok()).then_some(len)
        })
    }
}

/// Whether both files have the same bytes.
fn same(mut one: &File, other: &File) -> std::io::Result<bool> {
    one.rewind()?;
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (here, there) = (one.fill_buf()?, other.fill_buf()?);
        let len = here.len().min(there.len());
        if here[..len] != there[..len] {
            return Ok(false);
        }
        if len == 0 {
            return Ok(here.is_empty() && there.is_empty());
        }
        one.consume(len);
        other.consume(len);
    }
}

/// Bytes of the files below a folder; stops counting beyond `bound`. What vanishes meanwhile isn't counted.
pub(super) fn bytes_below(folder: &Path, bound: u64) -> u64 {
    let mut bytes = 0;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                open.push(entry.path());
            }
            bytes += metadata.len();
            if bytes > bound {
                return bytes;
            }
        }
    }
    bytes
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
