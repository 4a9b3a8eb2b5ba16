//! Packages on the disk: where pip works, how what it made is taken over, and what is thrown away.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::split::{self, Found, Part};
use super::tree::{Contents, Entry, Tree, create, make_folder, name_of, short};
use super::{Identity, PackagesError, Site, elf};
use crate::config;
use crate::manifest::Requirement;

/// Bytes of a distribution's `RECORD` at most.
const RECORD_MAX: u64 = 16 << 20;
/// And of all of a set's.
const RECORDS_MAX: u64 = 32 << 20;
/// Places that the libraries of a set look into for others.
const SEARCHES_MAX: usize = 20_000;
/// Behind a set's key: the file that names its distributions.
const LIST: &str = ".list";
/// First line of such a file.
const LIST_HEAD: &str = "spry set 1";
/// Where all that a set has lies, if it lies in one folder; and the file that says why.
const WHOLE: &str = "site";
const WHY: &str = "why";
/// Why a set is whole that says nothing.
const BEFORE: &str = "it was installed by an earlier version of spry";

/// Names a set: the hash of what was asked for, of whom it is for, and of how it was made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The key of these requirements (sorted, each once).
    pub fn of(wanted: &[Requirement], identity: &Identity, config: &config::Packages) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("spry packages 1\n{}\nbuild {}\n", identity.kind, config.build));
        if !config.split {
            hash.update("in one folder\n");
        }
        for requirement in wanted {
            hash.update(format!("{requirement}\n"));
        }
        Self(short(&hash.finalize()))
    }
}

/// The folder with all packages.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    folder: PathBuf,
    /// Distributions that the set which is being installed is going to have.
    reserved: Arc<Mutex<BTreeSet<String>>>,
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

/// A folder of modules that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    /// Where it is.
    pub(super) folder: PathBuf,
    /// Where it will be.
    pub(super) place: PathBuf,
}

/// A set that was taken over from pip and isn't at its place yet.
#[derive(Debug)]
pub(super) struct Staged {
    key: Key,
    new: Work,
    /// What has to be compiled, and moved.
    pub(super) units: Vec<Unit>,
    /// Bytes that it may still take.
    pub(super) left: Cell<u64>,
    kind: Kind,
    reserved: Arc<Mutex<BTreeSet<String>>>,
}

#[derive(Debug)]
enum Kind {
    /// The names of the distributions' folders.
    List(Vec<String>),
    /// All in one folder, for this reason.
    Whole(String),
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.reserved.lock().clear();
    }
}

impl Shelf {
    pub(super) fn open(folder: &Path) -> Result<Self, PackagesError> {
        let shelf = Self { folder: folder.to_owned(), reserved: Arc::default() };
        make_folder(folder, 0o711)?;
        let unfinished: Vec<PathBuf> = shelf.entries()?.into_iter().filter(|path| is_hidden(path)).collect();
        if !unfinished.is_empty() {
            tracing::info!("removing {} unfinished sets of packages", unfinished.len());
            remove(&unfinished);
        }
        Ok(shelf)
    }

    /// The set of that key, if all of it is there.
    pub(super) fn find(&self, key: &Key) -> Option<Site> {
        if let Ok(Some(names)) = self.list(key) {
            let folders: Vec<PathBuf> = names.iter().map(|name| self.folder.join(name)).collect();
            if folders.iter().all(|folder| folder.is_dir()) {
                return Some(Site { folders, whole: None });
            }
        }
        let set = self.folder.join(&key.0);
        let site = set.join(WHOLE);
        let why = || fs::read_to_string(set.join(WHY)).unwrap_or_else(|_| BEFORE.to_owned());
        site.is_dir().then(|| Site { folders: vec![site], whole: Some(why()) })
    }

    /// The folders that a set's list names.
    fn list(&self, key: &Key) -> Result<Option<Vec<String>>, PackagesError> {
        let path = self.folder.join(format!("{}{LIST}", key.0));
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PackagesError::os("read", &path)(error)),
        };
        let names = text.strip_prefix(LIST_HEAD).and_then(|rest| rest.strip_prefix('\n'));
        let names: Option<Vec<String>> = names.map(|names| names.lines().map(str::to_owned).collect());
        Ok(names.filter(|names| names.iter().all(|name| !name.contains('/') && !name.starts_with('.'))))
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

    /// Copies what pip has made, as far as it isn't there yet.
    pub(super) fn stage(
        &self,
        work: &Work,
        key: &Key,
        interpreter: &str,
        config: &config::Packages,
    ) -> Result<Staged, PackagesError> {
        let limit = config.size;
        let tree = Tree::read(&work.site(), limit)?;
        let new = Work(self.hidden("new"));
        make_folder(new.path(), 0o755)?;
        let left = Cell::new(limit.as_bytes() - tree.bytes);
        let parts = if config.split { parts(&tree) } else { Err("`packages.split` is off".to_owned()) };
        let parts = parts.and_then(|parts| {
            // A file may be several distributions'.
            let bytes = parts.iter().map(|part| tree.len_of(&part.files) + part.record.len() as u64);
            let more = bytes.fold(0, u64::saturating_add).saturating_sub(tree.bytes);
            let still = left.get().checked_sub(more).ok_or("its distributions are too large together")?;
            left.set(still);
            Ok(parts)
        });
        let reserved = Arc::clone(&self.reserved);
        let (kind, units) = (Kind::List(Vec::new()), Vec::new());
        let mut staged = Staged { key: key.clone(), new, units, left, kind, reserved };
        match parts {
            Ok(parts) => {
                let mut names = Vec::new();
                for part in parts {
                    names.push(self.stage_part(&tree, &part, interpreter, &mut staged)?);
                }
                // By name, so that two sets have what they share in the same order.
                names.sort_unstable();
                staged.kind = Kind::List(names);
            }
            Err(why) => {
                let folder = staged.new.path().join("set").join(WHOLE);
                let others = self.folders()?;
                make_folder(&folder, 0o755)?;
                tree.files.iter().try_for_each(|entry| tree.link(entry, &others, &folder))?;
                staged.units.push(Unit { folder, place: self.folder.join(&key.0).join(WHOLE) });
                // (It names files as the packages call them.)
                staged.kind = Kind::Whole(crate::zygote::line(&why));
            }
        }
        Ok(staged)
    }

    /// Returns the name of its folder.
    fn stage_part(
        &self,
        tree: &Tree,
        part: &Part,
        interpreter: &str,
        staged: &mut Staged,
    ) -> Result<String, PackagesError> {
        let record = PathBuf::from(part.record_path());
        let mut files: BTreeMap<&Path, (bool, Contents)> =
            [(record.as_path(), (false, Sha256::digest(&part.record).into()))].into();
        let mut entries: Vec<(&Entry, Contents)> = Vec::new();
        for entry in part.files.iter().map(|at| &tree.files[*at]) {
            let contents = tree.contents(entry)?;
            files.insert(&entry.path, (entry.executable, contents));
            entries.push((entry, contents));
        }
        let name = format!("{}-{}", part.name, name_of(interpreter, &files));
        let place = self.folder.join(&name);
        // From here on no sweep takes it away.
        self.reserved.lock().insert(name.clone());
        if place.is_dir() {
            return Ok(name);
        }
        let folder = staged.new.path().join(&name);
        make_folder(&folder, 0o755)?;
        entries.iter().try_for_each(|(entry, contents)| tree.copy(entry, &folder, Some(contents)))?;
        let written = create(&folder.join(&record), 0o644)?.write_all(part.record.as_bytes());
        written.map_err(PackagesError::os("write", &record))?;
        staged.units.push(Unit { folder, place });
        Ok(name)
    }

    /// Puts it at its place, for good.
    pub(super) fn commit(&self, staged: &Staged) -> Result<Site, PackagesError> {
        let new = staged.new.path();
        let failed = |operation| PackagesError::os(operation, new);
        let put = |from: &Path, to: &Path| fs::rename(from, to).map_err(failed("move to its place"));
        let list = new.join("list");
        match &staged.kind {
            Kind::Whole(why) => fs::write(new.join("set").join(WHY), why).map_err(failed("write"))?,
            Kind::List(names) => {
                let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
                fs::write(&list, format!("{LIST_HEAD}\n{lines}")).map_err(failed("write"))?;
            }
        }
        let opened = File::open(new).map_err(failed("open"))?;
        let flush = || nix::unistd::syncfs(&opened).map_err(|errno| failed("flush")(errno.into()));
        flush()?;
        match &staged.kind {
            Kind::Whole(_) => {
                // (Of a set that could be split before, and has lost a part.)
                let _ = fs::remove_file(self.folder.join(format!("{}{LIST}", staged.key.0)));
                let place = self.folder.join(&staged.key.0);
                if place.exists() {
                    // (It has lost what it is of, or it would have been found.)
                    put(&place, &new.join("old"))?;
                }
                put(&new.join("set"), &place)?;
            }
            Kind::List(_) => {
                staged.units.iter().try_for_each(|unit| put(&unit.folder, &unit.place))?;
                // What a list names is there whenever the list is.
                flush()?;
                put(&list, &self.folder.join(format!("{}{LIST}", staged.key.0)))?;
            }
        }
        let missing =
            || PackagesError::Content { path: new.to_owned(), what: "lost a part of what was installed" };
        self.find(&staged.key).ok_or_else(missing)
    }

    /// All folders that modules lie in.
    fn folders(&self) -> Result<Vec<PathBuf>, PackagesError> {
        let shown = self.entries()?.into_iter().filter(|path| !is_hidden(path) && path.is_dir());
        let of = |path: PathBuf| {
            Some(path.join(WHOLE)).filter(|site| is_set(&path) && site.is_dir()).unwrap_or(path)
        };
        Ok(shown.map(of).collect())
    }

    /// Puts every set that is neither one of these nor among the `given` folders out of reach, and every distribution that then
    /// no set has nor is among these folders; what is returned is to be removed.
    pub(super) fn take_away(
        &self,
        kept: &BTreeSet<Key>,
        given: &BTreeSet<PathBuf>,
    ) -> Result<Vec<PathBuf>, PackagesError> {
        let reserved = self.reserved.lock();
        let mut of_lists: BTreeSet<String> = reserved.iter().cloned().collect();
        for key in kept {
            // One that can't be read now names what mustn't go.
            of_lists.extend(self.list(key)?.into_iter().flatten());
        }
        let mut taken = Vec::new();
        for path in self.entries()?.into_iter().filter(|path| !is_hidden(path)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_kept = match name.strip_suffix(LIST) {
                Some(key) => kept.contains(&Key(key.to_owned())),
                None if is_set(&path) => kept.contains(&Key(name)) || given.contains(&path.join(WHOLE)),
                None => of_lists.contains(&name) || given.contains(&path),
            };
            if !is_kept {
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

/// Which distribution has what of it; or why that can't be said.
fn parts(tree: &Tree) -> Result<Vec<Part>, String> {
    let mut files = Vec::with_capacity(tree.files.len());
    let mut searches = 0;
    for entry in &tree.files {
        let path = entry.path.to_str().ok_or_else(|| format!("{} is no text", entry.path.display()))?;
        let is_library = entry.path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"));
        let file = is_library.then(|| tree.open(&entry.path)).and_then(Result::ok);
        let found =
            Found { path: path.to_owned(), searches: file.as_ref().map(elf::searches).unwrap_or_default() };
        searches += found.searches.len();
        if found.searches.len() > elf::FOLDERS_MAX || searches > SEARCHES_MAX {
            return Err("its libraries look for others in too many places".to_owned());
        }
        files.push(found);
    }
    let mut records = BTreeMap::new();
    let mut left = RECORDS_MAX;
    for path in split::records(files.iter().map(|file| file.path.as_str())) {
        let text = tree.text(Path::new(path), RECORD_MAX.min(left));
        let text = text.ok_or_else(|| format!("{path} can't be read, or is too long"))?;
        left -= text.len() as u64;
        records.insert(path.to_owned(), text);
    }
    split::split(&files, &records)
}

/// Whether it is called as a set in one folder is: by a key alone.
fn is_set(path: &Path) -> bool {
    path.file_name().is_some_and(|name| !name.as_encoded_bytes().contains(&b'-'))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

pub(super) fn remove(paths: &[PathBuf]) {
    for path in paths {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        if let Err(error) = removed {
            tracing::warn!(%error, "{} is left", path.display());
        }
    }
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
