//! The raw system calls of this crate; everything else is safe Rust.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollEvent};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

/// A signal of [`note_signal`] has come.
static SIGNALLED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    SIGNALLED.store(true, Ordering::Relaxed);
}

/// From now on the signal doesn't end this process but is noted.
pub fn note_signal(signal: Signal) -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing but store to an atomic, which is async-signal-safe.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// Whether a noted signal has come.
pub fn signalled() -> bool {
    SIGNALLED.load(Ordering::Relaxed)
}

/// Waits for events with a timeout in nanoseconds (epoll_pwait2, Linux 5.11): an open-loop generator that
/// can only wait for whole milliseconds sends late. Returns how many events were stored; 0 also on a signal.
pub fn wait(epoll: &Epoll, events: &mut [EpollEvent], timeout: Duration) -> io::Result<usize> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: `events` is a valid, writable slice of `epoll_event` (nix's type is a transparent wrapper) and its
    // length is what the kernel is told; `timeout` lives for the call; no signal mask is passed.
    let got = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.0.as_raw_fd(),
            events.as_mut_ptr().cast::<libc::epoll_event>(),
            events.len() as libc::c_int,
            &raw const timeout,
            std::ptr::null::<libc::sigset_t>(),
            0usize,
        )
    };
    match got {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            error => Err(error),
        },
        count => Ok(count as usize),
    }
}

/// A handle on a process that never means another one.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers, returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0u32) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal to the process of a pidfd.
pub fn pidfd_send_signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    // SAFETY: integers and a null siginfo, which the kernel takes as that of a plain kill(2).
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the kernel send SIGTERM to the command's process when the thread that spawns it ends, even by SIGKILL.
pub fn end_with_spawner(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs in the forked child and makes one async-signal-safe system call; it allocates
    // nothing and takes no lock.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    }
}

/// Leaves these descriptors open in the command's process, under the same numbers.
pub fn keep_open(command: &mut Command, fds: Vec<RawFd>) -> &mut Command {
    // SAFETY: the closure runs in the forked child and makes only async-signal-safe system calls, on numbers; it
    // allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    }
}

/// Takes over a descriptor that the parent process has left open ([`keep_open`]); later ones get closed on exec again.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers and changes no memory.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as fcntl has just said, and was opened for this program's arguments, which name each
    // descriptor once and are read once: nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fork, child exits at once, wait: the least that a process costs with the classic calls.
pub fn fork_and_reap() -> io::Result<()> {
    // SAFETY: the child makes one system call, `_exit`, and touches nothing of the copied address space.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends the child without running destructors or exit handlers that belong to the parent.
        0 => unsafe { libc::_exit(0) },
        pid => reap(libc::P_PID, pid as libc::id_t),
    }
}

/// clone3 with a pidfd, as spry's zygotes do it; the child exits at once, the parent waits on the pidfd.
pub fn clone3_and_reap() -> io::Result<()> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `clone_args` is plain integers, for which zero means "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child runs on its own copy of this stack, as after fork; `args` and `pidfd`
    // outlive the call; the child only calls `_exit`.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as in `fork_and_reap`.
        0 => unsafe { libc::_exit(0) },
        _ => {
            // SAFETY: clone3 succeeded in the parent, so the kernel has stored a new descriptor in `pidfd`.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            reap(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t)
        }
    }
}

fn reap(kind: libc::idtype_t, id: libc::id_t) -> io::Result<()> {
    loop {
        // SAFETY: the kernel accepts a null siginfo and then stores nothing.
        match unsafe { libc::waitid(kind, id, std::ptr::null_mut(), libc::WEXITED) } {
            0 => return Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}
