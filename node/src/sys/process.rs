//! Other processes: by descriptor, by number where that can't be reused, and how they ended.

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;

/// The process as a descriptor. The caller knows that `pid` can't have been reused (its unreaped child).
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel made `fd` for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal; a process that is gone is no error.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null `info` asks the kernel to fill in the ordinary one.
    match Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0)
    }) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A copy of another process's descriptor (Linux 5.6). Needs the right to trace it.
pub fn take_fd(pidfd: BorrowedFd<'_>, fd: std::os::fd::RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    // SAFETY: on success the kernel has made a descriptor for us.
    Ok(Errno::result(taken).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as c_int) })?)
}

/// Lets a process's main thread interrupt whoever runs when it wakes (as all do at first), or not: `SCHED_BATCH`.
pub fn set_preempting(pid: i32, preempts: bool) -> io::Result<()> {
    let class = if preempts { libc::SCHED_OTHER } else { libc::SCHED_BATCH };
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the kernel reads one `sched_param`, which outlives the call.
    Errno::result(unsafe { libc::sched_setscheduler(pid, class, &raw const priority) })?;
    Ok(())
}

/// SIGKILL to one process or, with a negative number, to a process group; none there is no error.
pub fn kill_hard(pid: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match Errno::result(unsafe { libc::kill(pid, libc::SIGKILL) }) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HowEnded {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// A dead child, as `waitid` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dead {
    /// Its pid; free for reuse if it was reaped.
    pub pid: i32,
    /// How it ended.
    pub how: HowEnded,
    /// User and system time, of itself and its reaped children.
    pub cpu_time: Duration,
    /// Largest resident set, in bytes.
    pub max_rss_bytes: u64,
}

/// Which children of the calling thread [`wait`] looks at.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// Any of them.
    Any,
    /// This one.
    Child(BorrowedFd<'a>),
    /// The one with this pid.
    Pid(i32),
}

/// Looks for a dead child **of the calling thread**, without blocking, and reaps it if asked to.
/// `ECHILD`: there are no such children. `None`: there are, and they live.
pub fn wait(which: Which<'_>, reap: bool) -> Result<Option<Dead>, Errno> {
    let (kind, id) = match which {
        Which::Any => (libc::P_ALL, 0),
        Which::Child(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd()),
        Which::Pid(pid) => (libc::P_PID, pid),
    };
    let mut options = libc::WEXITED | libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD;
    if !reap {
        options |= libc::WNOWAIT;
    }
    // SAFETY: all-zero is valid for both; the kernel fills just these two. The raw call is what takes a rusage.
    let (info, usage) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let mut usage: libc::rusage = std::mem::zeroed();
        let call = libc::SYS_waitid;
        Errno::result(libc::syscall(call, kind as c_long, id, &raw mut info, options, &raw mut usage))?;
        (info, usage)
    };
    // SAFETY: after waitid the union is in its child form, or all zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let how =
        if info.si_code == libc::CLD_EXITED { HowEnded::Code(status) } else { HowEnded::Signal(status) };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    let cpu_time = time(usage.ru_utime) + time(usage.ru_stime);
    Ok(Some(Dead { pid, how, cpu_time, max_rss_bytes: usage.ru_maxrss as u64 * 1024 }))
}

/// What a process descriptor says of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidfdInfo {
    /// What the process is called here.
    pub pid: i32,
    /// Its real user.
    pub uid: u32,
}

/// Asks a process descriptor (Linux 6.13 and later). `None`: this kernel can't say. An error: the process has been
/// reaped or isn't visible. The caller knows that it *is* a process descriptor: other files have other ideas of the
/// same request.
pub fn pidfd_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<PidfdInfo>> {
    /// `struct pidfd_info` of `linux/pidfd.h`, in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Raw {
        mask: u64,
        cgroup: u64,
        pid: u32,
        thread_group: u32,
        parent: u32,
        real_uid: u32,
        real_gid: u32,
        others: [u32; 6],
        exit_code: i32,
    }
    const _: () = assert!(size_of::<Raw>() == 64);
    const PID_AND_CREDENTIALS: u64 = 1 | 2;
    /// `_IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)`.
    const GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    let mut raw = Raw { mask: PID_AND_CREDENTIALS, ..Raw::default() };
    // SAFETY: the kernel writes at most the 64 bytes whose number is part of the request, to `raw`, which is ours
    // alone and has them.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&pidfd), GET_INFO, &raw mut raw) };
    match Errno::result(done) {
        Ok(_) if raw.mask & PID_AND_CREDENTIALS == PID_AND_CREDENTIALS && raw.pid != 0 => {
            Ok(Some(PidfdInfo { pid: raw.pid as i32, uid: raw.real_uid }))
        }
        Ok(_) | Err(Errno::ENOTTY | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
