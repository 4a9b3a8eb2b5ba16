//! Waiting for futexes through io_uring: many at once, with one fd that becomes readable.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicU32;

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, Probe, opcode};
use parking_lot::Mutex;

/// `FUTEX2_SIZE_U32`, and not private: the word is shared with another process.
const FUTEX_FLAGS: u32 = 2;
const MATCH_ANY: u64 = libc::FUTEX_BITSET_MATCH_ANY as u32 as u64;
/// The user data of what reports nothing.
const SILENT: u64 = u64::MAX;
/// Submissions are handed over one by one, so few are needed; completions come in bursts.
const SUBMISSIONS: u32 = 16;
const COMPLETIONS: u32 = 256;

/// A ring of futex waits. Any thread may add and take away; they take turns.
pub(crate) struct FutexWaits {
    ring: Mutex<IoUring>,
    /// The ring's own; `IoUring` closes it when it is dropped, with this value.
    fd: std::os::fd::RawFd,
}

impl FutexWaits {
    /// Fails where the kernel has no io_uring, or forbids it, or it is older than 6.7.
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::FutexWait::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let fd = ring.as_raw_fd();
        Ok(Self { ring: Mutex::new(ring), fd })
    }

    /// Adds a wait that completes when `word` is woken, or at once if it isn't `expected` any more.
    /// `key` says which; not `u64::MAX`.
    pub(crate) fn add(&self, word: &AtomicU32, expected: u32, key: u64) -> io::Result<()> {
        let wait = opcode::FutexWait::new(word.as_ptr(), expected.into(), MATCH_ANY, FUTEX_FLAGS);
        self.submit(&wait.build().user_data(key))
    }

    /// Takes a wait away, if it is still there. Its completion, if any, comes as usual.
    pub(crate) fn remove(&self, key: u64) -> io::Result<()> {
        self.submit(&opcode::AsyncCancel::new(key).build().flags(Flags::SKIP_SUCCESS).user_data(SILENT))
    }

    /// Calls `done` with the key of each wait that has completed, for whatever reason.
    pub(crate) fn completed(&self, mut done: impl FnMut(u64)) -> io::Result<()> {
        let mut ring = self.ring.lock();
        if ring.submission().cq_overflow() {
            // What didn't fit waits in the kernel; any call brings it in.
            ring.submitter().submit_and_wait(0)?;
        }
        ring.completion().map(|entry| entry.user_data()).filter(|key| *key != SILENT).for_each(&mut done);
        Ok(())
    }

    fn submit(&self, entry: &Entry) -> io::Result<()> {
        let mut ring = self.ring.lock();
        // SAFETY: a futex wait reads its word while it is submitted, in the call below, and remembers the
        // page afterwards, not the address. `word` is alive during `add`. The other operation has no pointers.
        unsafe { ring.submission().push(entry) }
            .map_err(|_| io::Error::other("the submission queue is full"))?;
        loop {
            match ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done.map(drop),
            }
        }
    }
}

impl AsFd for FutexWaits {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as the ring, which lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}
