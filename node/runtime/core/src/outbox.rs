//! The segment that an instance writes answers to.
//!
//! What is taken in the outbox is known in this process's private memory alone. spryd gives a block back on the
//! release page when its bytes have left for the client, which may be long after the answer: a slow
//! client's response waits in the outbox while the instance serves on. When there is no room, the
//! instance waits for releases, and gives up after [`FULL_WAIT`].

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use shm_bus::Descriptor;
use shm_bus::alloc::{Allocator, Block};
use shm_bus::begun;
use shm_bus::ids::InvocationId;
use shm_bus::release::{OUTSTANDING_MAX, ReleaseReader};
use shm_bus::segment::{Reader, SegmentError, SegmentName, Writer};
use spry_ebpf_common::status;
use spry_wire::control::SegmentSpec;

use crate::response::ResponseError;

/// How long an answer waits for room before its invocation fails.
const FULL_WAIT: Duration = Duration::from_secs(1);
/// How often the release page is looked at meanwhile. (spryd posts there without waking anybody.)
const FULL_LOOK: Duration = Duration::from_micros(200);

/// Longest text of a failure.
const FAILURE_MAX: usize = 64 * 1024;
/// What is sent when there is no room for a failure's own text. It lies in the outbox from the start.
const NO_ROOM: &str = "the function failed, and the outbox is full: no room to say why";

/// A block that is taken.
pub(crate) type Place = Block;

/// This instance's answers.
#[derive(Debug)]
pub(crate) struct Outbox {
    writer: Writer,
    spec: SegmentSpec,
    blocks: Allocator,
    released: ReleaseReader,
    /// Blocks that spryd has and will give back.
    outstanding: u32,
    payload_max: u64,
    /// Where [`NO_ROOM`] lies; never freed.
    no_room: Place,
}

impl Outbox {
    /// Maps and seals it.
    pub(crate) fn map(
        fd: OwnedFd,
        release: OwnedFd,
        spec: &SegmentSpec,
        payload_max: u64,
    ) -> Result<Self, SegmentError> {
        let released = ReleaseReader::map(release)?;
        let writer = Writer::map(fd, u64::from(spec.len))?;
        let mut blocks = Allocator::new(spec.len);
        blocks.reserve(begun::HEADER_LEN);
        let no_room = blocks.allocate(NO_ROOM.len() as u32).ok_or(SegmentError::Range {
            offset: 0,
            len: NO_ROOM.len() as u64,
            segment_len: u64::from(spec.len),
        })?;
        writer.write_at(u64::from(no_room.offset), NO_ROOM.as_bytes())?;
        Ok(Self { writer, spec: *spec, blocks, released, outstanding: 0, payload_max, no_room })
    }

    /// Descriptors that the mapping keeps open.
    pub(crate) fn fds(&self) -> [RawFd; 1] {
        [self.writer.fd().as_raw_fd()]
    }

    /// How descriptors name it.
    pub(crate) fn name(&self) -> SegmentName {
        SegmentName { id: self.spec.id, generation: self.spec.generation }
    }

    /// A second mapping, to read from: an instance that serves two steps of a chain may get what it has written itself.
    pub(crate) fn reader(&self) -> Result<Reader, SegmentError> {
        Reader::map(self.writer.fd(), self.writer.len())
    }

    /// Says in the outbox's header that `invocation` begins.
    pub(crate) fn begin(&self, invocation: u64) {
        begun::write(&self.writer, InvocationId(invocation));
    }

    /// Takes back what spryd has released. Without looking at its page when it can't have released anything but
    /// [`NO_ROOM`], which stays where it is.
    pub(crate) fn reclaim(&mut self) {
        if self.outstanding > 0 {
            self.drain();
        }
    }

    #[inline(never)]
    fn drain(&mut self) {
        let Self { released, blocks, outstanding, no_room, .. } = self;
        released.drain(|offset| {
            if offset != no_room.offset && blocks.free(offset).is_some() {
                *outstanding -= 1;
            }
        });
    }

    /// Takes a block for a head of at most `head` bytes and a body of at most `body`.
    pub(crate) fn allocate(&mut self, head: usize, body: usize) -> Result<Place, ResponseError> {
        let len = head as u64 + body as u64;
        // The limit is the author's, about what a client sees: a head's reserve doesn't count against it.
        if body as u64 > self.payload_max || len > u64::from(self.spec.len) {
            let limit = self.payload_max.min(u64::from(self.spec.len));
            return Err(ResponseError::TooLarge { len: body as u64, limit });
        }
        let len = len as u32;
        if let Some(place) = self.try_allocate(len) {
            return Ok(place);
        }
        let started = Instant::now();
        loop {
            self.reclaim();
            if let Some(place) = self.try_allocate(len) {
                return Ok(place);
            }
            if started.elapsed() > FULL_WAIT || self.outstanding == 0 {
                return Err(ResponseError::Full { len: u64::from(len) });
            }
            std::thread::sleep(FULL_LOOK);
        }
    }

    fn try_allocate(&mut self, len: u32) -> Option<Place> {
        if self.outstanding >= OUTSTANDING_MAX - 1 { None } else { self.blocks.allocate(len) }
    }

    /// Gives back a block that spryd hasn't seen.
    pub(crate) fn free(&mut self, place: Place) {
        self.blocks.free(place.offset);
    }

    /// `len` bytes, `at` bytes into a block.
    pub(crate) fn bytes_mut(&mut self, place: Place, at: usize, len: usize) -> &mut [u8] {
        debug_assert!(at + len <= place.len as usize);
        self.writer
            .slice_mut(u64::from(place.offset) + at as u64, len as u64)
            .expect("blocks lie within the segment")
    }

    /// Copies `len` bytes from one block to another.
    pub(crate) fn copy(&mut self, from: Place, from_at: usize, to: Place, to_at: usize, len: usize) {
        let mut bytes = vec![0; len];
        bytes.copy_from_slice(self.bytes_mut(from, from_at, len));
        self.bytes_mut(to, to_at, len).copy_from_slice(&bytes);
    }

    /// Hands a block over to spryd: the descriptor of its first `len` bytes. What lies behind them is given back.
    pub(crate) fn describe(&mut self, place: Place, len: usize) -> Descriptor {
        self.blocks.shrink(place, len as u32);
        self.outstanding += 1;
        self.descriptor(place, len)
    }

    /// The answer of a failed invocation, with this text.
    #[cold]
    pub(crate) fn fail(&mut self, text: &str) -> Descriptor {
        let text = &text[..text.floor_char_boundary(FAILURE_MAX)];
        let described = match self.try_allocate(text.len() as u32) {
            Some(place) => {
                self.bytes_mut(place, 0, text.len()).copy_from_slice(text.as_bytes());
                self.describe(place, text.len())
            }
            None => self.descriptor(self.no_room, NO_ROOM.len()),
        };
        Descriptor { flags: status::FAILED, ..described }
    }

    fn descriptor(&self, place: Place, len: usize) -> Descriptor {
        Descriptor {
            segment: self.spec.id,
            generation: self.spec.generation,
            offset: place.offset,
            length: len as u32,
            ..Descriptor::default()
        }
    }
}
