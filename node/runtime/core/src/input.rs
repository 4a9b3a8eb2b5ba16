//! From a descriptor to a request: where the bytes of an input lie, and what they say.
//!
//! The input may be written to while it is read: by the function before, or (when that one lies about where its
//! answer is) by anybody of the chain. So every head is copied once and decoded from the copy; places are
//! checked once, when they are located; and what is then handed out as it lies is bytes for the author's code, by which
//! nothing is decided here.

use shm_bus::Descriptor;
use shm_bus::segment::{SegmentError, SegmentName};
use spry_wire::frame::{self, Frame, FrameError, HEAD_MAX, Origin, Parts, Place, RequestView, Shape};

use crate::outbox::Outbox;
use crate::request::{Head, Request};
use crate::segments::{Found, MapError, Segments, Source};

/// Why an input can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error(transparent)]
    Segment(#[from] MapError),
    #[error("the input lies outside its segment: {0}")]
    Outside(#[from] SegmentError),
    #[error("the request can't be read: {0}")]
    Frame(#[source] FrameError),
    #[error("the request that the input goes back to can't be read: {0}")]
    Origin(#[source] FrameError),
    #[error("the input is of a kind that isn't written where it lies")]
    Writer,
    #[error("the input of {len} bytes is over the limit of {limit} bytes")]
    TooLarge { len: u64, limit: u64 },
}

/// What reads the inputs, with memory that is used again for each.
#[derive(Debug)]
pub(crate) struct Input {
    memory: Memory,
    head: Vec<u8>,
    origin: Vec<u8>,
    pieces: Vec<Piece>,
}

/// Where the bytes of an input are.
#[derive(Debug)]
pub(crate) struct Memory {
    segments: Segments,
    /// Copies of what lies in segments that can't all stay mapped.
    copied: Vec<u8>,
    payload_max: u64,
}

/// Bytes that were found to be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// `None`: among those that were copied.
    source: Option<Source>,
    start: usize,
    len: usize,
}

impl Piece {
    pub(crate) fn is_in_inbox(&self) -> bool {
        self.source == Some(Source::Inbox)
    }
}

impl Input {
    pub(crate) fn new(segments: Segments, payload_max: u64) -> Self {
        let memory = Memory { segments, copied: Vec::new(), payload_max };
        Self { memory, head: Vec::new(), origin: Vec::new(), pieces: Vec::new() }
    }

    /// Reads the input that `descriptor` names.
    pub(crate) fn read(
        &mut self,
        descriptor: &Descriptor,
        outbox: &Outbox,
    ) -> Result<Request<'_>, InputError> {
        let Self { memory, head, origin, pieces } = self;
        memory.begin();
        pieces.clear();
        let Descriptor { segment, generation, offset, length, .. } = *descriptor;
        let whole = memory.locate(&Place { segment, generation, offset, length }, outbox)?;
        frame::copy_head(memory.bytes(whole), head).map_err(InputError::Frame)?;
        let (frame, body_at) = Frame::decode(head).map_err(InputError::Frame)?;
        if whole.is_in_inbox() == matches!(frame, Frame::Response(_)) {
            return Err(InputError::Writer);
        }
        let (shape, names) = match &frame {
            Frame::Request(_) | Frame::Response(_) => {
                pieces.push(Piece { start: whole.start + body_at, len: whole.len - body_at, ..whole });
                (Shape::View, Parts::default())
            }
            Frame::Parts(view) => {
                if let Shape::List(joining) = view.shape {
                    memory.check_len(joining.len(view.parts.clone().map(|part| part.place.length)))?;
                }
                memory.locate_all(&view.parts, outbox, pieces)?;
                (view.shape, view.parts.clone())
            }
        };
        let own = frame.headers().clone();
        let (request, own, origin) = match (frame.origin(), frame) {
            (None, Frame::Request(request)) => (request, None, Origin { offset, length }),
            (at, _) => {
                let at = at.unwrap_or_default();
                frame::copy_head(memory.inbox(at)?, origin).map_err(InputError::Origin)?;
                let (request, _) = RequestView::decode(origin).map_err(InputError::Origin)?;
                (request, Some(own), at)
            }
        };
        let head = Head { descriptor: *descriptor, origin, request, own, shape, names };
        Ok(Request::new(head, memory, pieces))
    }

    /// Lets go of what was copied for an invocation. `keep`: the function has kept views of its input, which must stay
    /// valid for as long as this process lives.
    pub(crate) fn release(&mut self, keep: bool) {
        let copied = std::mem::take(&mut self.memory.copied);
        if keep {
            self.memory.segments.keep_used();
            std::mem::forget(copied);
        }
    }
}

impl Memory {
    fn begin(&mut self) {
        self.segments.begin();
        self.copied.clear();
    }

    /// Finds the bytes at a place. They stay where they are until the next invocation begins.
    #[inline(always)]
    fn locate(&mut self, place: &Place, outbox: &Outbox) -> Result<Piece, InputError> {
        let Place { segment, generation, offset, length } = *place;
        let (at, len) = (u64::from(offset), u64::from(length));
        match self.segments.find(SegmentName { id: segment, generation }, outbox)? {
            Found::Mapped(source) => {
                self.segments.reader(source).slice(at, len)?;
                Ok(Piece { source: Some(source), start: offset as usize, len: length as usize })
            }
            Found::Passing(reader) => self.copy_in(reader.slice(at, len)?),
        }
    }

    #[cold]
    fn copy_in(&mut self, bytes: &[u8]) -> Result<Piece, InputError> {
        let start = self.copied.len();
        self.check_len((start + bytes.len()) as u64)?;
        self.copied.resize(start + bytes.len(), 0);
        shm_bus::copy::copy(&mut self.copied[start..], bytes);
        Ok(Piece { source: None, start, len: bytes.len() })
    }

    /// Finds all values of a list.
    #[inline(never)]
    fn locate_all(
        &mut self,
        parts: &Parts<'_>,
        outbox: &Outbox,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), InputError> {
        for part in parts.clone() {
            pieces.push(self.locate(&part.place, outbox)?);
        }
        Ok(())
    }

    /// So many bytes may be copied or joined: a whole payload, and a head before it.
    fn check_len(&self, len: u64) -> Result<(), InputError> {
        let limit = self.payload_max.saturating_add(HEAD_MAX as u64);
        if len > limit { Err(InputError::TooLarge { len, limit: self.payload_max }) } else { Ok(()) }
    }

    /// The bytes of a piece that was located in this invocation.
    pub(crate) fn bytes(&self, piece: Piece) -> &[u8] {
        let Piece { source, start, len } = piece;
        let bytes = match source {
            Some(source) => self.segments.reader(source).slice(start as u64, len as u64).ok(),
            None => self.copied.get(start..start + len),
        };
        bytes.expect("checked when it was located, and no mapping shrinks")
    }

    fn inbox(&self, origin: Origin) -> Result<&[u8], SegmentError> {
        self.segments.reader(Source::Inbox).slice(u64::from(origin.offset), u64::from(origin.length))
    }
}
