//! The system calls of this crate.
//!
//! The only `unsafe` of the crate is here. What is called between a fork and the end of an instance's setup
//! runs in a process with one thread, copied from a process with one thread: no lock can be held by a
//! thread that doesn't exist, so allocating and using libc is sound there, too.

pub(crate) mod heap;
pub(crate) mod landlock;
pub(crate) mod layer;
pub(crate) mod memory;
#[cfg(target_arch = "x86_64")]
pub(crate) mod rewind;
pub(crate) mod switch;

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

/// What `clone3` returned, on either side.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// In the zygote: the new process.
    Parent { pidfd: OwnedFd },
    /// In the new process.
    Child,
}

/// Forks a sibling: a child of this process's own parent, which reaps it and whose death it may notice.
///
/// glibc's `fork` can't do that, so what it does for the child's first thread is done here: the thread's
/// cached id is renewed where the kernel tells where it is kept (`PR_GET_TID_ADDRESS`), and the
/// list of robust mutexes is registered again. Handlers of `pthread_atfork` are not run: they
/// guard against other threads, and there are none.
///
/// By `clone`, not `clone3`: the sandbox's filter on system calls must see the flags, and can't where they lie in memory.
///
/// `stay`: it begins on this core, and may go on where this process may.
pub(crate) fn clone_sibling(stay: bool) -> io::Result<Cloned> {
    let robust = robust_list();
    let mut pidfd: RawFd = -1;
    let mut flags = libc::CLONE_PARENT | libc::CLONE_PIDFD;
    let mut child_tid: *mut i32 = ptr::null_mut();
    if let Some(address) = tid_address() {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
        child_tid = address;
    }
    let stay = stay.then(Stay::here).flatten();
    // SAFETY: without CLONE_VM the child runs on a copy of everything, this stack (0: the same) included. `pidfd` is
    // written in the parent alone; `child_tid` is this thread's own id word, in the child's copy.
    let pid = unsafe { clone(flags, &raw mut pidfd, child_tid) };
    drop(stay);
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if let Some((head, len)) = robust {
                // SAFETY: `head` is this thread's own list, as the kernel named it before the fork.
                unsafe { libc::syscall(libc::SYS_set_robust_list, head, len) };
            }
            Ok(Cloned::Child)
        }
        // SAFETY: the kernel has just made this descriptor for us.
        _ => Ok(Cloned::Parent { pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// The calling thread is bound to the core that it is on until this is dropped, and what it forks until its copy is.
struct Stay {
    before: libc::cpu_set_t,
}

impl Stay {
    /// `None`: the kernel, or a filter, refuses; then nothing is bound.
    fn here() -> Option<Self> {
        let size = size_of::<libc::cpu_set_t>();
        // SAFETY: all-zero is the empty set; the kernel writes at most `size` bytes to it, and reads as many.
        unsafe {
            let mut before: libc::cpu_set_t = std::mem::zeroed();
            let mut only: libc::cpu_set_t = std::mem::zeroed();
            if libc::sched_getaffinity(0, size, &raw mut before) != 0 {
                return None;
            }
            let here = usize::try_from(libc::sched_getcpu()).ok()?;
            libc::CPU_SET(here, &mut only);
            (libc::sched_setaffinity(0, size, &raw const only) == 0).then_some(Self { before })
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // SAFETY: the kernel reads as many bytes as the set has.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.before) };
    }
}

/// `clone` with its arguments in the order of this machine: the thread pointer, which isn't used, and the word for the
/// child's id change places.
///
/// # Safety
///
/// The flags must not have the child share memory; the pointers are what the flags take them for.
unsafe fn clone(flags: c_int, pidfd: *mut RawFd, child_tid: *mut i32) -> libc::c_long {
    let (stack, tls) = (ptr::null_mut::<c_void>(), 0_usize);
    // SAFETY: by the caller.
    unsafe {
        if cfg!(target_arch = "x86_64") {
            libc::syscall(libc::SYS_clone, flags, stack, pidfd, child_tid, tls)
        } else {
            libc::syscall(libc::SYS_clone, flags, stack, pidfd, tls, child_tid)
        }
    }
}

/// Where libc keeps this thread's id. `None` when the kernel doesn't say (no CONFIG_CHECKPOINT_RESTORE), or
/// when that word holds something else.
fn tid_address() -> Option<*mut i32> {
    let mut address: *mut i32 = ptr::null_mut();
    // SAFETY: writes one pointer to `address`.
    let result = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
    if result != 0 || address.is_null() {
        return None;
    }
    // SAFETY: `gettid` has no preconditions; `address` was registered by this thread's libc and lives as long as
    // the thread.
    unsafe { (address.read() == libc::gettid()).then_some(address) }
}

fn robust_list() -> Option<(*mut c_void, usize)> {
    let (mut head, mut len) = (ptr::null_mut::<c_void>(), 0usize);
    // SAFETY: writes a pointer and a length; 0 means this thread.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    (result == 0 && !head.is_null()).then_some((head, len))
}

/// Whether this process has exactly one thread.
pub(crate) fn single_threaded() -> bool {
    // `unshare(CLONE_THREAD)` changes nothing and succeeds only in a process with one thread.
    // SAFETY: no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return true;
    }
    if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        return false;
    }
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

/// The names of all threads but the first, as far as /proc tells.
pub(crate) fn other_threads() -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let own = std::process::id().to_string();
    tasks
        .filter_map(Result::ok)
        .filter(|task| task.file_name() != own.as_str())
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// Takes fd `number` over, close-on-exec. An error when it isn't an open seqpacket socket.
pub(crate) fn adopt_seqpacket(number: RawFd) -> io::Result<OwnedFd> {
    let (mut kind, mut len): (c_int, libc::socklen_t) = (0, size_of::<c_int>() as libc::socklen_t);
    // SAFETY: writes one int to `kind`, and its length to `len`.
    check(unsafe {
        libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut len)
    })?;
    if kind != libc::SOCK_SEQPACKET {
        return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
    }
    // SAFETY: F_SETFD touches no memory.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by the zygote's contract with spryd nobody else in this process uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Puts a copy of `fd` where programs expect standard output or error.
pub(crate) fn install(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: `number` is 1 or 2, which nothing in this process owns.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Closes every descriptor that isn't in `keep`, a sorted list.
pub(crate) fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut first = 0;
    for &fd in keep {
        if fd > first {
            close_range(first as u32, fd as u32 - 1)?;
        }
        first = fd + 1;
    }
    close_range(first as u32, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: what owns a descriptor in this range is the zygote's, whose copy of memory this process never
    // goes back to, or the function's, which learns of it by EBADF.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) as c_int }).map(drop)
}

/// Writes out what C code has left in stdio's buffers.
///
/// `fflush(NULL)` locks every stream there is, once an invocation. As long as there are the three standard ones only,
/// a look at what two of them hold does.
pub(crate) fn flush_c_streams() {
    #[cfg(target_env = "gnu")]
    if !streams::may_hold_bytes() {
        return;
    }
    // SAFETY: null means all streams. A stream that can't be written keeps its bytes; nobody could be told.
    unsafe { libc::fflush(ptr::null_mut()) };
}

/// What glibc tells of its streams.
#[cfg(target_env = "gnu")]
mod streams {
    use std::ffi::c_void;
    use std::ptr;

    type Stream = *mut c_void;

    unsafe extern "C" {
        /// The list of all streams; a new one comes first, and `stderr` is the first of those that are there from the
        /// start.
        static mut _IO_list_all: Stream;
        static mut stdout: Stream;
        static mut stderr: Stream;
        /// Bytes in a stream's output buffer, as `stdio_ext.h` has it.
        fn __fpending(stream: Stream) -> usize;
    }

    /// Whether some stream may have to be flushed: false only if there are no others than the standard ones, and both
    /// that are written to are empty.
    pub(super) fn may_hold_bytes() -> bool {
        // SAFETY: words that glibc keeps. Another thread that opens a stream or prints at this moment is as late as it
        // would be for `fflush`. `stdout` is read from where `setvbuf` and `freopen` leave it, too: they keep the object.
        unsafe {
            let (first, out, err) = (
                ptr::read_volatile(&raw const _IO_list_all),
                ptr::read_volatile(&raw const stdout),
                ptr::read_volatile(&raw const stderr),
            );
            first != err || out.is_null() || __fpending(out) > 0 || __fpending(err) > 0
        }
    }
}

/// Whether one of the log pipes that `watch` (an epoll descriptor) was made for holds bytes that nobody has read. True if
/// it can't be asked: then spryd looks.
pub(crate) fn has_output(watch: &OwnedFd) -> bool {
    let mut room = [MaybeUninit::uninit()];
    let ready = epoll::wait(watch, &mut room, Some(&Timespec::default()));
    !matches!(ready, Ok((events, _)) if events.is_empty())
}

/// Whether a message waits on this socket, or nothing can be said of that.
pub(crate) fn has_message(socket: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())) != Ok(0)
}

const RSEQ_UNREGISTER: c_int = 1;
/// `RSEQ_SIG`: glibc's, by architecture.
const RSEQ_SIGNATURE: u32 = if cfg!(target_arch = "x86_64") { 0x5305_3053 } else { 0xd428_bc00 };
/// The first version's size, which is what everybody registers until the kernel has more to say.
const RSEQ_LEN: u32 = 32;

/// Has the kernel forget this thread's `rseq` area, which it otherwise reads and writes at every switch. glibc
/// registers it at start for `sched_getcpu` alone, which asks the vDSO without it; threads that the function
/// starts have areas of their own.
pub(crate) fn forget_rseq() {
    let Some(offset) = rseq_offset() else { return };
    let area = thread_pointer().wrapping_add_signed(offset);
    // SAFETY: no memory but that area, which glibc never frees, and the kernel checks that it is what was registered. If
    // it isn't, all stays as it is.
    unsafe { libc::syscall(libc::SYS_rseq, area, RSEQ_LEN, RSEQ_UNREGISTER, RSEQ_SIGNATURE) };
}

/// Whether the kernel has an `rseq` area of this thread's, whoever has registered it: then it takes no other.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_rseq() -> bool {
    #[repr(C, align(32))]
    struct Area([u8; RSEQ_LEN as usize]);
    let mut area = Area([0; RSEQ_LEN as usize]);
    let mut ask = |flags: c_int| {
        let (call, area) = (libc::SYS_rseq, area.0.as_mut_ptr());
        // SAFETY: the kernel writes to the area as long as it is registered, which is less than it lives.
        check(unsafe { libc::syscall(call, area, RSEQ_LEN, flags, RSEQ_SIGNATURE) as c_int })
    };
    match ask(0) {
        Ok(_) => ask(RSEQ_UNREGISTER).is_err(),
        Err(error) => error.raw_os_error() != Some(libc::ENOSYS),
    }
}

/// Where that area lies, from the thread pointer on; `None` with a libc that registers nothing. Asked for in the zygote:
/// the look-up takes an instance some twenty page faults.
pub(crate) fn rseq_offset() -> Option<isize> {
    static OFFSET: OnceLock<Option<isize>> = OnceLock::new();
    *OFFSET.get_or_init(|| {
        // SAFETY: looks a name up.
        let offset = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) }.cast::<isize>();
        // SAFETY: glibc's constant of that name is a `ptrdiff_t`.
        (!offset.is_null()).then(|| unsafe { offset.read() })
    })
}

fn thread_pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads one register; on x86-64 the first word of what it points to, which the ABI says is that address.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, nomem, preserves_flags));
    }
    pointer
}

/// A terminal's Ctrl-C reaches the whole process group; spryd alone decides when its functions end.
pub(crate) fn ignore_interrupts() {
    // SAFETY: SIG_IGN runs no code.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
}

/// SIGKILL when the parent's thread ends (spryd's nursery, which lives as long as spryd). If it has ended already, the
/// control socket is at its end and says so.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: no pointer is involved.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// Hides what `/proc` tells of this process, its memory and its descriptors, from other processes of the same user, and
/// keeps them from attaching to it. Forks inherit it.
pub(crate) fn hide_from_own_user() -> io::Result<()> {
    // SAFETY: no pointer is involved.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Makes `fd` descriptor number `to`, which this process has no more use for.
pub(crate) fn renumber(fd: OwnedFd, to: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: what `to` was is the zygote's, whose copy of memory this process never goes back to.
    check(unsafe { libc::dup3(fd.as_raw_fd(), to, libc::O_CLOEXEC) })?;
    // SAFETY: it was made just now.
    Ok(unsafe { OwnedFd::from_raw_fd(to) })
}

/// Ends the process, running nothing: no destructor, no exit handler of the function.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: never returns, touches nothing.
    unsafe { libc::_exit(code) }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
