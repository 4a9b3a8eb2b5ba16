//! The node's one gate to the kernel: every system call that neither the standard library nor `nix` offers
//! safely, each as a small function with checked arguments.
//!
//! Not here: any decision. What is called when, and why, is told where it is used.
#![allow(unsafe_code, reason = "this module is the gate")]

mod child;
pub mod confine;
pub mod pagemap;
mod process;
pub mod rewind;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub use child::{
    ExecImage, Forked, SignalsBlocked, change_directory, clear_ambient_set, clone3_fork, close_from,
    die_with_parent, drop_bounding_set, drop_capabilities, drop_groups, exit_now, has_reader,
    ignore_children, install_fd, limit_resource, make_mounts_private, new_session, parent_by_proc,
    reset_signals, set_gid, set_hostname, set_no_new_privileges, set_uid, set_umask, write_file, write_once,
};
use nix::errno::Errno;
pub use process::{
    Dead, HowEnded, PidfdInfo, Which, kill_hard, pidfd_info, pidfd_open, pidfd_signal, set_preempting,
    take_fd, wait,
};
use tokio::io::unix::AsyncFd;

/// Makes sure that dead children stay until they are waited for, whatever disposition was inherited.
pub fn keep_dead_children() {
    // SAFETY: querying and resetting one disposition; no handler is installed by this.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut now);
        if now.sa_sigaction == libc::SIG_IGN || now.sa_flags & libc::SA_NOCLDWAIT != 0 {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        }
    }
}

/// A descriptor on the event loop of the calling thread's tokio runtime.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// The same, told of readability only: a busy socket's room to write would be news each time.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `watch`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }?)
}

/// A set of CPUs, as the scheduler's affinity calls take it.
#[derive(Clone, Copy)]
pub struct CpuSet(libc::cpu_set_t);

impl std::fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries((0..libc::CPU_SETSIZE as usize).filter(|cpu| self.contains(*cpu))).finish()
    }
}

impl CpuSet {
    /// Just this CPU; `None` when there can't be such a number.
    pub fn only(cpu: usize) -> Option<Self> {
        if cpu >= libc::CPU_SETSIZE as usize {
            return None;
        }
        // SAFETY: all-zero is the empty set; the index is within it.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            Some(Self(set))
        }
    }

    /// Where the calling thread may run.
    pub fn mine() -> io::Result<Self> {
        // SAFETY: the kernel fills the local set, whose size it is told.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            Errno::result(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set))?;
            Ok(Self(set))
        }
    }

    /// Is this CPU in it?
    pub fn contains(&self, cpu: usize) -> bool {
        // SAFETY: the index is checked first.
        cpu < libc::CPU_SETSIZE as usize && unsafe { libc::CPU_ISSET(cpu, &self.0) }
    }
}

/// The CPUs that this process may use, whichever of them the calling thread is bound to: its first thread is bound to none.
pub fn allowed_cpus() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::this());
    let count = nix::sched::CpuSet::count();
    set.map_or_else(
        |_| Vec::new(),
        |set| (0..count).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect(),
    )
}

/// Where a thread (by default a process's first) may run.
pub fn set_affinity(tid: i32, cpus: &CpuSet) -> io::Result<()> {
    // SAFETY: the set is read, at the size given.
    let result = unsafe { libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &raw const cpus.0) };
    Ok(Errno::result(result).map(drop)?)
}

/// The highest landlock version that the kernel offers.
pub fn landlock_version() -> Result<u32, Errno> {
    const CREATE_RULESET_VERSION: u32 = 1;
    let none = std::ptr::null::<u8>();
    // SAFETY: asking for the version reads no attributes.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, CREATE_RULESET_VERSION) };
    Errno::result(version).map(|version| version as u32)
}

/// Can seccomp filters kill a process? (`SECCOMP_GET_ACTION_AVAIL`)
pub fn seccomp_filter_available() -> Result<(), Errno> {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one word.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    Errno::result(result).map(drop)
}

/// Bits that nobody can guess.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: `bytes` is as long as it is said to be.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Requests of up to 256 bytes are answered whole once the pool is ready.
    Errno::result(got)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The supplementary groups of the process at the other end of a Unix socket, when it connected.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(&groups[..])).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: `groups` has room for `len` bytes, and the kernel writes no more than that.
        let got = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let count = len as usize / size_of::<u32>();
        if got == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: there are more, and `len` says how many. A process has 65536 at most.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > 65_536 {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// The descriptors that systemd passed to this process (sd_listen_fds(3)), once; later calls get none.
pub fn take_listen_fds() -> Vec<OwnedFd> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let ours = number("LISTEN_PID") == Some(std::process::id() as i32);
    let count = number("LISTEN_FDS").filter(|count| ours && (1..=64).contains(count)).unwrap_or(0);
    if count == 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    let open = |fd: &RawFd| {
        // SAFETY: the call takes a number and looks at no memory; a number that is no descriptor is EBADF.
        unsafe { libc::fcntl(*fd, libc::F_SETFD, libc::FD_CLOEXEC) == 0 }
    };
    let passed = (3..3 + count).filter(open);
    // SAFETY: by sd_listen_fds(3) these are this process's from its start on (LISTEN_PID says that it is meant), nothing else
    // in it refers to them (the daemon takes them before it opens anything), and `TAKEN` makes this the only owner.
    passed.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}
