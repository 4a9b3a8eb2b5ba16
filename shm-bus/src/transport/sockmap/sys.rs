//! The unsafe parts of the sockmap transport: the program's arrays as memory, and one ioctl.
#![allow(unsafe_code, reason = "this transport's gate to map memory and system calls")]

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::sys::{Access, Cell, Mapping};

/// An array map's values, shared with the kernel program.
#[derive(Debug)]
pub(super) struct MappedArray<T> {
    mapping: Mapping,
    count: usize,
    values: PhantomData<T>,
}

impl<T: Cell> MappedArray<T> {
    /// Maps the array `fd` of `count` values of exactly the layout of `T` (a multiple of 8 bytes, as the kernel
    /// lays array values out).
    pub(super) fn new(fd: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 4096) };
        let mapping = Mapping::new(fd, (size_of::<T>() * count) as u64, Access::ReadWrite)?;
        Ok(Self { mapping, count, values: PhantomData })
    }
}

impl<T: Cell> Deref for MappedArray<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let start = self.mapping.address(0, self.mapping.len()).expect("the whole mapping");
        // SAFETY: `new` mapped `count` values, page-aligned, of a map whose size never changes; they are made of
        // atomics only (`Cell`), and the program changes them by atomic instructions or, where one writer
        // owns a field, by whole-word stores.
        unsafe { std::slice::from_raw_parts(start.cast().as_ptr(), self.count) }
    }
}

/// A gateway port's entry (`spry_ebpf_common::Port`), shared.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(super) struct PortCell {
    pub(super) claims: AtomicU64,
    pub(super) slot: AtomicU32,
    pub(super) connection: AtomicU32,
    reserved: [AtomicU64; 6],
}

/// One of the program's counters.
#[repr(transparent)]
#[derive(Debug, Default)]
pub(super) struct CounterCell(pub(super) AtomicU64);

/// A function's idle mask; the rest of the entry is `FunctionCell`'s business.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(super) struct MaskCell {
    pub(super) idle: AtomicU64,
    rest: [AtomicU64; 23],
}

const _: () = {
    use std::mem::offset_of;

    use spry_ebpf_common::{Function, Port};
    assert!(size_of::<PortCell>() == size_of::<Port>());
    assert!(offset_of!(PortCell, claims) == offset_of!(Port, claims));
    assert!(offset_of!(PortCell, slot) == offset_of!(Port, slot));
    assert!(offset_of!(PortCell, connection) == offset_of!(Port, connection));
    assert!(size_of::<MaskCell>() == size_of::<Function>());
    assert!(offset_of!(MaskCell, idle) == offset_of!(Function, idle));
};

// SAFETY: atomics only.
unsafe impl Cell for PortCell {}
// SAFETY: atomics only.
unsafe impl Cell for CounterCell {}
// SAFETY: atomics only.
unsafe impl Cell for MaskCell {}

/// Brings the loopback interface of the socket's network namespace up.
pub(super) fn bring_loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is a whole `ifreq` that outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over a descriptor that a system call has just returned.
pub(super) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass the result of the call that made the descriptor, so nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
