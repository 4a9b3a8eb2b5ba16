//! The guest's first file system: busybox (or a whole system), an `/init`, and the files given, with the libraries they need.
//!
//! An archive in cpio's "newc" format, which is what the kernel unpacks: a header of hexadecimal numbers, the name, the
//! content, each padded to four bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::parts::Base;
use crate::failure::Failure;
use crate::process;

/// The first process of the guest.
const INIT: &str = include_str!("init.sh");
/// What runs the command where systemd is the first process, and its unit.
const RUN: &str = include_str!("run.sh");
const UNIT: &str = include_str!("guest.service");

/// Writes the archive: `files` (folders with all that is in them) keep their paths, `command` becomes `/spry/command`.
pub(super) fn write(archive: &Path, base: &Base, files: &[PathBuf], command: &str) -> Result<(), Failure> {
    let out = File::create(archive).map_err(|source| Failure::io("create", archive, source))?;
    let mut cpio = Cpio { out: BufWriter::new(out), folders: BTreeSet::new(), inode: 0 };
    let full = |source| Failure::io("write", archive, source);
    if let Base::System(root) = base {
        cpio.tree(root, Path::new(""))?;
    }
    for folder in
        ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "new"]
    {
        cpio.folder(Path::new(folder)).map_err(full)?;
    }
    cpio.file(Path::new("init"), 0o755, INIT.as_bytes()).map_err(full)?;
    for (name, mode, content) in
        [("command", 0o755, command), ("run", 0o755, RUN), ("guest.service", 0o644, UNIT)]
    {
        cpio.file(&Path::new("spry").join(name), mode, content.as_bytes()).map_err(full)?;
    }
    cpio.file(Path::new("etc/passwd"), 0o644, b"root:x:0:0:root:/root:/bin/sh\n").map_err(full)?;
    let mut all: BTreeSet<(PathBuf, PathBuf)> = BTreeSet::new();
    if let Base::Busybox(busybox) = base {
        all.insert((PathBuf::from("bin/busybox"), busybox.to_owned()));
    }
    for file in files {
        if file.is_dir() {
            cpio.tree(file, relative(file))?;
            continue;
        }
        // (A whole system has those of its own.)
        let needed = if matches!(base, Base::Busybox(_)) { libraries(file)? } else { Vec::new() };
        for library in needed {
            all.insert((library.clone(), library));
        }
        all.insert((file.clone(), file.clone()));
    }
    for (name, source) in all {
        let content = fs::read(&source).map_err(|error| Failure::io("read", &source, error))?;
        let mode = fs::metadata(&source).map_or(0o755, |metadata| metadata.permissions().mode());
        cpio.file(relative(&name), mode & 0o7777, &content).map_err(full)?;
    }
    cpio.end().map_err(full)
}

/// As archives have it.
fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// The shared libraries of a program, its loader among them; none for whatever isn't one.
fn libraries(file: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut ldd = Command::new("ldd");
    ldd.arg(file).stderr(Stdio::null());
    let found = ldd.output().map_err(|source| process::cannot_start(&ldd, source))?;
    let text = String::from_utf8_lossy(&found.stdout);
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        let found = format!("{} needs {}", file.display(), missing.trim());
        return Err(Failure::Expectation { what: "vm: find a program's libraries", found });
    }
    Ok(text.lines().filter_map(library).collect())
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or the path alone.
fn library(line: &str) -> Option<PathBuf> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let path = match words[..] {
        [_, "=>", path, ..] => path,
        [path, ..] => path,
        [] => return None,
    };
    path.starts_with('/').then(|| PathBuf::from(path.trim_end_matches(':')))
}

struct Cpio<W: Write> {
    out: W,
    folders: BTreeSet<PathBuf>,
    inode: u32,
}

impl<W: Write> Cpio<W> {
    /// A folder of the host with all that is in it, under this name.
    fn tree(&mut self, source: &Path, name: &Path) -> Result<(), Failure> {
        let unread = |error| Failure::io("read", source, error);
        let full = |error| Failure::io("archive", source, error);
        self.folder(name).map_err(full)?;
        let mut entries: Vec<_> =
            fs::read_dir(source).map_err(unread)?.collect::<Result<_, _>>().map_err(unread)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            let about = entry.metadata().map_err(unread)?;
            if about.is_dir() {
                self.tree(&path, &name)?;
            } else if about.is_symlink() {
                let target = fs::read_link(&path).map_err(unread)?;
                // Whatever is put below it goes where it leads.
                self.folders.insert(name.clone());
                self.entry(&name, 0o120_777, target.as_os_str().as_encoded_bytes()).map_err(full)?;
            } else if about.is_file() {
                let content = fs::read(&path).map_err(unread)?;
                self.file(&name, about.permissions().mode() & 0o7777, &content).map_err(full)?;
            }
        }
        Ok(())
    }

    fn folder(&mut self, name: &Path) -> io::Result<()> {
        let ancestors: Vec<&Path> = name.ancestors().collect();
        for folder in ancestors.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, 0o040_755, &[])?;
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        if let Some(folder) = name.parent() {
            self.folder(folder)?;
        }
        self.entry(name, 0o100_000 | mode, content)
    }

    fn entry(&mut self, name: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let name = name.to_string_lossy();
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| io::Error::other("a path too long"))?;
        // magic, inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        write!(self.out, "{name}\0")?;
        self.pad(6 + 13 * 8 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..(4 - length % 4) % 4])
    }

    fn end(mut self) -> io::Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, &[])?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_one_that_cpio_reads() {
        let mut bytes = Vec::new();
        let mut cpio = Cpio { out: &mut bytes, folders: BTreeSet::new(), inode: 0 };
        cpio.file(Path::new("a/b/hello"), 0o755, b"hi").expect("memory");
        cpio.end().expect("memory");
        let text = String::from_utf8_lossy(&bytes);
        for name in ["a\0", "a/b\0", "a/b/hello\0", "TRAILER!!!\0"] {
            assert!(text.contains(name), "{name:?} in {text:?}");
        }
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text.matches("070701").count(), 4);
    }

    #[test]
    fn a_tree_keeps_its_links_and_nothing_replaces_them() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("usr")).expect("create");
        std::os::unix::fs::symlink("usr", folder.path().join("bin")).expect("link");
        fs::write(folder.path().join("usr/x"), "hi").expect("write");
        let mut bytes = Vec::new();
        let mut cpio = Cpio { out: &mut bytes, folders: BTreeSet::new(), inode: 0 };
        cpio.tree(folder.path(), Path::new("")).expect("memory");
        cpio.file(Path::new("bin/y"), 0o755, b"ho").expect("memory");
        let text = String::from_utf8_lossy(&bytes);
        let modes: Vec<&str> = text.split("070701").skip(1).map(|entry| &entry[8..16]).collect();
        // bin, the link; usr; usr/x; bin/y, and no folder `bin`
        assert_eq!(modes, ["0000a1ff", "000041ed", "000081a4", "000081ed"]);
    }

    #[test]
    fn what_ldd_prints_is_read() {
        let path = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(path("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)").as_deref(), Some("/lib/libc.so.6"));
        assert_eq!(path("\t/lib64/ld-linux.so.2 (0x00007f)").as_deref(), Some("/lib64/ld-linux.so.2"));
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(path("\tstatically linked"), None);
    }
}
