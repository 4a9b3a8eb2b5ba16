//! System calls of package layers: what the kernel knows of this process, asked without allocating, and said again to
//! another.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use super::memory;

/// `ARCH_SET_FS` and `ARCH_GET_FS` of asm/prctl.h.
#[cfg(target_arch = "x86_64")]
pub(crate) const ARCH_SET_FS: u64 = 0x1002;
#[cfg(target_arch = "x86_64")]
const ARCH_GET_FS: c_int = 0x1003;

/// An errno.
pub(crate) type Errno = i32;

fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn done(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Memory that a copy of this process is described in, and that isn't part of the copy: shared, so that the kernel never
/// makes one mapping of it and a private one.
#[derive(Debug)]
pub(crate) struct Scratch {
    start: *mut c_void,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED { Err(errno()) } else { Ok(Self { start, len }) }
    }

    pub(crate) fn address(&self) -> usize {
        self.start as usize
    }

    pub(crate) fn words(&mut self) -> &mut [u64] {
        // SAFETY: the mapping is ours alone, zeroed, aligned to pages, and lives as long as this value, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.len / 8) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: nobody has a part of it any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

/// Reads all of a file of /proc; an error when it doesn't fit.
pub(crate) fn read_whole(path: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: a C string.
    let fd = done(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
    let mut len = 0;
    let result = loop {
        let Some(room) = buffer.get_mut(len..).filter(|room| !room.is_empty()) else {
            break Err(libc::ENOMEM);
        };
        // SAFETY: writes within `room`.
        match unsafe { libc::read(fd, room.as_mut_ptr().cast(), room.len()) } {
            0 => break Ok(len),
            read if read > 0 => len += read as usize,
            _ => break Err(errno()),
        }
    };
    // SAFETY: it was opened above.
    unsafe { libc::close(fd) };
    result
}

/// Keeps a file of `/proc/self` at hand as `number`; if it can't be had, nothing is there.
pub(crate) fn keep(path: &CStr, number: RawFd) {
    // SAFETY: `number` is nobody's in a process that has just begun.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd >= 0 && fd != number {
            libc::dup3(fd, number, libc::O_CLOEXEC);
            libc::close(fd);
        }
    }
}

/// Closes a descriptor that nothing owns.
pub(crate) fn close(number: RawFd) {
    // SAFETY: by the caller; a number that is no descriptor's is EBADF.
    unsafe { libc::close(number) };
}

/// All that a file of `/proc/self` says now, in memory that was made before it was asked: with `room` at first.
pub(crate) fn read_from_start(number: RawFd, mut room: usize) -> Result<Vec<u8>, Errno> {
    loop {
        let mut bytes = vec![0; room];
        let mut len = 0;
        while len < room {
            let rest = &mut bytes[len..];
            // SAFETY: writes within what is left of the bytes.
            match unsafe { libc::pread(number, rest.as_mut_ptr().cast(), rest.len(), len as i64) } {
                0 => {
                    bytes.truncate(len);
                    return Ok(bytes);
                }
                read if read > 0 => len += read as usize,
                _ => return Err(errno()),
            }
        }
        room *= 2;
    }
}

/// What the page map says of the pages from `start` on, a word each.
pub(crate) fn read_pagemap(pagemap: RawFd, start: usize, pages: &mut [u64]) -> Result<(), Errno> {
    let (len, offset) = (size_of_val(pages), (start / memory::page_size() * 8) as i64);
    // SAFETY: writes within `pages`.
    match unsafe { libc::pread(pagemap, pages.as_mut_ptr().cast(), len, offset) } {
        read if read == len as isize => Ok(()),
        read if read >= 0 => Err(libc::EIO),
        _ => Err(errno()),
    }
}

/// Which pages of this range only this process has: a byte per page.
pub(crate) fn own_pages(pagemap: RawFd, range: &std::ops::Range<usize>) -> Result<Vec<u8>, Errno> {
    let mut words = vec![0; range.len() / memory::page_size()];
    read_pagemap(pagemap, range.start, &mut words)?;
    Ok(words.into_iter().map(|word| u8::from(is_own_page(word))).collect())
}

/// Whether a word of the page map is of a page that only this process (and its forks) has: it was written to.
pub(crate) fn is_own_page(word: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    word & (PRESENT | SWAPPED) != 0 && word & OF_FILE == 0
}

/// Device, number, size and time of change of what is at a path.
pub(crate) fn identity_of(path: &CStr) -> Result<[u64; 4], Errno> {
    // SAFETY: a C string, and room for the answer.
    identity_by(|found| unsafe { libc::stat(path.as_ptr(), found) })
}

/// The same of an open file.
pub(crate) fn identity_of_file(file: &impl AsRawFd) -> Result<[u64; 4], Errno> {
    // SAFETY: room for the answer.
    identity_by(|found| unsafe { libc::fstat(file.as_raw_fd(), found) })
}

/// `ask` fills in what it is given when it answers 0.
fn identity_by(ask: impl FnOnce(*mut libc::stat) -> c_int) -> Result<[u64; 4], Errno> {
    let mut found = MaybeUninit::<libc::stat>::zeroed();
    done(ask(found.as_mut_ptr()))?;
    // SAFETY: all zero is a value of this struct, and so is what the kernel fills in.
    let found = unsafe { found.assume_init() };
    let time = (found.st_mtime as u64).wrapping_mul(1_000_000_000).wrapping_add(found.st_mtime_nsec as u64);
    Ok([found.st_dev, found.st_ino, found.st_size as u64, time])
}

/// Writes memory of this process, whatever it is used for, to a file.
///
/// # Safety
///
/// The memory is readable, and nobody changes it meanwhile.
pub(crate) unsafe fn write_memory(file: RawFd, start: usize, len: usize, offset: u64) -> Result<(), Errno> {
    let mut written = 0;
    while written < len {
        let from = (start + written) as *const c_void;
        // SAFETY: by the caller.
        match unsafe { libc::pwrite(file, from, len - written, (offset + written as u64) as i64) } {
            0 => return Err(libc::EIO),
            -1 if errno() == libc::EINTR => {}
            -1 => return Err(errno()),
            more => written += more as usize,
        }
    }
    Ok(())
}

/// Makes a file in memory that can be sealed, of no length yet.
pub(crate) fn make_file(name: &CStr) -> Result<RawFd, Errno> {
    const NOEXEC_SEAL: libc::c_uint = 8;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a C string.
    let make = |flags| done(unsafe { libc::memfd_create(name.as_ptr(), flags) });
    make(flags).or_else(|_| make(flags | NOEXEC_SEAL))
}

/// Sets a file's length.
pub(crate) fn set_len(file: RawFd, len: u64) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    done(unsafe { libc::ftruncate(file, len as i64) }).map(drop)
}

/// Whether this number is an open descriptor.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Descriptors have smaller numbers than this.
pub(crate) fn descriptors_max() -> RawFd {
    // SAFETY: no pointer is involved.
    RawFd::try_from(unsafe { libc::sysconf(libc::_SC_OPEN_MAX) }).unwrap_or(1024).clamp(16, 65_536)
}

/// Whether this process has a child, dead or alive.
pub(crate) fn has_children() -> bool {
    let options = libc::WNOHANG | libc::WEXITED | libc::WNOWAIT | libc::__WALL;
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    // SAFETY: fills `info`, which nobody reads.
    unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) == 0 }
}

/// Whether a timer of `setitimer` runs.
pub(crate) fn has_timer() -> bool {
    [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF].into_iter().any(|which| {
        let mut set = MaybeUninit::<libc::itimerval>::zeroed();
        // SAFETY: all zero is a value; the kernel fills it in.
        let set = unsafe {
            libc::syscall(libc::SYS_getitimer, which, set.as_mut_ptr());
            set.assume_init()
        };
        set.it_value.tv_sec != 0 || set.it_value.tv_usec != 0
    })
}

/// Where the thread's own memory is (`fs` on x86-64).
#[cfg(target_arch = "x86_64")]
pub(crate) fn thread_base() -> Result<u64, Errno> {
    let mut base = 0_u64;
    // SAFETY: writes one word.
    done(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) as c_int })?;
    Ok(base)
}

/// Where the thread's own memory is.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn thread_base() -> Result<u64, Errno> {
    Err(libc::ENOSYS)
}

/// What a signal does, in the kernel's own words: handler, flags, restorer, mask.
pub(crate) fn signal_action(number: usize) -> Result<[u64; 4], Errno> {
    let mut action = [0_u64; 4];
    // SAFETY: writes the four words of the kernel's `struct sigaction`.
    done(unsafe {
        libc::syscall(libc::SYS_rt_sigaction, number, ptr::null::<u64>(), action.as_mut_ptr(), 8) as c_int
    })?;
    Ok(action)
}

/// The alternative stack for signals, as its three words.
pub(crate) fn signal_stack() -> Result<[u64; 3], Errno> {
    let mut stack = [0_u64; 3];
    // SAFETY: writes a `stack_t`, which has three words.
    done(unsafe { libc::sigaltstack(ptr::null(), stack.as_mut_ptr().cast()) })?;
    Ok(stack)
}

/// The end of the heap, as the kernel has it.
pub(crate) fn heap_end() -> u64 {
    // SAFETY: 0 is refused, which tells the end.
    unsafe { libc::syscall(libc::SYS_brk, 0) as u64 }
}

/// Where the kernel keeps this thread's id for libc, and the list of its robust mutexes.
pub(crate) fn thread_words() -> Option<(u64, [u64; 2])> {
    let tid = super::tid_address()? as u64;
    let (head, len) = super::robust_list()?;
    Some((tid, [head as u64, len as u64]))
}

/// After an arrival: libc's word for this thread's id has the other process's.
pub(crate) fn renew_thread_id() {
    let mut address: *mut i32 = ptr::null_mut();
    // SAFETY: writes one pointer; what it points to is libc's word for this thread's id, which was named to the kernel on
    // the bridge.
    unsafe {
        if libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) == 0 && !address.is_null() {
            address.write(libc::syscall(libc::SYS_gettid) as i32);
        }
    }
}

/// Unmaps what an arrival came over.
pub(crate) fn take_down(bridge: super::switch::Bridge) {
    // SAFETY: it was made for the arrival, and nothing points into it.
    unsafe { libc::munmap(bridge.start as *mut c_void, bridge.len) };
}

/// The name of this thread, as `ps` shows it.
pub(crate) fn thread_name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    name
}

/// Gives this thread a name; the last byte is 0.
pub(crate) fn set_thread_name(name: &[u8; 16]) {
    // SAFETY: reads up to a zero byte, or 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}
