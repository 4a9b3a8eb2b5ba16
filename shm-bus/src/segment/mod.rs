//! Segments: shared memory with exactly one writer.
//!
//! A segment is a memfd. The hub makes it at its final size and seals that size at once ([`create`]), so no
//! mapping of it can ever fault with SIGBUS. Its owner maps it writable and then seals it against any other
//! writable mapping ([`Writer::map`]). Everybody else gets the fd and can only read ([`Reader::map`]).
//!
//! ```text
//!   create ── SHRINK|GROW ──► owner: mmap read-write ── FUTURE_WRITE|SEAL ──► others: mmap read-only
//! ```
//!
//! Readers don't trust the owner: offsets and lengths are checked against the mapping, whatever they are,
//! and bytes may change while they are read. [`Reader::copy`] makes a private copy, which is what anything
//! is decided by. A [`Region`] gives the bytes as they lie, for bodies that are only passed on: changing
//! them there garbles the owner's own message and nothing else.
//!
//! What this module doesn't do: say which parts are in use ([`crate::alloc`] does, in private memory), or
//! who may see a segment (the hub hands out the fds).

mod reader;
mod table;
mod writer;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use memfd::{FileSeal, MemfdOptions};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

pub use reader::{Reader, require_sealed};
pub use table::{NameError, Table};
pub use writer::Writer;

/// How descriptors name a segment: a slot of the hub's table, and which incarnation of that slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentName {
    /// `Descriptor::segment`.
    pub id: u32,
    /// `Descriptor::generation`.
    pub generation: u32,
}

/// Why a segment can't be made, mapped or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// A system call failed.
    #[error("{operation} a segment: {source}")]
    Os {
        /// What was being done, e.g. `"map"`.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The length is 0, not a multiple of the page size, or more than descriptors can address.
    #[error("a segment can't have {len} bytes: it takes 1 to {} pages of {page_len}", (u32::MAX as u64) / page_len)]
    Length {
        /// What was asked for.
        len: u64,
        /// Bytes of a page here.
        page_len: u64,
    },
    /// The file has another size than its owner said.
    #[error("the segment has {is} bytes, not {expected}")]
    Size {
        /// What was expected.
        expected: u64,
        /// What the file has.
        is: u64,
    },
    /// The file is no memfd, or lacks seals that it must have.
    #[error("the segment lacks the seals {missing}")]
    Seals {
        /// Which.
        missing: &'static str,
    },
    /// The bytes asked for don't lie within the segment.
    #[error("{len} bytes at {offset} are not within a segment of {segment_len}")]
    Range {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Bytes of the segment.
        segment_len: u64,
    },
}

/// Bytes of a page on this machine; segments are whole pages.
pub fn page_len() -> u64 {
    crate::sys::page_len()
}

/// Makes a segment of `len` bytes (whole pages, all zero, no memory used before it is written) that can't
/// change its size any more. `label` shows up in `/proc/PID/maps` and `/proc/PID/fd`.
pub fn create(label: &str, len: u64) -> Result<OwnedFd, SegmentError> {
    let page_len = page_len();
    if len == 0 || !len.is_multiple_of(page_len) || len > u64::from(u32::MAX) {
        return Err(SegmentError::Length { len, page_len });
    }
    let options = MemfdOptions::default().allow_sealing(true).close_on_exec(true);
    let memfd = options.create(label).map_err(refused("make"))?;
    memfd.as_file().set_len(len).map_err(|source| SegmentError::Os { operation: "size", source })?;
    memfd.add_seals(&[FileSeal::SealShrink, FileSeal::SealGrow]).map_err(refused("seal"))?;
    Ok(memfd.into_file().into())
}

fn refused(operation: &'static str) -> impl FnOnce(memfd::Error) -> SegmentError {
    move |error| {
        let source = match error {
            memfd::Error::Create(source)
            | memfd::Error::AddSeals(source)
            | memfd::Error::GetSeals(source) => source,
        };
        SegmentError::Os { operation, source }
    }
}

/// The file's seals; refused when it can't have any (it is no memfd).
fn seals(fd: BorrowedFd<'_>) -> Result<SealFlag, SegmentError> {
    let bits = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| SegmentError::Seals { missing: "of a memfd" })?;
    Ok(SealFlag::from_bits_retain(bits))
}

/// The file's size must be what was agreed, and sealed.
fn check_size(fd: BorrowedFd<'_>, expected: u64) -> Result<(), SegmentError> {
    if !seals(fd)?.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW) {
        return Err(SegmentError::Seals { missing: "SHRINK and GROW" });
    }
    let stat = nix::sys::stat::fstat(fd)
        .map_err(|errno| SegmentError::Os { operation: "stat", source: errno.into() })?;
    let is = u64::try_from(stat.st_size).unwrap_or(0);
    if is == expected { Ok(()) } else { Err(SegmentError::Size { expected, is }) }
}

/// Bytes of a segment, as they lie there, that keep the segment mapped. For bodies that are passed on
/// without a copy (`Bytes::from_owner`).
///
/// The segment's owner can change the bytes at any time. Whoever sends them on sends old, new or mixed
/// ones; the owner garbles its own message. Decisions are made by a copy ([`Reader::copy`]), never by these.
pub struct Region {
    segment: Keep,
    offset: u64,
    len: u64,
}

enum Keep {
    Reader(Arc<Reader>),
    /// Of a segment that isn't mapped.
    Copy(Vec<u8>),
    Writer(Arc<Writer>),
}

impl Region {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Where in the segment the first one is.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        let mapping = match &self.segment {
            Keep::Copy(bytes) => return bytes,
            Keep::Reader(reader) => reader.mapping(),
            Keep::Writer(writer) => writer.mapping(),
        };
        // Checked when the region was made, and a mapping never shrinks.
        mapping.slice(self.offset, self.len).unwrap_or_default()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("offset", &self.offset).field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
