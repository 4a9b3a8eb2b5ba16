//! Files by landlock (Linux 5.13): the function may read and execute what its root shows, and write to `/tmp` and to the
//! harmless devices. The mounts say the same; this holds should one of them be wrong. Newer kernels also keep
//! signals and abstract Unix sockets from leaving the function: what protects a spryd that isn't root from a
//! function that has spryd's own user. (That signals don't leave an instance is seen to by its own setup, in the runtime.)

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::sys::confine;

/// `LANDLOCK_ACCESS_FS_*`.
const EXECUTE: u64 = 1 << 0;
const READ_FILE: u64 = 1 << 2;
const READ_FOLDER: u64 = 1 << 3;
const WRITE_FILE: u64 = 1 << 1;
/// The first thirteen are those of version 1; then come moving between folders, truncating, and devices' ioctls.
const VERSION_1: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const DEVICE_IOCTL: u64 = 1 << 15;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `LANDLOCK_SCOPE_SIGNAL`.
const SCOPES: u64 = 0b11;
/// The version from which on there are scopes.
pub(super) const SCOPES_SINCE: u32 = 6;

/// Bytes of the ruleset's attributes in a version.
fn known(version: u32) -> usize {
    match version {
        0..=3 => 8,
        4..=5 => 16,
        _ => 24,
    }
}

/// What one process is put under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landlock {
    accesses: u64,
    scoped: u64,
    known: usize,
    writable: Option<CString>,
}

impl Landlock {
    /// As much as this version of landlock has. `host_sockets`: the host's abstract sockets may be connected to;
    /// `writable`: another folder that may be written to.
    pub(super) fn new(version: u32, host_sockets: bool, writable: Option<CString>) -> Self {
        let mut accesses = VERSION_1;
        for (since, access) in [(2, REFER), (3, TRUNCATE), (5, DEVICE_IOCTL)] {
            if version >= since {
                accesses |= access;
            }
        }
        let scopes = if host_sockets { SCOPES & !1 } else { SCOPES };
        Self {
            accesses,
            scoped: if version >= SCOPES_SINCE { scopes } else { 0 },
            known: known(version),
            writable,
        }
    }

    /// Child-safe.
    pub(super) fn apply(&self) -> Result<(), Errno> {
        let ruleset = confine::landlock_ruleset(self.accesses, self.scoped, self.known)?;
        let read = EXECUTE | READ_FILE | READ_FOLDER;
        let device = read | WRITE_FILE | (self.accesses & (TRUNCATE | DEVICE_IOCTL));
        // /proc: a process writes to its own (the names of its threads, its OOM score).
        let rules: [(&CStr, u64); 4] =
            [(c"/", read), (c"/tmp", self.accesses), (c"/dev", device), (c"/proc", read | WRITE_FILE)];
        for (path, accesses) in rules {
            confine::landlock_allow(ruleset.as_fd(), path, accesses)?;
        }
        if let Some(path) = &self.writable {
            confine::landlock_allow(ruleset.as_fd(), path, self.accesses)?;
        }
        confine::landlock_restrict(ruleset.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_asked_for_what_it_has() {
        let first = Landlock::new(1, false, None);
        assert_eq!((first.accesses, first.scoped, first.known), (0x1fff, 0, 8));
        let newest = Landlock::new(7, false, None);
        assert_eq!((newest.accesses, newest.scoped, newest.known), (0xffff, 3, 24));
        assert_eq!(Landlock::new(6, true, None).scoped, 2, "signals only");
        assert_eq!(Landlock::new(4, false, None).accesses & DEVICE_IOCTL, 0);
    }
}
