//! Plays spryd: starts real zygotes, has them fork real instances, and talks to these over a real transport.
//!
//! What is started are the programs that spryd carries (built by cargo when the first test asks), and [`python`].

mod build;
mod instance;
mod segments;
mod zygote;

pub(crate) use build::{c_library, c_library_without, faults_library, rust_library};
pub(crate) use instance::{Answer, Instance};
pub(crate) use segments::{Foreign, Grant};
pub(crate) use zygote::Zygote;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long anything may take before a test fails: a watchdog, not a measurement.
const WATCHDOG_MS: u16 = 30_000;

/// The interpreter: the one that `SPRY_TEST_PYTHON` names, or the system's.
pub(crate) fn python() -> PathBuf {
    std::env::var_os("SPRY_TEST_PYTHON").map_or_else(|| "/usr/bin/python3".into(), PathBuf::from)
}

/// Waits until `fd` is readable or at its end. Panics when the watchdog barks.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, what: &str) {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::from(WATCHDOG_MS)) {
            Ok(0) => panic!("nothing came from {what} in {WATCHDOG_MS} ms"),
            Ok(_) => return,
            Err(nix::Error::EINTR) => {}
            Err(error) => panic!("poll {what}: {error}"),
        }
    }
}

/// Whose descriptor this is.
pub(crate) fn pid_of(pidfd: &OwnedFd) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).expect("fdinfo");
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).expect("a process");
    pid.trim().parse().expect("its number")
}

/// What the open descriptors of a process are, counted by what they lead to.
pub(crate) fn open_files(pid: i32) -> BTreeMap<String, usize> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list fds") {
        let Ok(target) = std::fs::read_link(entry.expect("fd").path()) else { continue };
        let target = target.to_string_lossy();
        let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
        *files.entry(kind.to_owned()).or_default() += 1;
    }
    files
}

/// The numbers of a process's open descriptors.
pub(crate) fn open_numbers(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("list fds");
    let mut numbers: Vec<i32> = entries
        .map(|entry| entry.expect("fd").file_name().to_string_lossy().parse().expect("number"))
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Everything that a pipe holds now; waits for nothing.
pub(crate) fn drain(pipe: &impl AsRawFd) -> String {
    let mut text = Vec::new();
    let mut bytes = [0u8; 65536];
    loop {
        match nix::unistd::read(borrow(pipe), &mut bytes) {
            Ok(0) | Err(nix::Error::EAGAIN) => return String::from_utf8_lossy(&text).into_owned(),
            Ok(len) => text.extend_from_slice(&bytes[..len]),
            Err(nix::Error::EINTR) => {}
            Err(error) => panic!("read a log pipe: {error}"),
        }
    }
}

fn borrow(fd: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: borrowed for as long as its owner.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}
