//! One side's page: the ring's words ([`crate::ring`]) and two of this transport.
//!
//! ```text
//! 0          64         128        192      196   256                       2304
//! ├ produced ┼ consumed ┼ sleeping ┼ closed ┼ cpu ┼ entries, 64 of 32 bytes ─┤
//! ```

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::ring::{ENTRIES, Page, WORDS};
use crate::segment::{Reader, SegmentError, Writer, page_len};
use crate::sys::Mapping;

const ENTRIES_AT: u64 = 256;
const ENTRY_LEN: u64 = WORDS as u64 * 8;
const _: () = assert!(ENTRIES_AT + ENTRIES as u64 * ENTRY_LEN <= 4096);

/// Makes a page, for one of the two sides to map writable.
#[cfg(feature = "hub")]
pub(super) fn make(label: &str) -> Result<OwnedFd, SegmentError> {
    crate::segment::create(label, page_len())
}

/// The page that this side writes.
#[derive(Debug)]
pub(super) struct Own(Writer);

/// The page that the other side writes.
#[derive(Debug)]
pub(super) struct Theirs(Reader);

impl Own {
    pub(super) fn map(fd: OwnedFd) -> Result<Self, SegmentError> {
        Ok(Self(Writer::map(fd, page_len())?))
    }
    #[cfg(feature = "hub")]
    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd()
    }
    /// Says on which CPU this side's last push was made.
    #[cfg(feature = "hub")]
    pub(super) fn set_cpu(&self, cpu: u32) {
        self.0.mapping().atomic_u32(196).store(cpu, Ordering::Relaxed);
    }
    /// Says that this side is done, and wakes the other. The counts are changed too, so that who is about to
    /// wait for one doesn't; nobody who has seen `closed` looks at the rings again.
    #[cfg(feature = "hub")]
    pub(super) fn close(&self) {
        self.0.mapping().atomic_u32(192).store(1, Ordering::Relaxed);
        for count in [self.produced(), self.consumed()] {
            // SYNC(closed): whoever sees the new count sees `closed`.
            count.fetch_xor(1 << 31, Ordering::Release);
            crate::sys::futex_wake(count);
        }
    }
}

impl Theirs {
    pub(super) fn map(fd: impl std::os::fd::AsFd) -> Result<Self, SegmentError> {
        Ok(Self(Reader::map(fd, page_len())?))
    }
    /// Whether the other side is done with this ring.
    pub(super) fn closed(&self) -> bool {
        let closed = self.0.mapping().atomic_u32(192).load(Ordering::Relaxed) != 0;
        // SYNC(closed): pairs with the Release in `Own::close`.
        fence(Ordering::Acquire);
        closed
    }
    /// Where the other side's last push was made.
    pub(super) fn cpu(&self) -> u32 {
        self.0.mapping().atomic_u32(196).load(Ordering::Relaxed)
    }
}

/// A page of either side, as memory.
trait Mapped {
    fn mapping(&self) -> &Mapping;
}

impl Mapped for Own {
    fn mapping(&self) -> &Mapping {
        self.0.mapping()
    }
}

impl Mapped for Theirs {
    fn mapping(&self) -> &Mapping {
        self.0.mapping()
    }
}

#[allow(private_bounds, reason = "the two sides' pages, and no others")]
impl<M: Mapped> Page for M {
    fn produced(&self) -> &AtomicU32 {
        self.mapping().atomic_u32(0)
    }
    fn consumed(&self) -> &AtomicU32 {
        self.mapping().atomic_u32(64)
    }
    fn sleeping(&self) -> &AtomicU32 {
        self.mapping().atomic_u32(128)
    }
    fn word(&self, entry: u32, index: usize) -> &AtomicU64 {
        self.mapping().atomic_u64(ENTRIES_AT + u64::from(entry) * ENTRY_LEN + index as u64 * 8)
    }
}
