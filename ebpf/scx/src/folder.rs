//! Whether a folder of bpffs can be trusted: who may write to its maps says who goes first.
//!
//! A BPF file system that was mounted by hand is open to everybody (mode 1777), so a folder in it may be anybody's.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::sys;

const STICKY: u32 = 0o1000;

/// What is wrong with it, if anything is: nobody but root, or whose program this is, may have put anything there.
pub(crate) fn check(folder: &Path) -> io::Result<Option<String>> {
    let own = nix::unistd::geteuid().as_raw();
    let metadata = fs::symlink_metadata(folder)?;
    let problem = |path: &Path, what: &str| Ok(Some(format!("{} {what}", path.display())));
    if !metadata.is_dir() {
        return problem(folder, "is not a folder");
    }
    if !is_ours(&metadata, own) {
        return problem(folder, &format!("belongs to user {}, not to root", metadata.uid()));
    }
    if metadata.mode() & 0o077 != 0 {
        return problem(folder, "is open to others than its owner");
    }
    for above in folder.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        let metadata = fs::metadata(above)?;
        // In a sticky folder nobody can put another in the place of ours.
        let is_open = metadata.mode() & 0o022 != 0 && metadata.mode() & STICKY == 0;
        if !is_ours(&metadata, own) || is_open {
            return problem(above, "can be written by others than root");
        }
    }
    if !sys::is_bpffs(folder)? {
        return problem(folder, "is not in a BPF file system");
    }
    Ok(None)
}

fn is_ours(metadata: &Metadata, own: u32) -> bool {
    metadata.uid() == 0 || metadata.uid() == own
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn problem(folder: &Path) -> String {
        check(folder).expect("it can be looked at").expect("it isn't good")
    }

    #[test]
    fn what_others_could_have_filled_is_not_trusted() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("maps");
        fs::create_dir(&inner).expect("made");
        let set =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
        set(&inner, 0o755);
        assert!(problem(&inner).ends_with("is open to others than its owner"));
        set(&inner, 0o700);
        set(folder.path(), 0o777);
        assert!(problem(&inner).ends_with("can be written by others than root"));
        set(folder.path(), 0o1777);
        assert!(problem(&inner).ends_with("is not in a BPF file system"));
        let link = folder.path().join("link");
        symlink(&inner, &link).expect("linked");
        assert!(problem(&link).ends_with("is not a folder"));
        if nix::unistd::geteuid().is_root() {
            chown(&inner, Some(12_345), None).expect("root gives it away");
            assert!(problem(&inner).ends_with("belongs to user 12345, not to root"));
        } else {
            println!("SKIP: only root gives folders away");
        }
        assert!(check(&folder.path().join("nothing")).is_err());
    }
}
