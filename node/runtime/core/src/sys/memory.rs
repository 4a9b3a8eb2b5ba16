//! System calls on this process's own memory, made while that memory is being exchanged.
//!
//! [`copy_and_exchange`] must not write to anything but its own stack: a byte that is written to a mapping after it was
//! copied and before it is exchanged is lost. So it calls the kernel by itself (the C library keeps `errno` in
//! memory that is being frozen), allocates nothing, and the caller has blocked all signals.

use std::arch::asm;
use std::ffi::{c_int, c_ulong};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::check;

/// Bytes that are there twice at most while they are exchanged.
pub(crate) const CHUNK: usize = 2 << 20;
/// Pages of the smallest size in a chunk.
const CHUNK_PAGES: usize = CHUNK / 4096;

/// A system call without the C library: the kernel's answer, an errno negated.
///
/// # Safety
///
/// As for the call itself.
unsafe fn raw(number: libc::c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the kernel changes what is declared as changed, and what the call says, for which the caller vouches.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f, in("x8") number as isize,
            options(nostack),
        );
    }
    result
}

fn answer(result: isize) -> Result<usize, i32> {
    if result < 0 { Err(-result as i32) } else { Ok(result as usize) }
}

/// A file in memory of this length that can be sealed. It isn't charged until it is written to.
pub(crate) fn frozen_file(len: u64) -> io::Result<OwnedFd> {
    const NOEXEC_SEAL: libc::c_uint = 8;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; the result is looked at.
    let make = |flags| check(unsafe { libc::memfd_create(c"spry-frozen".as_ptr(), flags) });
    // Where the administrator wants such files not to be executable (vm.memfd_noexec), it must be said.
    let fd = make(flags).or_else(|_| make(flags | NOEXEC_SEAL))?;
    // SAFETY: it was made just now.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = i64::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: no memory is involved.
    check(unsafe { libc::ftruncate(fd, len) })?;
    Ok(file)
}

/// Nobody can change the file any more, whoever still has it open.
pub(crate) fn seal(file: &OwnedFd) -> io::Result<()> {
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no memory is involved.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// Runs `act` with all signals blocked.
pub(crate) fn without_signals<R>(act: impl FnOnce() -> R) -> R {
    let (mut all, mut before) = (std::mem::MaybeUninit::uninit(), std::mem::MaybeUninit::uninit());
    // SAFETY: both sets are written before they are read: the first by `sigfillset`, the second by the kernel.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let result = act();
        libc::sigprocmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        result
    }
}

/// The bytes of words.
pub(crate) fn as_bytes(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: bytes have no other alignment and no invalid values; the borrow goes on.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), std::mem::size_of_val(words)) }
}

/// An address on the stack in use.
pub(crate) fn stack_address() -> usize {
    let here = 0_u8;
    ptr::from_ref(&here) as usize
}

pub(crate) fn page_size() -> usize {
    // SAFETY: no pointer is involved.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Gives what `malloc` holds for nobody back to the kernel.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: works on malloc's own lists only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Which pages of this range of anonymous memory are there: a byte per page.
pub(crate) fn touched(range: &Range<usize>) -> io::Result<Vec<u8>> {
    let mut pages = vec![0; range.len().div_ceil(page_size())];
    // SAFETY: `pages` has a byte for every page of the range; the range itself is only looked up.
    check(unsafe { libc::mincore(range.start as *mut _, range.len(), pages.as_mut_ptr()) })?;
    Ok(pages)
}

/// Makes what can only be read executable as well. Where that isn't allowed, it stays as it is.
pub(crate) fn make_executable(range: &Range<usize>) {
    // SAFETY: what could be read still can, and nothing more can be written to.
    unsafe { libc::mprotect(range.start as *mut _, range.len(), libc::PROT_READ | libc::PROT_EXEC) };
}

/// What is to be exchanged, and for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) protection: i32,
    pub(crate) no_reserve: bool,
    /// What isn't there by `mincore` and reads as zeros was never touched: it stays a hole in the file.
    pub(crate) has_holes: bool,
    pub(crate) file: RawFd,
    pub(crate) offset: u64,
}

/// Copies a range of this process's private memory to a file and maps the file in its place, privately: what is to be
/// read there stays the same. Done piece by piece; returns the bytes that were exchanged, and why not all were.
///
/// # Safety
///
/// The range is mapped, private, readable, and not the stack; no other thread runs, and all signals are blocked. The
/// place in the file is this range's alone.
pub(crate) unsafe fn copy_and_exchange(wanted: Exchange, page: usize) -> (usize, Option<i32>) {
    let mut done = 0;
    while done < wanted.len {
        let len = CHUNK.min(wanted.len - done);
        // SAFETY: part of the caller's range.
        if let Err(errno) = unsafe { exchange_chunk(&wanted, done, len, page) } {
            return (done, Some(errno));
        }
        done += len;
    }
    // Once more as a whole: pieces that end within a page table leave it behind, empty, and forks would copy it.
    // SAFETY: every byte of the range is the file's by now.
    match unsafe { map(&wanted, 0, wanted.len) } {
        Ok(()) => (done, None),
        Err(errno) => (done, Some(errno)),
    }
}

/// Maps a part of the file in the place of what it is a copy of.
///
/// # Safety
///
/// As for [`copy_and_exchange`]; the part has been copied.
unsafe fn map(wanted: &Exchange, at: usize, len: usize) -> Result<(), i32> {
    let start = wanted.start + at;
    let offset = wanted.offset + at as u64;
    let reserve = if wanted.no_reserve { libc::MAP_NORESERVE } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | reserve;
    let arguments =
        [start, len, wanted.protection as usize, flags as usize, wanted.file as usize, offset as usize];
    // SAFETY: what is mapped over is the caller's range, and the file has its bytes.
    let Err(errno) = answer(unsafe { raw(libc::SYS_mmap, arguments) }) else { return Ok(()) };
    // Old kernels unmap first, and may fail then. Going on without that memory isn't possible.
    let mut page = 0_u8;
    let look = [start, 1, ptr::from_mut(&mut page) as usize, 0, 0, 0];
    // SAFETY: `page` has room for the answer about one page; a range that isn't mapped is the answer that is looked for.
    if unsafe { raw(libc::SYS_mincore, look) } == -(libc::ENOMEM as isize) {
        super::exit_now(70);
    }
    Err(errno)
}

/// # Safety
///
/// As for [`copy_and_exchange`].
unsafe fn exchange_chunk(wanted: &Exchange, at: usize, len: usize, page: usize) -> Result<(), i32> {
    let start = wanted.start + at;
    let offset = wanted.offset + at as u64;
    let mut pages = [1_u8; CHUNK_PAGES];
    let count = len / page;
    if wanted.has_holes {
        // SAFETY: `pages` has room for a byte per page of a chunk.
        answer(unsafe { raw(libc::SYS_mincore, [start, len, pages.as_mut_ptr() as usize, 0, 0, 0]) })?;
    }
    let mut first = 0;
    while first < count {
        let mut end = first;
        // What the kernel has put to swap isn't there either.
        // SAFETY: pages of the caller's range.
        while end < count && (pages[end] & 1 != 0 || unsafe { has_bytes(start + end * page, page) }) {
            end += 1;
        }
        if end > first {
            // SAFETY: reads memory of the caller's range.
            unsafe {
                write_all(
                    wanted.file,
                    start + first * page,
                    (end - first) * page,
                    offset + (first * page) as u64,
                )
            }?;
        }
        first = end + 1;
    }
    // SAFETY: this part has been copied, but for what was never touched, which reads as zeros in the file, too.
    unsafe { map(wanted, at, len) }
}

/// Whether anything but zeros is read there. Writes to nothing but its own stack.
///
/// # Safety
///
/// The page is readable.
unsafe fn has_bytes(at: usize, page: usize) -> bool {
    let mut words = (at..at + page).step_by(size_of::<u64>());
    // SAFETY: by the caller; a page's words are aligned.
    words.any(|word| unsafe { (word as *const u64).read_volatile() } != 0)
}

/// # Safety
///
/// The memory is readable.
unsafe fn write_all(file: RawFd, start: usize, len: usize, offset: u64) -> Result<(), i32> {
    let mut done = 0;
    while done < len {
        let arguments = [file as usize, start + done, len - done, offset as usize + done, 0, 0];
        // SAFETY: by the caller.
        match answer(unsafe { raw(libc::SYS_pwrite64, arguments) }) {
            Ok(0) => return Err(libc::EIO),
            Ok(written) => done += written,
            Err(libc::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Makes this range, which begins and ends at borders of huge pages, of huge pages, now.
pub(crate) fn collapse(range: &Range<usize>) -> io::Result<()> {
    const COLLAPSE: c_int = 25;
    let start = range.start as *mut _;
    // SAFETY: changes how the range is mapped, and not what is read there.
    check(unsafe { libc::madvise(start, range.len(), libc::MADV_HUGEPAGE) })?;
    // SAFETY: the same.
    check(unsafe { libc::madvise(start, range.len(), COLLAPSE) }).map(drop)
}

/// Whether `MADV_DONTNEED` fails wherever it is asked for, because a filter refuses it.
pub(crate) fn is_never_emptied() -> bool {
    // SAFETY: an empty range: nothing but a filter has anything against it.
    unsafe { libc::madvise(ptr::null_mut(), 0, libc::MADV_DONTNEED) != 0 }
}

/// Adds a filter on system calls to what filters them already. It binds this process and all forks of it.
pub(crate) fn add_filter(program: &mut [libc::sock_filter]) -> io::Result<()> {
    // SAFETY: no pointer is involved. (The sandbox has done it already.)
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let mode: c_ulong = libc::SECCOMP_SET_MODE_FILTER.into();
    // SAFETY: the kernel copies the program, which has that length.
    check(unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const filter) as c_int }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_byte_keeps_a_page_from_being_a_hole() {
        #[repr(align(4096))]
        struct Pages([u8; 8192]);
        let mut pages = Box::new(Pages([0; 8192]));
        let at = pages.0.as_ptr() as usize;
        // SAFETY: both pages are the box's.
        let both = || unsafe { [has_bytes(at, 4096), has_bytes(at + 4096, 4096)] };
        assert_eq!(both(), [false, false]);
        pages.0[4096] = 1;
        assert_eq!(both(), [false, true]);
        (pages.0[4096], pages.0[4095]) = (0, 1);
        assert_eq!(both(), [true, false]);
    }
}
