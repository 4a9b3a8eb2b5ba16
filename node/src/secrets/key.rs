//! The key that secrets are encrypted by: 32 random bytes in a file that only spryd's user can read, made with the first
//! secret. A backup of the state folder is worth nothing without it, so keep it apart from such backups.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

/// Bytes of a key.
pub const LENGTH: usize = 32;

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("there is no key {}", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{operation} the key of the secrets {}: {source}", path.display())]
    Os {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Others could read it, or put another in its place.
    #[error(
        "the key of the secrets {} is open to others (mode {mode:o}, owner {owner}): it must be a file of spryd's own \
         user with mode 600. Whoever read it can open a copy of the database: consider its secrets known", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// It is no key.
    #[error("the key of the secrets {} must have {LENGTH} bytes; bring the right one back", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
    },
}

impl KeyError {
    pub(super) fn random(path: &Path, source: std::io::Error) -> Self {
        Self::Os { operation: "draw random bits for", path: path.to_owned(), source }
    }
}

/// See the module.
pub struct Key(Zeroizing<[u8; LENGTH]>);

impl Key {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// Reads the key, or makes one if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Absent { .. }) => Self::create(path),
            loaded => loaded,
        }
    }

    /// Reads the key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => KeyError::Absent { path: path.to_owned() },
            _ => KeyError::Os { operation: "read", path: path.to_owned(), source },
        };
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
        if mode & 0o077 != 0 || owner != nix::unistd::geteuid().as_raw() {
            return Err(KeyError::Exposed { path: path.to_owned(), mode, owner });
        }
        let broken = || KeyError::Broken { path: path.to_owned() };
        if !metadata.is_file() || metadata.len() != LENGTH as u64 {
            return Err(broken());
        }
        let mut bytes = Zeroizing::new([0; LENGTH]);
        (&file).read_exact(&mut *bytes).map_err(failed)?;
        if bytes.iter().all(|byte| *byte == 0) { Err(broken()) } else { Ok(Self(bytes)) }
    }

    fn create(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Os { operation: "make", path: path.to_owned(), source };
        let bytes = random::<LENGTH>().map_err(|source| KeyError::random(path, source))?;
        // Beside its place first, and linked, not moved: a crash leaves no half key, and of two that are made at once
        // one is used by both.
        let beside = beside(path);
        let _ = fs::remove_file(&beside);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
        file.write_all(&*bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        let linked = fs::hard_link(&beside, path);
        let _ = fs::remove_file(&beside);
        match linked {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Self::load(path)
    }
}

/// Where a key is made. Every maker has a place of its own, in this process as well: nobody links what another one has begun.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_extension(format!("new-{}-{number}", std::process::id()))
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Random bytes of the kernel's.
pub(super) fn random<const N: usize>() -> std::io::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut *bytes))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_keys_that_are_made_at_once_one_is_used_by_both() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        assert_ne!(beside(&path), beside(&path), "each is made in a place of its own");
        // (Both found none: each makes one.)
        let makers: Vec<_> = std::thread::scope(|scope| {
            let makers = [(); 8].map(|()| scope.spawn(|| Key::create(&path).expect("made or found")));
            makers.into_iter().map(|maker| maker.join().expect("no panic")).collect()
        });
        assert!(makers.iter().all(|key| key.bytes() == makers[0].bytes()));
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1, "the key alone");
    }
}
