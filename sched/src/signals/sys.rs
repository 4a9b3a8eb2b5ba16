//! A BPF array in this process's memory.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use spry_ebpf_common::signals::Signal;

/// What may lie in memory that the kernel's programs write, too: atomics only, of any bit pattern.
///
/// # Safety
/// Every field is an atomic integer.
pub(super) unsafe trait Cell {}

/// [`Signal`] as it lies in shared memory.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(super) struct SignalCell {
    pub(super) cpu_ns: AtomicU64,
    pub(super) wait_ns: AtomicU64,
    pub(super) blocked_ns: AtomicU64,
    pub(super) since_ns: AtomicU64,
    pub(super) state: AtomicU64,
    pub(super) watched: AtomicU64,
    pub(super) owner: AtomicU64,
    pub(super) switches: AtomicU64,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SignalCell>() == size_of::<Signal>());
    assert!(offset_of!(SignalCell, state) == offset_of!(Signal, state));
    assert!(offset_of!(SignalCell, watched) == offset_of!(Signal, watched));
    assert!(offset_of!(SignalCell, owner) == offset_of!(Signal, owner));
    assert!(offset_of!(SignalCell, switches) == offset_of!(Signal, switches));
};

// SAFETY: atomics only.
unsafe impl Cell for SignalCell {}
// SAFETY: atomics only.
unsafe impl Cell for AtomicU64 {}

/// A mapped array. The kernel keeps the map while it is mapped.
#[derive(Debug)]
pub(super) struct Mapped<T: Cell> {
    base: NonNull<T>,
    count: usize,
    cells: PhantomData<T>,
}

// SAFETY: shared memory of atomics, unmapped only when the last owner goes.
unsafe impl<T: Cell> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Cell> Sync for Mapped<T> {}

impl<T: Cell> Mapped<T> {
    /// Maps `count` entries of an array of that type.
    pub(super) fn new(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let len = count * size_of::<T>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, count, cells: PhantomData })
    }

    /// One entry.
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        // SAFETY: within the mapping, which lives as long as `self`; all bit patterns are valid, all accesses atomic.
        (index < self.count).then(|| unsafe { self.base.add(index).as_ref() })
    }
}

impl<T: Cell> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing borrows any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}

/// `CLOCK_MONOTONIC`, as the kernel's programs have it.
pub(super) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Another descriptor for what `fd`, which the caller holds open, stands for.
pub(super) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the caller holds it open.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}
