//! A folder or a file as a tar archive for the control API.
//!
//! The same content gives the same bytes, whoever packs it and when: entries are sorted, and owners, times and all of
//! the mode but "executable" are left out. So the SHA-256 that spry shows names the code and nothing else.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Left out wherever they are: they are made by tools and are no part of a function.
const LEFT_OUT: [&str; 3] = [".git", "__pycache__", ".DS_Store"];

/// Why a path can't be packed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    #[error("{operation} {}: {source}", path.display())]
    Os { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no file, folder or link", .0.display())]
    Kind(PathBuf),
    #[error("{} has no name that can be packed", .0.display())]
    Name(PathBuf),
}

fn os(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PackError {
    let path = path.to_owned();
    move |source| PackError::Os { operation, path, source }
}

/// An archive in a file without a name.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) archive: File,
    pub(super) bytes: u64,
    pub(super) files: u64,
}

/// Packs a folder's content, or one file.
pub(super) fn pack(path: &Path) -> Result<Packed, PackError> {
    let file = tempfile::tempfile().map_err(os("make a temporary file for", path))?;
    let mut packing = Packing { builder: Builder::new(BufWriter::new(file)), files: 0 };
    // A link that is named on the command line is followed; one within the folder is packed as a link.
    let metadata = fs::metadata(path).map_err(os("read", path))?;
    if metadata.is_dir() {
        packing.folder(path, Path::new(""))?;
    } else {
        let name = path.file_name().ok_or_else(|| PackError::Name(path.to_owned()))?;
        packing.file(path, Path::new(name), &metadata)?;
    }
    let writer = packing.builder.into_inner().map_err(os("pack", path))?;
    let mut archive = writer.into_inner().map_err(|error| os("pack", path)(error.into_error()))?;
    archive.flush().map_err(os("pack", path))?;
    let bytes = archive.stream_position().map_err(os("pack", path))?;
    archive.rewind().map_err(os("pack", path))?;
    Ok(Packed { archive, bytes, files: packing.files })
}

struct Packing {
    builder: Builder<BufWriter<File>>,
    files: u64,
}

impl Packing {
    fn folder(&mut self, from: &Path, to: &Path) -> Result<(), PackError> {
        let listing = fs::read_dir(from).map_err(os("list", from))?;
        let mut entries = listing.collect::<Result<Vec<_>, _>>().map_err(os("list", from))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            if LEFT_OUT.iter().any(|left_out| name == *left_out) {
                continue;
            }
            let (from, to) = (entry.path(), to.join(&name));
            let metadata = fs::symlink_metadata(&from).map_err(os("read", &from))?;
            if metadata.is_dir() {
                self.append(&header(EntryType::Directory, 0o755, 0), &to, io::empty(), &from)?;
                self.folder(&from, &to)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&from).map_err(os("read", &from))?;
                let mut header = header(EntryType::Symlink, 0o777, 0);
                self.files += 1;
                self.builder.append_link(&mut header, &to, target).map_err(os("pack", &from))?;
            } else {
                self.file(&from, &to, &metadata)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path, metadata: &fs::Metadata) -> Result<(), PackError> {
        if !metadata.is_file() {
            return Err(PackError::Kind(from.to_owned()));
        }
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let file = File::open(from).map_err(os("read", from))?;
        let header = header(EntryType::Regular, if executable { 0o755 } else { 0o644 }, metadata.len());
        self.files += 1;
        // A file that grows meanwhile is cut, one that shrinks is an error: never a torn archive.
        let mut exact = io::Read::take(file, metadata.len());
        self.append(&header, to, &mut exact, from)?;
        if exact.limit() > 0 {
            return Err(os("read", from)(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    fn append(
        &mut self,
        header: &Header,
        to: &Path,
        data: impl io::Read,
        from: &Path,
    ) -> Result<(), PackError> {
        if to.as_os_str().as_bytes().contains(&0) {
            return Err(PackError::Name(from.to_owned()));
        }
        self.builder.append_data(&mut header.clone(), to, data).map_err(os("pack", from))
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn bytes(path: &Path) -> Vec<u8> {
        let mut packed = pack(path).expect("packs");
        let mut bytes = Vec::new();
        packed.archive.read_to_end(&mut bytes).expect("reads");
        assert_eq!(bytes.len() as u64, packed.bytes);
        bytes
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let make = || {
            let folder = tempfile::tempdir().expect("a folder");
            for name in ["b.py", "a.txt", "sub/c.txt", "__pycache__/x.pyc", ".git/config"] {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().expect("has one")).expect("made");
                fs::write(&path, name).expect("written");
            }
            std::os::unix::fs::symlink("a.txt", folder.path().join("link")).expect("linked");
            folder
        };
        let (one, other) = (make(), make());
        let packed = bytes(one.path());
        assert_eq!(packed, bytes(other.path()));
        let mut archive = tar::Archive::new(packed.as_slice());
        let names: Vec<_> = archive
            .entries()
            .expect("readable")
            .map(|entry| entry.expect("whole").path().expect("named").display().to_string())
            .collect();
        assert_eq!(names, ["a.txt", "b.py", "link", "sub", "sub/c.txt"]);
    }

    #[test]
    fn a_file_alone_and_what_cannot_be_packed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("f.py");
        fs::write(&file, "x").expect("written");
        assert_eq!(pack(&file).expect("packs").files, 1);
        assert!(matches!(pack(&folder.path().join("absent")), Err(PackError::Os { .. })));
        nix::unistd::mkfifo(&folder.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        assert!(matches!(pack(folder.path()), Err(PackError::Kind(_))));
    }
}
