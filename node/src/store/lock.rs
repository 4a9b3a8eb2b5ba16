//! One daemon per state folder: a `flock` on `STATE/lock`, which the kernel releases however the daemon ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::StoreError;

/// The lock, held until dropped. Close-on-exec, so that no zygote inherits it.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    pub(super) fn take(state: &Path) -> Result<Self, StoreError> {
        let path = state.join("lock");
        let failed = |source| StoreError::Os { operation: "lock", path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let written = file.set_len(0).and_then(|()| file.rewind());
                written.and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid);
                let known = read.is_ok() && pid.trim().parse::<u32>().is_ok();
                let owner = if known { format!("pid {}", pid.trim()) } else { "pid unknown".into() };
                Err(StoreError::Locked { path: state.to_owned(), owner })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}
