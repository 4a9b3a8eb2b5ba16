//! The system calls of the backends: scheduling attributes, process clocks, signals by descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The kernel's `struct sched_attr`, in its first size: all that is used here (libc has it for glibc only).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SchedAttr {
    pub(super) size: u32,
    pub(super) policy: u32,
    pub(super) flags: u64,
    pub(super) nice: i32,
    pub(super) priority: u32,
    /// For the fair class (6.12): the slice that is asked for, 0.1 to 100 ms; 0: the kernel's own.
    pub(super) runtime_ns: u64,
    pub(super) deadline_ns: u64,
    pub(super) period_ns: u64,
}

const _: () = assert!(size_of::<SchedAttr>() == 48);

/// Children and new threads start in the fair class.
pub(super) const RESET_ON_FORK: u64 = 1;

/// Sets a thread's scheduling attributes; `tid` 0 is the caller's.
pub(super) fn set_attr(tid: i32, attr: SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..attr };
    // SAFETY: the kernel reads `size` bytes from a whole structure that outlives the call, and writes at most its `size`
    // field when it doesn't know the size.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A thread's scheduling attributes; `tid` 0 is the caller's.
pub(super) fn attr(tid: i32) -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes into a structure of that size.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) };
    if done == 0 { Ok(attr) } else { Err(io::Error::last_os_error()) }
}

/// The CPUs that the calling thread may run on.
pub(super) fn allowed_cpus() -> io::Result<Vec<u16>> {
    // SAFETY: all-zero is the empty set; the kernel writes at most the size that it is told.
    let (done, set) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        (libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set), set)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index is below the set's size.
    Ok((0..libc::CPU_SETSIZE as u16)
        .filter(|cpu| unsafe { libc::CPU_ISSET(usize::from(*cpu), &set) })
        .collect())
}

/// Binds a thread to these CPUs.
pub(super) fn set_affinity(tid: i32, cpus: &[u16]) -> io::Result<()> {
    // SAFETY: all-zero is the empty set; `CPU_SET` ignores what is beyond its size; the kernel reads the size given.
    let done = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(usize::from(*cpu), &mut set));
        libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the process hasn't ended.
pub(super) fn is_alive(pidfd: BorrowedFd<'_>) -> bool {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: signal 0 is never delivered; no memory is handed over.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), 0, none, 0) };
    done == 0
}

/// The CPU time of a process, all threads, in nanoseconds.
pub fn process_cpu_ns(pid: i32) -> io::Result<u64> {
    // As `clock_getcpuclockid` makes it: the complement of the pid above three bits that say "process, by the scheduler".
    let clock = (!pid << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec`.
    let done = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}
