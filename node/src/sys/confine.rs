//! The calls that a new process confines itself with: mounts, its root, landlock, the filter on system calls. All are
//! child-safe (see the parent module).

use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;

/// `mount(2)`. What isn't needed for a kind of mount is `None`. Child-safe.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    options: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null or to a terminated string that outlives the call, which is what mount(2) takes.
    let result = unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast())
    };
    Errno::result(result).map(drop)
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}
const _: () = assert!(size_of::<MountAttributes>() == 32);

/// Sets `MOUNT_ATTR_*` on a mount and all that is mounted below it. Linux 5.12. Child-safe.
pub fn set_mount_attributes(target: &CStr, attributes: u64) -> Result<(), Errno> {
    let wanted = MountAttributes { set: attributes, clear: 0, propagation: 0, user_namespace: 0 };
    let (at, flags) = (libc::AT_FDCWD, libc::AT_RECURSIVE);
    // SAFETY: the kernel reads a terminated string and a struct of the size given.
    let result = unsafe {
        let size = size_of::<MountAttributes>();
        libc::syscall(libc::SYS_mount_setattr, at, target.as_ptr(), flags, &raw const wanted, size)
    };
    Errno::result(result).map(drop)
}

/// Makes a folder; one that is there is as good. Child-safe.
pub fn make_folder(path: &CStr) -> Result<(), Errno> {
    // SAFETY: a terminated string.
    match Errno::result(unsafe { libc::mkdir(path.as_ptr(), 0o755) }) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes a file with these bytes in it. Child-safe.
pub fn make_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a terminated string; with O_CREAT the mode is the third argument.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), flags, 0o644) })?;
    // SAFETY: the kernel has just made `fd` for us.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    if bytes.is_empty() { Ok(()) } else { super::write_once(std::os::fd::AsFd::as_fd(&file), bytes) }
}

/// Makes a file that only its owner can read, with these bytes in it. Child-safe.
pub fn make_secret(path: &CStr, mut bytes: &[u8], (uid, gid): (u32, u32)) -> Result<(), Errno> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a terminated string; with O_CREAT the mode is the third argument.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), flags, 0o400) })?;
    // SAFETY: the kernel has just made `fd` for us.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    while !bytes.is_empty() {
        // SAFETY: the kernel reads at most as many bytes as the slice has.
        let written = Errno::result(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })?;
        bytes = bytes.get(written as usize..).unwrap_or_default();
    }
    // SAFETY: no memory is involved.
    Errno::result(unsafe { libc::fchown(file.as_raw_fd(), uid, gid) }).map(drop)
}

/// Makes a symbolic link at `path`. Child-safe.
pub fn make_link(target: &CStr, path: &CStr) -> Result<(), Errno> {
    // SAFETY: terminated strings.
    Errno::result(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }).map(drop)
}

/// Makes the mount at `folder` the root of this mount namespace, and lets go of everything that was mounted before.
/// Child-safe.
pub fn change_root(folder: &CStr) -> Result<(), Errno> {
    super::change_directory(folder)?;
    // The new root and the place for the old one are the same folder: the old one comes to lie on top, and is taken
    // off (pivot_root(2), "pivot_root(".", ".")").
    // SAFETY: constant, terminated strings.
    unsafe {
        Errno::result(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        Errno::result(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
    }
    super::change_directory(c"/")
}

/// New namespaces for this process. Child-safe.
pub fn unshare(flags: c_int) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    Errno::result(unsafe { libc::unshare(flags) }).map(drop)
}

/// `struct landlock_ruleset_attr`; the kernel is told how much of it this version has.
#[repr(C)]
struct LandlockRuleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct LandlockPathBeneath {
    allowed_access: u64,
    parent_fd: c_int,
}
const _: () = assert!(size_of::<LandlockPathBeneath>() == 12);

/// A new landlock ruleset: file accesses that need a rule from now on, and what signals and abstract sockets may not
/// leave; `known` is how many of the attribute's bytes the kernel's version has. Child-safe.
pub fn landlock_ruleset(accesses: u64, scoped: u64, known: usize) -> Result<OwnedFd, Errno> {
    let wanted = LandlockRuleset { handled_access_fs: accesses, handled_access_net: 0, scoped };
    let known = known.min(size_of::<LandlockRuleset>());
    // SAFETY: the kernel reads `known` bytes, which the struct has.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const wanted, known, 0) };
    // SAFETY: on success the kernel has made a descriptor for us.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Allows `accesses` at and below `path`. Child-safe.
pub fn landlock_allow(ruleset: BorrowedFd<'_>, path: &CStr, accesses: u64) -> Result<(), Errno> {
    const PATH_BENEATH: c_int = 1;
    // SAFETY: a terminated string.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })?;
    // SAFETY: the kernel has just made `fd` for us.
    let folder = unsafe { OwnedFd::from_raw_fd(fd) };
    let rule = LandlockPathBeneath { allowed_access: accesses, parent_fd: folder.as_raw_fd() };
    let ruleset = ruleset.as_raw_fd();
    // SAFETY: the kernel reads the rule, whose layout is its own.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset, PATH_BENEATH, &raw const rule, 0) };
    Errno::result(result).map(drop)
}

/// Puts this process, and all that it ever starts, under the ruleset. Needs no-new-privileges. Child-safe.
pub fn landlock_restrict(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    Errno::result(result).map(drop)
}

/// One instruction of classic BPF.
pub type Instruction = libc::sock_filter;

/// Filters every later system call of this process and of all that it ever starts. Needs no-new-privileges. Child-safe.
pub fn filter_system_calls(program: &[Instruction]) -> Result<(), Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies `len` instructions and doesn't write to them.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, (&raw const program).cast::<c_void>()) };
    Errno::result(result).map(drop)
}
