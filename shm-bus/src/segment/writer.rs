//! The owner's side of a segment.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};

use super::{Keep, Region, SegmentError, check_size};
use crate::sys::{Access, Mapping};

/// A segment that this process owns: its only writer, for ever.
///
/// Other processes can only read. Within this process several threads may write at once, as long as they
/// write different blocks; the allocator sees to that by handing out each block once. (Two threads that write
/// the same bytes leave a mixture there, and nothing worse.)
#[derive(Debug)]
pub struct Writer {
    mapping: Mapping,
    fd: OwnedFd,
}

impl Writer {
    /// Maps a segment of `len` bytes writable, then seals it so that nobody else ever can.
    /// Refused when it isn't of that size, or sealed by another owner already.
    pub fn map(fd: OwnedFd, len: u64) -> Result<Self, SegmentError> {
        check_size(fd.as_fd(), len)?;
        let mapping = Mapping::new(fd.as_fd(), len, Access::ReadWrite)
            .map_err(|source| SegmentError::Os { operation: "map", source })?;
        let seals = SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| SegmentError::Os { operation: "seal", source: errno.into() })?;
        Ok(Self { mapping, fd })
    }

    /// The file, to be handed to readers.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> u64 {
        self.mapping.len()
    }

    /// Writes `bytes` at `offset`: all of them, or (when they don't fit) none.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SegmentError> {
        if self.mapping.copy_in(offset, bytes) {
            Ok(())
        } else {
            Err(self.beyond(offset, bytes.len() as u64))
        }
    }

    /// Fills `out` with the bytes at `offset`.
    pub fn copy_into(&self, offset: u64, out: &mut [u8]) -> Result<(), SegmentError> {
        if self.mapping.copy_out(offset, out) { Ok(()) } else { Err(self.beyond(offset, out.len() as u64)) }
    }

    /// Bytes to be filled in place.
    pub fn slice_mut(&mut self, offset: u64, len: u64) -> Result<&mut [u8], SegmentError> {
        let beyond = self.beyond(offset, len);
        self.mapping.slice_mut(offset, len).ok_or(beyond)
    }

    /// The address of `len` bytes at `offset`, for code in other languages that fills a block in place. It
    /// is valid while this `Writer` lives; nobody else may use the block meanwhile.
    pub fn address(&self, offset: u64, len: u64) -> Result<NonNull<u8>, SegmentError> {
        self.mapping.address(offset, len).ok_or_else(|| self.beyond(offset, len))
    }

    /// Bytes as they lie, keeping the segment mapped. Whoever owns the block must not write to it while the
    /// region lives.
    pub fn region(self: &Arc<Self>, offset: u64, len: u64) -> Result<Region, SegmentError> {
        self.mapping.range(offset, len).ok_or_else(|| self.beyond(offset, len))?;
        Ok(Region { segment: Keep::Writer(Arc::clone(self)), offset, len })
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn beyond(&self, offset: u64, len: u64) -> SegmentError {
        SegmentError::Range { offset, len, segment_len: self.len() }
    }
}
