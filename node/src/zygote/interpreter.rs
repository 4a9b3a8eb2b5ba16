//! Which Python, and can the function's user run it?

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// No interpreter can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterpreterError {
    /// It isn't there.
    #[error("{} is not there: {why}", path.display())]
    Missing {
        /// What was looked at.
        path: PathBuf,
        /// What the kernel said.
        why: String,
    },
    /// It is there, but not for the function's user.
    #[error("{} can't be run by user {uid}: {} is not open to it", path.display(), barrier.display())]
    Unreachable {
        /// The program.
        path: PathBuf,
        /// The folder or file without the right.
        barrier: PathBuf,
        /// The function's user.
        uid: u32,
    },
    /// None is known to work.
    #[error("no python3 that functions could run was found (looked at: {})", looked_at.join("; "))]
    NotFound {
        /// What was tried, and why not.
        looked_at: Vec<String>,
    },
}

/// The configured interpreter, or else the first of `/usr/bin/python3` and the `python3`s in PATH that the user can
/// run. Functions run as `uid_gid`, or as whoever this process is.
pub fn find_interpreter(
    configured: Option<&Path>,
    uid_gid: Option<(u32, u32)>,
) -> Result<PathBuf, InterpreterError> {
    if let Some(path) = configured {
        return check_interpreter(path, uid_gid);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join("python3"));
    let mut looked_at = Vec::new();
    for candidate in [PathBuf::from("/usr/bin/python3")].into_iter().chain(in_path) {
        match check_interpreter(&candidate, uid_gid) {
            Ok(path) => return Ok(path),
            Err(error) => looked_at.push(error.to_string()),
        }
    }
    Err(InterpreterError::NotFound { looked_at })
}

/// The path, if every folder on its way can be entered and the file executed by the user.
///
/// Links are followed for the check only: a virtual environment's `python` is a link and must be called by that name.
pub fn check_interpreter(path: &Path, uid_gid: Option<(u32, u32)>) -> Result<PathBuf, InterpreterError> {
    let real = fs::canonicalize(path)
        .map_err(|error| InterpreterError::Missing { path: path.to_owned(), why: error.to_string() })?;
    let (uid, gid) =
        uid_gid.unwrap_or_else(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    let way = path.ancestors().skip(1).chain(real.ancestors());
    for place in way.filter(|place| !place.as_os_str().is_empty()) {
        let metadata = fs::metadata(place)
            .map_err(|error| InterpreterError::Missing { path: place.to_owned(), why: error.to_string() })?;
        if !may_execute(&metadata, uid, gid) {
            return Err(InterpreterError::Unreachable {
                path: path.to_owned(),
                barrier: place.to_owned(),
                uid,
            });
        }
    }
    Ok(path.to_owned())
}

/// By the mode bits; access lists are left to the kernel, whose word comes with the failed step.
fn may_execute(metadata: &Metadata, uid: u32, gid: u32) -> bool {
    let mode = metadata.mode();
    match () {
        () if uid == 0 => mode & 0o111 != 0,
        () if metadata.uid() == uid => mode & 0o100 != 0,
        () if metadata.gid() == gid => mode & 0o010 != 0,
        () => mode & 0o001 != 0,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_closed_folder_on_the_way_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let home = folder.path().join("home");
        fs::create_dir(&home).expect("home");
        let python = home.join("python3");
        fs::write(&python, "").expect("file");
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
        open(folder.path());
        open(&python);
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("chmod");
        let other = Some((54_321, 54_321));
        let link = folder.path().join("python");
        symlink(&python, &link).expect("link");
        let Err(InterpreterError::Unreachable { barrier, .. }) = check_interpreter(&link, other) else {
            panic!("a link into a closed folder");
        };
        assert_eq!(barrier, home.canonicalize().expect("home"));
        open(&home);
        assert_eq!(
            check_interpreter(&link, other),
            Ok(link.clone()),
            "by its own name, not the link's target"
        );
        fs::set_permissions(&python, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(check_interpreter(&link, other).is_err(), "not executable");
        assert!(find_interpreter(Some(&folder.path().join("none")), other).is_err());
    }
}
