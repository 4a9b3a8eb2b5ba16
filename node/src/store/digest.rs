//! What a version's files come to: one SHA-256 over every path, kind and content, in the order of the paths.
//!
//! It is taken when a version is staged and again whenever its code is about to be loaded, so that what a crash tore, a disk
//! lost or somebody changed isn't served. Owners and times aren't in it; of the modes, "executable" is. Costs one read of the
//! files, from the page cache most often.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NOFOLLOW;
use sha2::{Digest, Sha256};

/// Folders within folders at most: more than can be unpacked.
const DEPTH_MAX: usize = 64;

/// In hexadecimal.
pub(super) fn of_tree(root: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    folder(&mut digest, root, DEPTH_MAX)?;
    Ok(super::hex(&digest.finalize()))
}

/// What is in a folder, and that it ends there. Every piece is preceded by its kind and length, so that no two trees read
/// the same.
fn folder(digest: &mut Sha256, path: &Path, depth: usize) -> io::Result<()> {
    let mut names =
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    for name in names {
        let at = path.join(&name);
        let metadata = fs::symlink_metadata(&at)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            piece(digest, b'd', name.as_bytes());
            match depth.checked_sub(1) {
                Some(depth) => folder(digest, &at, depth)?,
                None => return Err(io::Error::other("too many folders within folders")),
            }
        } else if kind.is_file() {
            let executable = metadata.mode() & 0o100 != 0;
            piece(digest, if executable { b'x' } else { b'f' }, name.as_bytes());
            contents(digest, &at)?;
        } else if kind.is_symlink() {
            piece(digest, b'l', name.as_bytes());
            piece(digest, b'>', fs::read_link(&at)?.as_os_str().as_bytes());
        } else {
            // A device or a pipe that somebody put here: not opened.
            piece(digest, b'?', name.as_bytes());
        }
    }
    digest.update(b".");
    Ok(())
}

fn piece(digest: &mut Sha256, kind: u8, bytes: &[u8]) {
    digest.update([kind]);
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}

/// The length comes last: a file that grows while it is read has the one that was read.
fn contents(digest: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file: File = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut length = 0_u64;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                digest.update(&buffer[..read]);
                length += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    digest.update(length.to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    type Change<'a> = &'a dyn Fn(&Path);

    /// A file, a folder with a file, and a link; then one change.
    fn digest_with(change: impl FnOnce(&Path)) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::create_dir(root.join("lib")).expect("made");
        fs::write(root.join("a.py"), "one").expect("written");
        fs::write(root.join("lib/b.py"), "two").expect("written");
        symlink("a.py", root.join("link")).expect("linked");
        change(root);
        of_tree(root).expect("read")
    }

    #[test]
    fn every_change_shows_and_nothing_else_does() {
        let before = digest_with(|_| {});
        assert_eq!(before, digest_with(|_| {}), "the same files, elsewhere and later");
        let executable = fs::Permissions::from_mode(0o755);
        let changes: [(&str, Change<'_>); 9] = [
            ("a byte", &|root| fs::write(root.join("a.py"), "onf").expect("written")),
            ("cut short", &|root| fs::write(root.join("a.py"), "").expect("written")),
            ("zeros of the same length", &|root| fs::write(root.join("lib/b.py"), [0; 3]).expect("written")),
            ("one more", &|root| fs::write(root.join("lib/c.py"), "").expect("written")),
            ("one less", &|root| fs::remove_file(root.join("lib/b.py")).expect("removed")),
            ("renamed", &|root| fs::rename(root.join("a.py"), root.join("b.py")).expect("renamed")),
            ("moved", &|root| fs::rename(root.join("lib/b.py"), root.join("b.py")).expect("moved")),
            ("executable", &|root| {
                fs::set_permissions(root.join("a.py"), executable.clone()).expect("changed");
            }),
            ("another target", &|root| {
                fs::remove_file(root.join("link")).expect("removed");
                symlink("lib", root.join("link")).expect("linked");
            }),
        ];
        for (what, change) in changes {
            assert_ne!(before, digest_with(change), "{what}");
        }
        let touched = digest_with(|root| {
            let file = File::options().write(true).open(root.join("a.py")).expect("open");
            file.set_modified(std::time::UNIX_EPOCH).expect("its time is set");
        });
        assert_eq!(before, touched, "times don't count");
    }

    #[test]
    fn what_would_block_is_not_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        of_tree(folder.path()).expect("read to its end");
    }
}
