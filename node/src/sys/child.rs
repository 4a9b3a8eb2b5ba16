//! What a new process does to itself between `clone3` and `execve`.
//!
//! Functions marked *child-safe* may run in the child of a process with many threads: they allocate nothing, take no lock, touch
//! no thread-local but `errno`, and don't panic. glibc's own `setuid` family is not child-safe (it signals the threads
//! that it believes exist), so those are raw.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// What [`clone3_fork`] returned as.
#[derive(Debug)]
pub enum Forked {
    /// In the new process.
    Child,
    /// In the old one.
    Parent {
        /// The child's pid, in this pid namespace.
        pid: i32,
        /// The child, by descriptor (close-on-exec).
        pidfd: OwnedFd,
    },
}

/// Forks with `clone3`: a copy of the address space, `SIGCHLD` at its end, a pidfd, and the namespaces of `flags`
/// (`CLONE_NEW*`). The calling thread becomes the child's parent.
///
/// # Safety
/// In the child, only child-safe functions may be called, and it must end with [`exit_now`] or `execve`: every
/// other thread of the process is missing there, and whatever locks they held stay locked.
pub unsafe fn clone3_fork(flags: u64) -> io::Result<Forked> {
    let mut pidfd: c_int = -1;
    // SAFETY: all-zero is a valid `clone_args` (it means "nothing asked for").
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: `args` and `pidfd` outlive the call; without CLONE_VM and with no stack given, the child runs on a
    // private copy of this one, so returning twice is sound. The caller keeps the child within its bounds.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match Errno::result(pid)? {
        0 => Ok(Forked::Child),
        // SAFETY: the kernel stored a new descriptor in `pidfd`, known to nobody else.
        pid => Ok(Forked::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Ends the process at once: no destructors, no flushing, no unwinding. Child-safe.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` touches no memory of this process.
    unsafe { libc::_exit(code) }
}

/// Blocks every signal of the calling thread until the guard is dropped, so that no handler of this process runs
/// in a child that has just been forked.
#[derive(Debug)]
pub struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    /// Blocks all of them.
    pub fn new() -> Self {
        // SAFETY: both sets are local; `sigfillset` initialises the one, `pthread_sigmask` the other.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Default for SignalsBlocked {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `self.0` was filled by the kernel in `new`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Children that end leave no zombies. Child-safe.
pub fn ignore_children() -> Result<(), Errno> {
    // The kernel's own struct: SIG_IGN, no flags, no restorer, an empty mask.
    let ignore = [libc::SIG_IGN as u64, 0, 0, 0];
    let old = std::ptr::null::<u64>();
    // SAFETY: the kernel only reads `ignore`, which is as long as its struct is on 64-bit machines.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_sigaction, libc::SIGCHLD, ignore.as_ptr(), old, 8_usize) };
    Errno::result(result).map(drop)
}

/// Every signal at its default, none blocked. Child-safe.
pub fn reset_signals() -> Result<(), Errno> {
    // The kernel's own struct, all zero: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel only reads `default`, which is as long as its struct is on 64-bit machines. By the system
        // call, because libc refuses for the two signals that it keeps for itself, and an ignored signal (whoever
        // started spryd may have ignored them) stays so over `execve`. KILL and STOP refuse.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8_usize)
        };
    }
    // SAFETY: an all-zero set is the empty set on Linux; it is only read.
    let result = unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    Errno::result(result).map(drop)
}

/// A new session, without a terminal. Child-safe.
pub fn new_session() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    Errno::result(unsafe { libc::setsid() }).map(drop)
}

/// The mask for new files. Child-safe.
pub fn set_umask(mask: u32) {
    // SAFETY: no memory is involved.
    unsafe { libc::umask(mask) };
}

/// Sets the soft and the hard limit of `resource` (`RLIMIT_*`), or both to the present hard limit where that is lower.
/// Child-safe.
pub fn limit_resource(resource: c_int, value: u64) -> Result<(), Errno> {
    // SAFETY: `limit` is local; the kernel reads or fills just it. prlimit is called raw: the type of its first
    // argument differs between libcs.
    unsafe {
        let mut limit: libc::rlimit64 = std::mem::zeroed();
        let none = std::ptr::null_mut::<libc::rlimit64>();
        Errno::result(libc::syscall(libc::SYS_prlimit64, 0, resource, none, &raw mut limit))?;
        let value = value.min(limit.rlim_max);
        limit = libc::rlimit64 { rlim_cur: value, rlim_max: value };
        Errno::result(libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, none)).map(drop)
    }
}

/// Stops mounts from travelling between this mount namespace and the one it was copied from. Child-safe.
pub fn make_mounts_private() -> Result<(), Errno> {
    // SAFETY: constant, terminated strings.
    let result = unsafe {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null())
    };
    Errno::result(result).map(drop)
}

/// The name of this UTS namespace. Child-safe.
pub fn set_hostname(name: &CStr) -> Result<(), Errno> {
    // SAFETY: pointer and length are of the same string.
    Errno::result(unsafe { libc::sethostname(name.as_ptr(), name.to_bytes().len()) }).map(drop)
}

/// Changes the working directory. Child-safe.
pub fn change_directory(path: &CStr) -> Result<(), Errno> {
    // SAFETY: a terminated string.
    Errno::result(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Writes `bytes` in one go to an open file. Child-safe.
pub fn write_once(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: pointer and length are of the same slice.
    let wrote = Errno::result(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })?;
    if wrote as usize == bytes.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// Writes `bytes` in one go to an existing file. Child-safe.
pub fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: a terminated string; the descriptor is owned by nobody else.
    let fd = Errno::result(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: `fd` was just opened and is closed only below.
    let result = write_once(unsafe { BorrowedFd::borrow_raw(fd) }, bytes);
    // SAFETY: `fd` is ours and not used again.
    unsafe { libc::close(fd) };
    result
}

/// Takes away every capability that a later `execve` could give. Needs CAP_SETPCAP. Child-safe.
pub fn drop_bounding_set() -> Result<(), Errno> {
    for capability in 0..64 {
        // SAFETY: no memory is involved.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break, // past the kernel's last one
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Clears the ambient set. Child-safe.
pub fn clear_ambient_set() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Errno::result(result).map(drop)
}

/// Empties the effective, permitted and inheritable sets. Child-safe.
pub fn drop_capabilities() -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let sets = [0_u32; 6];
    // SAFETY: version 3 reads a header of two words and two times three words of sets.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    Errno::result(result).map(drop)
}

/// No supplementary groups. Child-safe.
pub fn drop_groups() -> Result<(), Errno> {
    // SAFETY: a count of zero reads no list.
    Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) }).map(drop)
}

/// Real, effective and saved group. Child-safe.
pub fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: no memory is involved. Raw, because libc's would signal the parent's threads.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Real, effective and saved user. Child-safe.
pub fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: as above.
    Errno::result(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// From now on no `execve` gives more rights. Child-safe.
pub fn set_no_new_privileges() -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// SIGKILL when the thread that made this process ends. Cleared by a change of credentials and by fork.
/// `ESRCH` when it had ended already: this process's parent isn't `parent` any more. Child-safe.
pub fn die_with_parent(parent: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    // SAFETY: no memory is involved.
    if unsafe { libc::getppid() } == parent { Ok(()) } else { Err(Errno::ESRCH) }
}

/// This process's parent, by the number that the `/proc` which is mounted here knows it by: where this process is the first in a
/// pid namespace, `getppid` says 0 whoever that is. `None`: there is none. Child-safe.
pub fn parent_by_proc() -> Option<i32> {
    let mut text = [0_u8; 512];
    // SAFETY: a terminated string; the kernel writes at most as many bytes as there are; the descriptor is this function's.
    let len = unsafe {
        let fd = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let len = libc::read(fd, text.as_mut_ptr().cast(), text.len());
        libc::close(fd);
        len
    };
    parent_in(text.get(..usize::try_from(len).ok()?)?)
}

/// By the line of proc(5): what follows the name, which may hold anything, is the state and the parent.
fn parent_in(stat: &[u8]) -> Option<i32> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let digits = stat.get(name_end..)?.split(|byte| *byte == b' ').nth(2)?;
    digits.iter().try_fold(0_i32, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| i32::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// `EPIPE`: whoever read from this pipe is gone. Child-safe.
pub fn has_reader(pipe: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut polled = libc::pollfd { fd: pipe.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one entry, which is local.
    Errno::result(unsafe { libc::poll(&raw mut polled, 1, 0) })?;
    if polled.revents & libc::POLLERR == 0 { Ok(()) } else { Err(Errno::EPIPE) }
}

/// Makes `to` a name of what `from` is. They must differ. Child-safe.
pub fn install_fd(from: BorrowedFd<'_>, to: RawFd, close_on_exec: bool) -> Result<(), Errno> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: no memory is involved. `to` may be a descriptor that something in this process owns: callers are
    // children about to `execve`, where no owner will use or close it again.
    Errno::result(unsafe { libc::dup3(from.as_raw_fd(), to, flags) }).map(drop)
}

/// Closes every descriptor from `first` on. Child-safe, and only for children about to `execve`.
pub fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: no memory is involved; that owners of these descriptors are never used again is the caller's part
    // (a child about to `execve`).
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// A program with its arguments and environment, laid out for `execve` ahead of time.
#[derive(Debug)]
pub struct ExecImage {
    path: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    _text: Vec<CString>,
}

// SAFETY: the pointers are into `_text`, which is owned, never changed and dropped together with them.
unsafe impl Send for ExecImage {}

impl ExecImage {
    /// `argv[0]` is the path; `environment` has `NAME=value` strings.
    pub fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        let list = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let mut text = vec![path.clone()];
        text.extend(arguments);
        let argv = list(&text);
        let envp = list(&environment);
        text.extend(environment);
        Self { path, argv, envp, _text: text }
    }

    /// The program's path.
    pub fn path(&self) -> &CStr {
        &self.path
    }

    /// Becomes the program; returns only if that failed. Child-safe.
    pub fn execute(&self) -> Errno {
        // SAFETY: both lists end with a null pointer and point to terminated strings owned by `self` (moving a
        // CString doesn't move its bytes).
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        Errno::last()
    }

    /// Becomes the program in this file instead; the path is only its name. Child-safe.
    pub fn execute_file(&self, program: RawFd) -> Errno {
        let (argv, envp) = (self.argv.as_ptr(), self.envp.as_ptr());
        let (here, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: as above, and an empty string.
        unsafe { libc::syscall(libc::SYS_execveat, program, here, argv, envp, flags) };
        Errno::last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_what_follows_the_state_whatever_the_name_is() {
        assert_eq!(parent_in(b"7 (a) S 2 (b)) R 41 7 7 0\n"), Some(41));
        for odd in [&b""[..], b"7 (a", b"7 (a) S", b"7 (a) S -1 7", b"7 (a) S 99999999999 7"] {
            assert_eq!(parent_in(odd), None);
        }
    }
}
