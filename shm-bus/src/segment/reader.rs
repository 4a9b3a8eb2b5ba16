//! Everybody else's side of a segment.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use nix::fcntl::SealFlag;

use super::{Keep, Region, SegmentError, check_size, seals};
use crate::sys::{Access, Mapping};

/// A region of an unmapped segment up to so many bytes is copied; for a larger one the segment is mapped.
const COPIED_MAX: u64 = 64 * 1024;

/// A segment that another process owns, to be read. Bytes in it may change at any time.
#[derive(Debug)]
pub struct Reader {
    len: u64,
    mapping: OnceLock<Mapping>,
    /// Where to read while it isn't mapped.
    file: Option<File>,
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
        Ok(Self { len, mapping: OnceLock::from(mapping), file: None })
    }

    /// For a segment that is read little and once, such as the outbox of an instance that answers once: it isn't mapped
    /// unless something large is read. Taking a mapping away interrupts every core that this process runs
    /// on, which costs more than reading a little by a system call.
    pub fn unmapped(fd: OwnedFd, len: u64) -> Result<Self, SegmentError> {
        check_size(fd.as_fd(), len)?;
        Ok(Self { len, mapping: OnceLock::new(), file: Some(fd.into()) })
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A private copy of `len` bytes at `offset`. Nothing is allocated when they aren't there.
    pub fn copy(&self, offset: u64, len: u64) -> Result<Vec<u8>, SegmentError> {
        self.check_range(offset, len)?;
        let mut bytes = vec![0; len as usize];
        self.copy_into(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out` with the bytes at `offset`.
    pub fn copy_into(&self, offset: u64, out: &mut [u8]) -> Result<(), SegmentError> {
        self.check_range(offset, out.len() as u64)?;
        match (self.mapping.get(), &self.file) {
            (None, Some(file)) => {
                let read = file.read_exact_at(out, offset);
                read.map_err(|source| SegmentError::Os { operation: "read", source })
            }
            _ if self.mapped()?.copy_out(offset, out) => Ok(()),
            _ => Err(self.beyond(offset, out.len() as u64)),
        }
    }

    /// Bytes as they lie, keeping the segment mapped; see [`Region`] for what they are good for.
    pub fn region(self: &Arc<Self>, offset: u64, len: u64) -> Result<Region, SegmentError> {
        self.check_range(offset, len)?;
        if self.mapping.get().is_none() && len <= COPIED_MAX {
            let copy = self.copy(offset, len)?;
            return Ok(Region { segment: Keep::Copy(copy), offset, len });
        }
        self.mapped()?;
        Ok(Region { segment: Keep::Reader(Arc::clone(self)), offset, len })
    }

    /// Bytes as they lie, borrowed. The same warning as for [`Region`].
    #[inline]
    pub fn slice(&self, offset: u64, len: u64) -> Result<&[u8], SegmentError> {
        self.mapped()?.slice(offset, len).ok_or_else(|| self.beyond(offset, len))
    }

    /// The mapping, if there is one.
    pub(crate) fn mapping_now(&self) -> Option<&Mapping> {
        self.mapping.get()
    }

    /// The mapping of a segment that was mapped from the start ([`Self::map`]), or is by now.
    pub(crate) fn mapping(&self) -> &Mapping {
        self.mapping.get().expect("nobody asks for the mapping of a segment that was never mapped")
    }

    /// The mapping, made now if there is none.
    #[inline]
    fn mapped(&self) -> Result<&Mapping, SegmentError> {
        match self.mapping.get() {
            Some(mapping) => Ok(mapping),
            None => self.map_now(),
        }
    }

    #[cold]
    fn map_now(&self) -> Result<&Mapping, SegmentError> {
        if let (None, Some(file)) = (self.mapping.get(), &self.file) {
            let made = Mapping::new(file.as_fd(), self.len, Access::Read);
            // Two at once: one stays, the other is taken away again.
            drop(self.mapping.set(made.map_err(|source| SegmentError::Os { operation: "map", source })?));
        }
        self.mapping.get().ok_or(SegmentError::Range { offset: 0, len: 0, segment_len: self.len })
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), SegmentError> {
        let within = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if within && usize::try_from(len).is_ok() { Ok(()) } else { Err(self.beyond(offset, len)) }
    }

    #[cold]
    fn beyond(&self, offset: u64, len: u64) -> SegmentError {
        SegmentError::Range { offset, len, segment_len: self.len() }
    }
}

/// Checks that the owner of a segment has closed it: nobody can map it writable from now on, and nobody can
/// add or remove seals. To be asked when the owner says that it has.
pub fn require_sealed(fd: impl AsFd) -> Result<(), SegmentError> {
    let fd: BorrowedFd<'_> = fd.as_fd();
    if seals(fd)?.contains(SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SEAL) {
        Ok(())
    } else {
        Err(SegmentError::Seals { missing: "FUTURE_WRITE and SEAL" })
    }
}
