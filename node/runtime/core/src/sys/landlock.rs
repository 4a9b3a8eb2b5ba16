//! What a process keeps itself, and all that it ever starts, from (landlock). What it can't reach as a function is spryd's
//! part (`node/src/sandbox`).

use std::ffi::{CStr, c_int};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use super::check;

/// `struct landlock_ruleset_attr`, up to this field the same in all versions that have it.
#[repr(C)]
#[derive(Default)]
struct Ruleset {
    files: u64,
    network: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Below {
    allowed: u64,
    path: c_int,
}

/// `LANDLOCK_ACCESS_FS_REFER`.
const REFER: u64 = 1 << 13;
/// `LANDLOCK_SCOPE_SIGNAL`.
const SIGNALS: u64 = 1 << 1;

/// What [`scope_signals`] takes, made once for all forks: making and closing one takes three times as long as using it.
static SCOPE: OnceLock<OwnedFd> = OnceLock::new();

/// In the zygote, ahead of its forks. If it can't be done (before Linux 6.12), whoever needs it hears why.
pub(crate) fn prepare_scope() {
    if let Ok(scope) = scope() {
        SCOPE.get_or_init(|| scope);
    }
}

/// From now on signals reach only this process and what it starts.
pub(crate) fn scope_signals() -> io::Result<()> {
    match SCOPE.get() {
        Some(scope) => restrict(scope),
        None => restrict(&scope()?),
    }
}

fn scope() -> io::Result<OwnedFd> {
    // What no rule set can leave alone: unless it allows files to change their folder, they can't.
    let wanted = Ruleset { files: REFER, scoped: SIGNALS, ..Ruleset::default() };
    let scope = ruleset(&wanted, size_of::<Ruleset>())?;
    allow(&scope, &open_path(c"/")?, REFER)?;
    Ok(scope)
}

/// `known`: bytes of the attributes that the kernel is told of.
fn ruleset(attributes: &Ruleset, known: usize) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `known` bytes, of which there are more.
    let fd = check(unsafe {
        let attributes: *const Ruleset = attributes;
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes, known, 0) as c_int
    })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What it names; a link names itself.
fn open_path(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a terminated string.
    let fd = check(unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_CLOEXEC | libc::O_NOFOLLOW) })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// There, and below.
fn allow(ruleset: &OwnedFd, path: &OwnedFd, allowed: u64) -> io::Result<()> {
    const PATH_BENEATH: c_int = 1;
    let rule = Below { allowed, path: path.as_raw_fd() };
    // SAFETY: the kernel reads the rule, whose layout is its own.
    check(unsafe {
        let (call, ruleset) = (libc::SYS_landlock_add_rule, ruleset.as_raw_fd());
        libc::syscall(call, ruleset, PATH_BENEATH, &raw const rule, 0) as c_int
    })
    .map(drop)
}

fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) as c_int })
        .map(drop)
}

/// Puts the pages that `/proc` has about processes out of this process's reach, and of all that it ever starts. They tell
/// what a process has used before, and what is written to its own stays (its name, its code).
#[cfg(target_arch = "x86_64")]
pub(crate) fn hide_processes() -> io::Result<()> {
    const OF_FILES: u64 = 1 << 1 | 1 << 2;
    const OF_FOLDERS: u64 = 1 << 3;
    let handled = Ruleset { files: OF_FILES | OF_FOLDERS, ..Ruleset::default() };
    // As much as the first version has.
    let ruleset = ruleset(&handled, size_of::<u64>())?;
    let names = |folder: &str| -> io::Result<Vec<_>> {
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
    };
    let is_of_process = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.bytes().all(|byte| byte.is_ascii_digit()) || ["self", "thread-self"].contains(&&*name)
    };
    let visible = names("/")?.into_iter().filter(|path| path.as_os_str() != "/proc");
    let others = names("/proc")?.into_iter().filter(|path| !is_of_process(path));
    for path in visible.chain(others) {
        // Links lead to what is in reach or not by its own rule.
        let Ok(about) = path.symlink_metadata() else { continue };
        if about.is_symlink() {
            continue;
        }
        let Ok(name) = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()) else { continue };
        let Ok(path) = open_path(&name) else { continue };
        let allowed = if about.is_dir() { OF_FILES | OF_FOLDERS } else { OF_FILES };
        allow(&ruleset, &path, allowed)?;
    }
    restrict(&ruleset)
}
