//! Unpacking an uploaded tar without trusting it.
//!
//! Whoever may deploy may run code as the function's user, but not write outside its folder, read the host's
//! files through a link, or fill the disk. So: regular files, folders and symbolic links only; relative paths
//! without `..`; nothing twice; nothing beneath a link (every parent is a folder that was made here); sizes,
//! count, depth and name length bounded; of the modes only "executable" is kept. Links are resolved against
//! the archive's own entries, step by step as the kernel would, and must end at one of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use crate::config::UploadLimits;

/// Folders within folders at most.
const DEPTH_MAX: usize = 32;
/// Bytes of one path at most.
const PATH_MAX: usize = 1024;
/// Links that lead to links at most, as in the kernel.
const LINKS_MAX: u32 = 40;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is not a tar, or a torn one.
    #[error("not readable as a tar archive: {0}")]
    Unreadable(io::Error),
    /// It has nothing in it.
    #[error("there are no files in it")]
    Empty,
    /// A path that would lead elsewhere, or that is too long or too deep.
    #[error("{path:?} {why}")]
    Path {
        /// The path in the archive.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A link that leads out, or nowhere.
    #[error("the link {path:?} -> {target:?} {why}")]
    Link {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A device, a fifo, a hard link and the like.
    #[error("{path:?} is a {kind}; only files, folders and symbolic links are accepted")]
    Kind {
        /// The path in the archive.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// More than is accepted.
    #[error("its {what} are over the limit of {limit}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// Writing a file failed.
    #[error("write {path:?}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Files, folders and links.
    pub files: u32,
    /// Bytes of all files.
    pub bytes: u64,
}

/// What lies at a path of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { executable: bool },
    Link(PathBuf),
}

/// The archive's entries by their clean relative paths.
pub(super) type Tree = BTreeMap<PathBuf, Kind>;

/// Unpacks into `root`, an empty folder that nobody else can write to.
pub(super) fn unpack(
    archive: impl Read,
    root: &Path,
    limits: UploadLimits,
) -> Result<(Tree, Unpacked), UnpackError> {
    let mut into = Unpacking { root, limits, tree: Tree::new(), bytes: 0 };
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Unreadable)? {
        into.take(entry.map_err(UnpackError::Unreadable)?)?;
    }
    if !into.tree.values().any(|kind| matches!(kind, Kind::File { .. })) {
        return Err(UnpackError::Empty);
    }
    for (path, kind) in &into.tree {
        if let Kind::Link(target) = kind {
            let bad = |why| UnpackError::Link { path: path.clone(), target: target.clone(), why };
            resolve(&into.tree, path).map_err(bad)?;
        }
    }
    for (path, kind) in &into.tree {
        if let Kind::Link(target) = kind {
            let at = root.join(path);
            std::os::unix::fs::symlink(target, &at)
                .map_err(|source| UnpackError::Write { path: path.clone(), source })?;
        }
    }
    let files = into.tree.len() as u32;
    Ok((into.tree, Unpacked { files, bytes: into.bytes }))
}

/// Gives everything to the function: owner as it is, group `gid` (when there is one to give), modes 0750
/// for folders and executables, 0640 for the rest. `root` itself included.
pub(super) fn own(root: &Path, tree: &Tree, gid: Option<u32>) -> io::Result<()> {
    let give = |path: &Path, mode: u32| {
        if gid.is_some() {
            std::os::unix::fs::lchown(path, None, gid)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    give(root, 0o750)?;
    for (path, kind) in tree {
        match kind {
            Kind::Folder | Kind::File { executable: true } => give(&root.join(path), 0o750)?,
            Kind::File { executable: false } => give(&root.join(path), 0o640)?,
            Kind::Link(_) => {}
        }
    }
    Ok(())
}

struct Unpacking<'a> {
    root: &'a Path,
    limits: UploadLimits,
    tree: Tree,
    bytes: u64,
}

impl Unpacking<'_> {
    fn take<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let written = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let path = clean(&written)?;
        let refused = |kind| Err(UnpackError::Kind { path: written.clone(), kind });
        match kind {
            EntryType::Directory => self.folder(&path),
            // The archive's own root can only be a folder.
            _ if path.as_os_str().is_empty() => {
                Err(UnpackError::Path { path: written, why: "names nothing" })
            }
            EntryType::Regular => self.file(&path, &mut entry),
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = PathBuf::from(OsStr::from_bytes(&target));
                self.make_room(&path)?;
                self.tree.insert(path, Kind::Link(target));
                Ok(())
            }
            EntryType::Link => refused("hard link"),
            EntryType::Char | EntryType::Block => refused("device"),
            EntryType::Fifo => refused("fifo"),
            EntryType::GNUSparse => refused("sparse file"),
            _ => refused("special entry"),
        }
    }

    fn file<R: Read>(&mut self, path: &Path, entry: &mut tar::Entry<'_, R>) -> Result<(), UnpackError> {
        self.make_room(path)?;
        let limit = self.limits.size.as_bytes();
        let size = entry.size();
        let total = self.bytes.checked_add(size).filter(|total| *total <= limit);
        self.bytes = total.ok_or(UnpackError::Limit { what: "files' sizes", limit })?;
        let executable = entry.header().mode().map_err(UnpackError::Unreadable)? & 0o111 != 0;
        let failed = |source| UnpackError::Write { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        // create_new: O_EXCL, which follows no link.
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(self.root.join(path)).map_err(failed)?;
        if copy(entry, &mut file).map_err(failed)? != size {
            return Err(UnpackError::Unreadable(io::ErrorKind::UnexpectedEof.into()));
        }
        self.tree.insert(path.to_owned(), Kind::File { executable });
        Ok(())
    }

    /// Makes the folder and those above it, as far as they aren't there.
    fn folder(&mut self, path: &Path) -> Result<(), UnpackError> {
        let mut above = PathBuf::new();
        for part in path.components() {
            above.push(part);
            match self.tree.get(&above) {
                Some(Kind::Folder) => continue,
                Some(_) => {
                    return Err(UnpackError::Path {
                        path: path.to_owned(),
                        why: "lies beneath a file or a link",
                    });
                }
                None => self.counted()?,
            }
            let made = DirBuilder::new().mode(0o700).create(self.root.join(&above));
            made.map_err(|source| UnpackError::Write { path: above.clone(), source })?;
            self.tree.insert(above.clone(), Kind::Folder);
        }
        Ok(())
    }

    /// Makes sure that `path` can be made: its folder is there, and nothing is in its place.
    fn make_room(&mut self, path: &Path) -> Result<(), UnpackError> {
        self.folder(path.parent().unwrap_or(Path::new("")))?;
        if self.tree.contains_key(path) {
            return Err(UnpackError::Path { path: path.to_owned(), why: "is in the archive twice" });
        }
        self.counted()
    }

    fn counted(&self) -> Result<(), UnpackError> {
        let limit = self.limits.files;
        if self.tree.len() < limit as usize {
            return Ok(());
        }
        Err(UnpackError::Limit { what: "files and folders", limit: u64::from(limit) })
    }
}

fn copy(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    io::copy(from, to)
}

/// The path without `.` parts; an error if it would lead anywhere but down.
fn clean(written: &Path) -> Result<PathBuf, UnpackError> {
    let bad = |why| UnpackError::Path { path: written.to_owned(), why };
    if written.as_os_str().len() > PATH_MAX {
        return Err(bad("is longer than 1024 bytes"));
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for part in written.components() {
        match part {
            Component::Normal(name) if name.len() > 255 => {
                return Err(bad("has a name of more than 255 bytes"));
            }
            Component::Normal(name) if name.as_bytes().contains(&0) => return Err(bad("has a NUL byte")),
            Component::Normal(name) => {
                path.push(name);
                depth += 1;
            }
            Component::CurDir => {}
            Component::ParentDir => return Err(bad("has \"..\" in it")),
            Component::RootDir | Component::Prefix(_) => return Err(bad("is absolute")),
        }
    }
    if depth > DEPTH_MAX { Err(bad("is more than 32 folders deep")) } else { Ok(path) }
}

/// Follows `path` through the tree as the kernel would. Returns what it ends at.
fn resolve(tree: &Tree, path: &Path) -> Result<PathBuf, &'static str> {
    let mut todo: Vec<Component<'_>> = path.components().rev().collect();
    let mut at = PathBuf::new();
    let mut links = 0;
    // `components` drops what `file/` and `file/.` end with, which to the kernel is a step into the file.
    let mut wants_folder = ends_in_a_step(path);
    while let Some(part) = todo.pop() {
        match part {
            Component::RootDir | Component::Prefix(_) => return Err("is absolute"),
            Component::CurDir => continue,
            Component::ParentDir if !at.pop() => return Err("leads out of the folder"),
            Component::ParentDir => continue,
            Component::Normal(name) => at.push(name),
        }
        match tree.get(&at) {
            None => return Err("leads to nothing in the archive"),
            Some(Kind::Link(target)) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err("goes round in circles");
                }
                if target.as_os_str().is_empty() || target.as_os_str().as_bytes().contains(&0) {
                    return Err("has no usable target");
                }
                at.pop();
                wants_folder |= todo.is_empty() && ends_in_a_step(target);
                todo.extend(target.components().rev());
            }
            Some(Kind::File { .. }) if wants_folder || !todo.is_empty() => return Err("goes through a file"),
            Some(_) => {}
        }
    }
    Ok(at)
}

fn ends_in_a_step(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    text.ends_with(b"/") || text.ends_with(b"/.")
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
