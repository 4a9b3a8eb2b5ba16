//! The first bearer token: made at the first start, kept in a file that only the daemon's user can read. Its bearer may do
//! everything; others are made with it, or on the control socket ([`crate::access`]).

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Why there is no usable token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file operation failed.
    #[error("{operation} the API token {}: {source}", path.display())]
    Os {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Others could read it.
    #[error("the API token {} can be read by others (mode {mode:o}): chmod 600 it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file is not a token.
    #[error("the API token {} must be one line of at least 32 letters; remove it, and a new one is made", path.display())]
    Weak {
        /// The file.
        path: PathBuf,
    },
}

/// The token that callers over HTTP must show. Only its hash is kept in memory.
pub struct ApiToken {
    digest: [u8; 32],
}

impl ApiToken {
    /// Reads the token, or makes one if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        match fs::symlink_metadata(path) {
            Ok(_) => Self::load(path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::create(path),
            Err(source) => Err(TokenError::Os { operation: "read", path: path.into(), source }),
        }
    }

    /// Whether this is the token. Hashes are compared, in constant time.
    pub fn is(&self, given: &[u8]) -> bool {
        digest(given).ct_eq(&self.digest).into()
    }

    fn load(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Os { operation: "read", path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(TokenError::Exposed { path: path.into(), mode });
        }
        let mut text = String::new();
        (&file).take(4096).read_to_string(&mut text).map_err(failed)?;
        let token = text.trim();
        if token.len() < 32 || token.contains(char::is_whitespace) {
            return Err(TokenError::Weak { path: path.into() });
        }
        Ok(Self { digest: digest(token.as_bytes()) })
    }

    fn create(path: &Path) -> Result<Self, TokenError> {
        let failed = |source| TokenError::Os { operation: "make", path: path.into(), source };
        let mut random = [0; 32];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).map_err(failed)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        // Beside its place first: a crash leaves no half token.
        let beside = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&beside).map_err(failed)?;
        writeln!(file, "{token}").and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)?;
        Ok(Self { digest: digest(token.as_bytes()) })
    }
}

impl std::fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiToken(…)")
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api-token");
        let made = ApiToken::load_or_create(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).expect("readable");
        assert_eq!(text.trim().len(), 64);
        assert!(made.is(text.trim().as_bytes()));
        let loaded = ApiToken::load_or_create(&path).expect("loaded");
        assert!(loaded.is(text.trim().as_bytes()));
        assert_eq!(fs::read_to_string(&path).expect("readable"), text);
        for bad in ["", "x", &text, &format!("{}x", text.trim()), "é"] {
            assert!(!loaded.is(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn an_exposed_or_weak_token_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("api-token");
        fs::write(&path, "a".repeat(64)).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
        assert!(matches!(ApiToken::load_or_create(&path), Err(TokenError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
        assert!(ApiToken::load_or_create(&path).is_ok());
        fs::write(&path, "short\n").expect("written");
        assert!(matches!(ApiToken::load_or_create(&path), Err(TokenError::Weak { .. })));
    }
}
