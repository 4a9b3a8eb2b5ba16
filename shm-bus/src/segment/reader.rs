//! Everybody else's side of a segment.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use memfd::FileSeal;

use super::{Keep, Region, SegmentError, check_size, seals};
use crate::sys::{Access, Mapping};

/// A segment that another process owns, mapped read-only. Bytes in it may change at any time.
#[derive(Debug)]
pub struct Reader {
    mapping: Mapping,
}

impl Reader {
    /// Maps a segment that must have `len` bytes and a sealed size. The fd isn't needed afterwards.
    ///
    /// Whether its owner has closed it to other writers is another question ([`require_sealed`]): the hub
    /// maps a segment before its owner has.
    pub fn map(fd: impl AsFd, len: u64) -> Result<Self, SegmentError> {
        check_size(fd.as_fd(), len)?;
        let mapping = Mapping::new(fd.as_fd(), len, Access::Read)
            .map_err(|source| SegmentError::Os { operation: "map", source })?;
        Ok(Self { mapping })
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> u64 {
        self.mapping.len()
    }

    /// A private copy of `len` bytes at `offset`. Nothing is allocated when they aren't there.
    pub fn copy(&self, offset: u64, len: u64) -> Result<Vec<u8>, SegmentError> {
        let range = self.mapping.range(offset, len).ok_or_else(|| self.beyond(offset, len))?;
        let mut bytes = vec![0; range.len()];
        self.copy_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out` with the bytes at `offset`.
    pub fn copy_into(&self, offset: u64, out: &mut [u8]) -> Result<(), SegmentError> {
        if self.mapping.copy_out(offset, out) { Ok(()) } else { Err(self.beyond(offset, out.len() as u64)) }
    }

    /// Bytes as they lie, keeping the segment mapped; see [`Region`] for what they are good for.
    pub fn region(self: &Arc<Self>, offset: u64, len: u64) -> Result<Region, SegmentError> {
        self.mapping.range(offset, len).ok_or_else(|| self.beyond(offset, len))?;
        Ok(Region { segment: Keep::Reader(Arc::clone(self)), offset, len })
    }

    /// Bytes as they lie, borrowed. The same warning as for [`Region`].
    pub fn slice(&self, offset: u64, len: u64) -> Result<&[u8], SegmentError> {
        self.mapping.slice(offset, len).ok_or_else(|| self.beyond(offset, len))
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn beyond(&self, offset: u64, len: u64) -> SegmentError {
        SegmentError::Range { offset, len, segment_len: self.len() }
    }
}

/// Checks that the owner of a segment has closed it: nobody can map it writable from now on, and nobody can
/// add or remove seals. To be asked when the owner says that it has.
pub fn require_sealed(fd: impl AsFd) -> Result<(), SegmentError> {
    let fd: BorrowedFd<'_> = fd.as_fd();
    let seals = seals(fd)?;
    if seals.contains(&FileSeal::SealFutureWrite) && seals.contains(&FileSeal::SealSeal) {
        Ok(())
    } else {
        Err(SegmentError::Seals { missing: "FUTURE_WRITE and SEAL" })
    }
}
