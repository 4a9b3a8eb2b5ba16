//! What pip has left in its folder, read by somebody who doesn't trust it: files and folders, and nothing else, whatever is
//! done to them meanwhile.
//!
//! Compiled code (`__pycache__`) isn't among it: it says of itself whose it is, and spryd has it made anew ([`super::compile`]).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::PackagesError;
use crate::units::Size;

/// Files and folders of one set at most.
const ENTRIES_MAX: u64 = 200_000;
/// Folders within folders.
const DEPTH_MAX: usize = 64;
/// Bytes of all their paths.
const PATHS_MAX: u64 = 64 << 20;
/// Files that are shorter aren't looked for elsewhere.
const SHARED_LEN_MIN: u64 = 64 << 10;
/// Where the interpreter keeps compiled code.
pub(super) const COMPILED: &str = "__pycache__";

/// What is in a file.
pub(super) type Contents = [u8; 32];

/// A file, at its place within the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) len: u64,
    pub(super) executable: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tree {
    root: File,
    /// Sorted by their paths.
    pub(super) files: Vec<Entry>,
    /// Bytes of all of them.
    pub(super) bytes: u64,
}

impl Tree {
    pub(super) fn read(folder: &Path, limit: Size) -> Result<Self, PackagesError> {
        let root = open_folder(folder).map_err(PackagesError::os("read", folder))?;
        let mut walk = Walk { files: Vec::new(), bytes: 0, entries: ENTRIES_MAX, paths: PATHS_MAX, limit };
        walk.folder(&root, Path::new(""), 0)?;
        let Walk { mut files, bytes, .. } = walk;
        files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(Self { root, files, bytes })
    }

    /// One of its files, by no link.
    pub(super) fn open(&self, path: &Path) -> Result<File, PackagesError> {
        open_below(&self.root, path).map_err(PackagesError::os("open", path))
    }

    /// Bytes of some of its files.
    pub(super) fn len_of(&self, files: &[usize]) -> u64 {
        files.iter().fold(0, |bytes, at| bytes.saturating_add(self.files[*at].len))
    }

    /// What is in a file.
    pub(super) fn contents(&self, entry: &Entry) -> Result<Contents, PackagesError> {
        let mut hash = Sha256::new();
        let mut file = self.open(&entry.path)?.take(entry.len.saturating_add(1));
        let read = through(&mut file, |bytes| {
            hash.update(bytes);
            Ok(())
        });
        match read.map_err(PackagesError::os("read", &entry.path))? == entry.len {
            true => Ok(hash.finalize().into()),
            false => Err(changed(&entry.path)),
        }
    }

    /// The text of a file that isn't long.
    pub(super) fn text(&self, path: &Path, len_max: u64) -> Option<String> {
        let mut text = String::new();
        let read = self.open(path).ok()?.take(len_max + 1).read_to_string(&mut text).ok()?;
        (read as u64 <= len_max).then_some(text)
    }

    /// Copies a file to a folder, at the same place; what is copied is what `expected` says, if it says.
    pub(super) fn copy(
        &self,
        entry: &Entry,
        folder: &Path,
        expected: Option<&Contents>,
    ) -> Result<(), PackagesError> {
        let failed = |operation| PackagesError::os(operation, &entry.path);
        let source = self.open(&entry.path)?;
        let mode = if entry.executable { 0o755 } else { 0o644 };
        let mut target = create(&folder.join(&entry.path), mode)?;
        let mut hash = Sha256::new();
        let copied = through(&mut (&source).take(entry.len.saturating_add(1)), |bytes| {
            if expected.is_some() {
                hash.update(bytes);
            }
            std::io::Write::write_all(&mut target, bytes)
        });
        let copied = copied.map_err(failed("copy"))?;
        if copied != entry.len || expected.is_some_and(|expected| *hash.finalize() != expected[..]) {
            return Err(changed(&entry.path));
        }
        // Compiled code is valid for a source of this time.
        let modified = source.metadata().and_then(|metadata| metadata.modified());
        target.set_modified(modified.map_err(failed("look at"))?).map_err(failed("set the time of"))
    }

    /// The same, where one of these folders has the same file at the same place, by a link to that: a library that lies in
    /// several sets is once on the disk, and once in memory for all who map it. Nobody can write to either.
    pub(super) fn link(&self, entry: &Entry, others: &[PathBuf], folder: &Path) -> Result<(), PackagesError> {
        let alike = |metadata: &fs::Metadata| {
            metadata.len() == entry.len && (metadata.permissions().mode() & 0o111 != 0) == entry.executable
        };
        // Compiled code knows the time of its source, so that each set has its own of both.
        let of_python = entry.path.extension().is_some_and(|extension| extension == "py");
        if entry.len >= SHARED_LEN_MIN && !of_python {
            let source = self.open(&entry.path)?;
            let target = folder.join(&entry.path);
            for other in others.iter().map(|other| other.join(&entry.path)) {
                let Ok(file) = File::open(&other) else { continue };
                if file.metadata().is_ok_and(|metadata| alike(&metadata))
                    && same(&source, &file).unwrap_or(false)
                {
                    make_parents(&target)?;
                    if fs::hard_link(&other, &target).is_ok() {
                        return Ok(());
                    }
                }
            }
        }
        self.copy(entry, folder, None)
    }
}

/// A file in a folder that isn't trusted.
#[derive(Debug)]
pub(super) struct Single {
    file: File,
    len: u64,
}

impl Single {
    pub(super) fn open(folder: &Path, path: &Path) -> std::io::Result<Self> {
        let file = open_below(&open_folder(folder)?, path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// As much as it was when it was opened.
    pub(super) fn copy(&self, to: &mut File) -> std::io::Result<()> {
        through(&mut (&self.file).take(self.len), |bytes| std::io::Write::write_all(to, bytes)).map(drop)
    }
}

fn changed(path: &Path) -> PackagesError {
    PackagesError::Content { path: path.to_owned(), what: "a file that changes while it is read" }
}

/// Hands what a reader has to somebody, part by part; returns how much it was.
fn through(from: &mut impl Read, mut to: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut all = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(all),
            Ok(len) => {
                to(&buffer[..len])?;
                all += len as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

struct Walk {
    files: Vec<Entry>,
    bytes: u64,
    entries: u64,
    paths: u64,
    limit: Size,
}

impl Walk {
    /// `shown` is the folder's place within the tree.
    fn folder(&mut self, from: &File, shown: &Path, depth: usize) -> Result<(), PackagesError> {
        let refused = |path: &Path, what| Err(PackagesError::Content { path: path.to_owned(), what });
        if depth > DEPTH_MAX {
            return refused(shown, "more than 64 folders in one another");
        }
        let place = by_descriptor(from);
        for entry in fs::read_dir(&place).map_err(PackagesError::os("list", shown))? {
            let name = entry.map_err(PackagesError::os("list", shown))?.file_name();
            let path = shown.join(&name);
            self.entries = match self.entries.checked_sub(1) {
                Some(left) => left,
                None => return refused(&path, "more files than a set may have, the last of them"),
            };
            self.paths = match self.paths.checked_sub(path.as_os_str().len() as u64) {
                Some(left) => left,
                None => return refused(shown, "paths that are too long, all together"),
            };
            let opened = match open_one(&place.join(&name)) {
                Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return refused(&path, "a link"),
                opened => opened.map_err(PackagesError::os("open", &path))?,
            };
            let metadata = opened.metadata().map_err(PackagesError::os("look at", &path))?;
            if metadata.is_dir() {
                if name != COMPILED {
                    self.folder(&opened, &path, depth + 1)?;
                }
            } else if name == COMPILED {
                return refused(&path, "no folder, and is called as those of compiled code are");
            } else if metadata.is_file() {
                let len = metadata.len();
                self.bytes = self.bytes.saturating_add(len);
                if self.bytes > self.limit.as_bytes() {
                    return Err(PackagesError::Size { limit: self.limit });
                }
                let executable = metadata.permissions().mode() & 0o111 != 0;
                self.files.push(Entry { path, len, executable });
            } else {
                return refused(&path, "a special file");
            }
        }
        Ok(())
    }
}

/// A folder itself, never what a link leads to.
fn open_folder(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Whatever it is but a link. (O_NONBLOCK: a fifo would wait for its other end.)
fn open_one(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// A file below a folder, by no link.
fn open_below(root: &File, path: &Path) -> std::io::Result<File> {
    let mut folder = None::<File>;
    for part in path.parent().into_iter().flat_map(Path::components) {
        let within = by_descriptor(folder.as_ref().unwrap_or(root)).join(part);
        folder = Some(open_folder(&within)?);
    }
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?;
    let file = open_one(&by_descriptor(folder.as_ref().unwrap_or(root)).join(name))?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

/// What an open folder's entries are reached by: its name may mean another one by now.
fn by_descriptor(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

pub(super) fn make_folder(path: &Path, mode: u32) -> Result<(), PackagesError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(PackagesError::os("make the folder", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(PackagesError::os("set the mode of", path))
}

/// The folders that a file lies in, with the mode that everybody can read.
fn make_parents(path: &Path) -> Result<(), PackagesError> {
    let missing = path.ancestors().skip(1).take_while(|folder| !folder.exists());
    let missing: Vec<&Path> = missing.collect();
    missing.into_iter().rev().try_for_each(|folder| make_folder(folder, 0o755))
}

/// A new file in spryd's own tree, in a folder that may have to be made.
pub(super) fn create(path: &Path, mode: u32) -> Result<File, PackagesError> {
    make_parents(path)?;
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let file = made.map_err(PackagesError::os("make", path))?;
    file.set_permissions(Permissions::from_mode(mode)).map_err(PackagesError::os("set the mode of", path))?;
    Ok(file)
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

/// What a distribution's files and their contents are called.
pub(super) fn name_of(kind: &str, files: &BTreeMap<&Path, (bool, Contents)>) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("spry distribution 1\n{kind}\n"));
    for (path, (executable, contents)) in files {
        let path = path.as_os_str().as_encoded_bytes();
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update([u8::from(*executable)]);
        hash.update(contents);
    }
    short(&hash.finalize())
}

/// Half of a hash, as text.
pub(super) fn short(hash: &[u8]) -> String {
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
