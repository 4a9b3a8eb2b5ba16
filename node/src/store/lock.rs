//! One daemon per state folder: a `flock` on `STATE/lock`, which the kernel releases however the daemon ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::StoreError;
use crate::stat::Stat;

/// The lock, held until dropped. Close-on-exec, so that no zygote inherits it.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

/// A spryd that was killed may leave the lock with a child that it had just made, for as long as that one needs to
/// come to its own program. So long it is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Lock {
    pub(super) fn take(state: &Path) -> Result<Self, StoreError> {
        Self::take_waiting(state, || std::thread::sleep(LOOK_EVERY))
    }

    /// The same; `pause` is what is done between two looks.
    fn take_waiting(state: &Path, mut pause: impl FnMut()) -> Result<Self, StoreError> {
        let path = state.join("lock");
        let failed = |source| StoreError::Os { operation: "lock", path: path.clone(), source };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(failed)?;
        let begun = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut file) => {
                    let written = file.set_len(0).and_then(|()| file.rewind());
                    written.and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
                    return Ok(Self { _file: file });
                }
                Err((held, Errno::EWOULDBLOCK)) => file = held,
                Err((_, errno)) => return Err(failed(errno.into())),
            }
            let pid = owner(&mut file);
            let is_gone = pid.is_some_and(|pid| !is_alive(pid));
            if !is_gone || begun.elapsed() >= PATIENCE {
                let owner = pid.map_or("pid unknown".into(), |pid| format!("pid {pid}"));
                return Err(StoreError::Locked { path: state.to_owned(), owner });
            }
            pause();
        }
    }
}

/// Who wrote its pid into the file.
fn owner(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
    text.trim().parse().ok()
}

/// Whether a process runs; one that has ended and isn't reaped yet doesn't.
fn is_alive(pid: u32) -> bool {
    let stat = i32::try_from(pid).ok().and_then(Stat::of);
    stat.and_then(|stat| stat.state()).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_one_left_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        child.wait().expect("it ends");
        let mut left = Some(Lock::take(folder.path()).expect("free"));
        std::fs::write(folder.path().join("lock"), format!("{}\n", child.id())).expect("written");
        Lock::take_waiting(folder.path(), || drop(left.take())).expect("it got the lock in the end");
        assert!(left.is_none(), "it didn't wait");
    }
}
