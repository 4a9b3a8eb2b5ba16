//! One control group in one hierarchy: a folder with interface files.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::CgroupError;
use super::layout::Version;
use crate::{sandbox, sys};

/// See the module.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) version: Version,
    pub(super) path: PathBuf,
}

/// A killed process leaves its group before its pidfd says that it is dead, or a moment later (Linux 6.19).
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);
const REMOVAL_PAUSE: Duration = Duration::from_millis(1);

impl Dir {
    /// Makes the folder.
    pub(super) fn create(version: Version, path: PathBuf) -> Result<Self, CgroupError> {
        fs::create_dir(&path).map_err(|source| CgroupError::new("create", &path, source))?;
        Ok(Self { version, path })
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|source| CgroupError::new("write", &path, source))
    }

    pub(super) fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(|source| CgroupError::new("read", &path, source))
    }

    /// `cgroup.procs`, to be written by a process that joins.
    pub(super) fn open_procs(&self) -> Result<OwnedFd, CgroupError> {
        let path = self.path.join("cgroup.procs");
        let file = fs::OpenOptions::new().write(true).open(&path);
        Ok(file.map_err(|source| CgroupError::new("open", &path, source))?.into())
    }

    /// The processes in it (not below it).
    pub(super) fn members(&self) -> Vec<i32> {
        let text = self.read("cgroup.procs").unwrap_or_default();
        // 0 stands for a process of a pid namespace that isn't to be seen from here
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// Kills what is in it; returns what was alive, to wait for. `None`: nothing was in it, and its limits are what they were. A
    /// pid is signalled only through a descriptor that was opened while the pid was a member, so that a reused pid can't be hit.
    pub(super) fn kill_members(&self) -> Option<Vec<OwnedFd>> {
        let listed = self.members();
        if listed.is_empty() {
            return None;
        }
        if self.path.join("pids.max").exists() {
            let _ = self.write("pids.max", "0"); // nothing is born while the others are being killed
        }
        let opened: Vec<(i32, OwnedFd)> =
            listed.into_iter().filter_map(|pid| Some((pid, sys::pidfd_open(pid).ok()?))).collect();
        if self.version == Version::V2 && self.write("cgroup.kill", "1").is_ok() {
            return Some(opened.into_iter().map(|(_, pidfd)| pidfd).collect());
        }
        let still = self.members();
        let (members, _gone): (Vec<_>, Vec<_>) = opened.into_iter().partition(|(pid, _)| still.contains(pid));
        let members = members.into_iter().map(|(_, pidfd)| pidfd);
        Some(members.inspect(|pidfd| drop(sys::pidfd_signal(as_fd(pidfd), libc::SIGKILL))).collect())
    }

    /// Removes the folder, which must be empty of processes and groups.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }

    /// Kills and removes it with everything below it. Blocks until it is gone; for the start and the end of spryd.
    pub(super) fn clear(&self) -> io::Result<()> {
        // What is gone was removed by its owner, on another thread, at the same time.
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                Self { version: self.version, path: entry.path() }.clear()?;
            }
        }
        let until = Instant::now() + REMOVAL_PATIENCE;
        loop {
            let killed = self.kill_members().unwrap_or_default();
            for pidfd in &killed {
                sandbox::await_death(pidfd)?;
            }
            match remove(&self.path) {
                Err(error) if busy(&error) && Instant::now() < until => {
                    if killed.is_empty() {
                        std::thread::sleep(REMOVAL_PAUSE);
                    }
                }
                result => return result,
            }
        }
    }
}

pub(super) fn busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBUSY as i32)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn as_fd(fd: &OwnedFd) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(fd)
}
