//! The crate's gate to memory mappings and raw system calls; everything outside it is safe Rust
//! (the sockmap transport has a gate of its own for the kernel program).
//!
//! A [`Mapping`] is shared memory: what lies there may be changed at any moment by whoever may write it.
//! So its accessors copy, or give atomics; the two that give slices say what that means.
#![allow(unsafe_code, reason = "the crate's gate to mappings and system calls")]

#[cfg(feature = "hub")]
pub(crate) mod uring;

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a page on this machine (4, 16 or 64 KiB).
pub(crate) fn page_len() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let len = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(len).ok().filter(|len| len.is_power_of_two()).unwrap_or(4096)
}

/// What the pages of a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// A shared mapping of a whole file, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    access: Access,
}

// SAFETY: a mapping is plain memory, usable from every thread; nothing in it is bound to one. Accesses
// are atomics and raw copies (or slices, whose callers answer for them).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `fd`. The caller has made sure that the file is at least that long
    /// and can't shrink (sealed), so that no access can fault.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: u64, access: Access) -> io::Result<Self> {
        let whole = usize::try_from(len).ok().and_then(NonZeroUsize::new);
        let whole = whole.ok_or(io::ErrorKind::InvalidInput)?;
        let prot = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: no address is asked for, so nothing that is mapped already is replaced.
        let start = unsafe { mmap(None, whole, prot, MapFlags::MAP_SHARED, fd, 0) }?;
        Ok(Self { start: start.cast(), len: whole.get(), access })
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }

    /// `offset..offset + len`, if that lies within the mapping, whatever the numbers are.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Option<Range<usize>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len())?;
        // Both fit: they are at most `self.len`, a usize.
        Some(offset as usize..end as usize)
    }

    /// Copies bytes out; false (and nothing copied) when they don't lie within the mapping.
    pub(crate) fn copy_out(&self, offset: u64, out: &mut [u8]) -> bool {
        let Some(range) = self.range(offset, out.len() as u64) else { return false };
        // SAFETY: `range` lies within the mapping, which lives as long as `self`; `out` is a private
        // buffer elsewhere. The bytes may change meanwhile; then old, new or mixed bytes are copied.
        let from = unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) };
        crate::copy::copy(out, from);
        true
    }

    /// Copies bytes in; false (and nothing copied) when they don't fit or the mapping is read-only.
    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(range) = self.range(offset, bytes.len() as u64) else { return false };
        if self.access != Access::ReadWrite {
            return false;
        }
        let own = self.start.as_ptr() as usize..self.start.as_ptr() as usize + self.len;
        if own.contains(&(bytes.as_ptr() as usize)) {
            // SAFETY: `range` lies within the mapping, which is writable. `ptr::copy` allows that `bytes`, a part
            // of the same segment (a pass-through), overlaps it.
            unsafe { std::ptr::copy(bytes.as_ptr(), self.start.as_ptr().add(range.start), bytes.len()) };
            return true;
        }
        // SAFETY: as above, and `bytes` lies elsewhere. Threads of this process write disjoint blocks.
        let to = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) };
        crate::copy::copy(to, bytes);
        true
    }

    /// Bytes as they lie, or `None` when they are not within the mapping.
    ///
    /// Another process may change them under the slice. Rust calls that a data race; what the compiler
    /// can make of it is that two reads of one byte differ. So callers only copy such bytes on (to a
    /// socket, a file), and decide nothing by them without a private copy.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let range = self.range(offset, len)?;
        // SAFETY: within the mapping, which outlives the slice; every byte of a mapped file is initialised.
        // On changes by others see above.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) })
    }

    /// Bytes to be written in place. The exclusive borrow keeps this process's other accesses away; other
    /// processes only read.
    pub(crate) fn slice_mut(&mut self, offset: u64, len: u64) -> Option<&mut [u8]> {
        let range = self.range(offset, len).filter(|_| self.access == Access::ReadWrite)?;
        // SAFETY: within the mapping, writable, borrowed exclusively.
        Some(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) })
    }

    /// The address of `len` bytes at `offset`, for code in other languages.
    pub(crate) fn address(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        let range = self.range(offset, len)?;
        // SAFETY: within the mapping.
        Some(unsafe { self.start.add(range.start) })
    }

    /// The aligned word at `offset`.
    ///
    /// # Panics
    /// When it isn't aligned or within the mapping: offsets of words are constants, never a peer's.
    pub(crate) fn atomic_u32(&self, offset: u64) -> &AtomicU32 {
        let range = self.range(offset, 4).expect("a word within the mapping");
        assert!(range.start.is_multiple_of(4));
        // SAFETY: within the mapping and aligned (mappings start at a page). All accesses to such words
        // are atomic, in every process. In read-only mappings callers only load, relaxed.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(range.start).cast()) }
    }

    /// The aligned double word at `offset`; as [`Self::atomic_u32`].
    pub(crate) fn atomic_u64(&self, offset: u64) -> &AtomicU64 {
        let range = self.range(offset, 8).expect("a word within the mapping");
        assert!(range.start.is_multiple_of(8));
        // SAFETY: as in `atomic_u32`.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(range.start).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; every borrow of it has ended.
        let unmapped = unsafe { munmap(self.start.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping: {unmapped:?}");
    }
}

/// `count` values of shared cells, all zero, in memory that is used page by page as it is touched.
#[cfg(feature = "hub")]
#[derive(Debug)]
pub(crate) struct Zeroed<T> {
    start: NonNull<T>,
    count: usize,
}

/// A type of atomics only: every bit pattern is a value, and sharing it is sound.
///
/// # Safety
/// That it is one.
#[cfg(feature = "hub")]
pub(crate) unsafe trait Cell: Sync {}

#[cfg(feature = "hub")]
// SAFETY: atomics only.
unsafe impl Cell for crate::transport::table::SlotCell {}
#[cfg(feature = "hub")]
// SAFETY: atomics only.
unsafe impl Cell for crate::transport::table::FunctionCell {}

#[cfg(feature = "hub")]
// SAFETY: atomics only.
unsafe impl Cell for crate::transport::table::RouteCell {}
#[cfg(feature = "hub")]
// SAFETY: atomics only.
unsafe impl Cell for crate::transport::table::TrailCell {}

#[cfg(feature = "hub")]
// SAFETY: the memory belongs to this value, and its cells may be shared by all threads.
unsafe impl<T: Cell> Send for Zeroed<T> {}
#[cfg(feature = "hub")]
// SAFETY: as above.
unsafe impl<T: Cell> Sync for Zeroed<T> {}

#[cfg(feature = "hub")]
impl<T: Cell> Zeroed<T> {
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        const { assert!(align_of::<T>() <= 4096) };
        let len = count.checked_mul(size_of::<T>()).and_then(NonZeroUsize::new);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { nix::sys::mman::mmap_anonymous(None, len, prot, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { start: start.cast(), count })
    }
}

#[cfg(feature = "hub")]
impl<T> std::ops::Deref for Zeroed<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `new` mapped `count` values at `start`, page-aligned; zero bytes are values (`Cell`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

#[cfg(feature = "hub")]
impl<T> Drop for Zeroed<T> {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped.
        let unmapped = unsafe { munmap(self.start.cast(), self.count * size_of::<T>()) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping: {unmapped:?}");
    }
}

/// Sleeps while `word` is `expected`, until it is woken, a signal comes, or `timeout` is over; the caller
/// looks at its condition again, whichever it was.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: std::time::Duration) {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos() as _,
    };
    // SAFETY: the word and the timeout are alive during the call; the kernel only reads them.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, &raw const timeout);
    }
}

/// Wakes everybody who waits for `word`, in whatever process.
pub(crate) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is alive during the call; the kernel uses its address only.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// The CPU that this thread runs on (it may be another one by the time that the caller looks).
pub(crate) fn current_cpu() -> u32 {
    // SAFETY: no preconditions.
    let cpu = unsafe { libc::sched_getcpu() };
    u32::try_from(cpu).unwrap_or(0)
}

/// Now, in nanoseconds of `CLOCK_MONOTONIC`: the clock that the kernel program reads.
#[cfg(feature = "hub")]
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a whole `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
