//! Frames: a head, then the body, in one block of a segment.
//!
//! ```text
//! every frame starts:  ├ u32 head_len ┼ u16 status ┼ u8 kind ┼ u8 zero ┤
//! 0 request:   ├ start ┼ u64 deadline (Unix, ns) ┼ call id ┼ method ┼ path ┼ query ┼ headers ┼ pad ┤ body
//! 1 response:  ├ start ┼ origin ┼ headers ┼ pad ┤ body
//! 2 view:      ├ start ┼ origin ┼ headers ┼ u32 1 ┼ part ┼ pad ┤
//! 3 list:      ├ start ┼ origin ┼ headers ┼ u32 count ┼ parts ┼ pad ┤
//! string:   u32 length, bytes          headers: u32 count, then name and value as strings
//! origin:   u32 offset, u32 length     part:    name (string), u32 segment, generation, offset, length
//! ```
//!
//! Integers are little-endian. `head_len` counts from the frame's first byte to the body's first and is a
//! multiple of [`ALIGN`]; the fields may end before it (an instance reserves the body's place before it knows
//! all of the head). The body fills the rest of the block that the descriptor names.
//!
//! spryd writes requests, views and lists, instances write responses; an instance may get any of them. A view or a
//! list has no body of its own: its parts say where the values lie, so nothing is copied to hand one
//! on ([`parts`]). The *origin* of what isn't a request is the place of the request that it all began with, in the
//! inbox of whoever reads it.
//!
//! A frame in memory that somebody else can write is never decoded in place: [`copy_head`] makes the copy that
//! everything is decided by.
//!
//! [`RequestHead`] and [`ResponseHead`] own their list of headers; [`Frame`] and [`ResponseEncoder`] do the same
//! work without allocating, for the instance's side of the warm path.

mod codec;
mod emission;
mod parts;
mod request;
mod response;

pub use codec::{Headers, Pairs, Text};
pub use emission::{CONTENT_TYPE_MAX, EMISSION_HEAD_MAX, Emission, NAME_MAX};
pub use parts::{Joining, ListHead, Part, Parts, PartsView, Shape, ViewHead};
pub use request::{RequestHead, RequestView};
pub use response::{ResponseEncoder, ResponseHead, ResponseView};

use codec::{Reader, bound};

/// The body starts at a multiple of this, so that a function can view it as an array of anything.
pub const ALIGN: usize = 64;
/// Heads longer than this are refused by both sides.
pub const HEAD_MAX: usize = 64 * 1024;
/// The same for lists, whose parts are in their heads.
pub const LIST_HEAD_MAX: usize = 256 * 1024;
/// More headers than this are refused by both sides.
pub const HEADERS_MAX: usize = 256;
/// More parts than this are refused by both sides.
pub const PARTS_MAX: usize = 2048;

/// Bytes that all frames have in common at their start.
const START_LEN: usize = 8;
const _: () = assert!(START_LEN <= ALIGN);
const STATUS_AT: usize = 4;
const KIND_AT: usize = 6;

/// Why a frame can't be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame ends before what it announces.
    #[error("the frame ends early, at byte {0}")]
    Truncated(usize),
    /// A length or count is beyond its bound.
    #[error("{what} is {value}, over the limit of {limit}")]
    TooLarge {
        /// Which field.
        what: &'static str,
        /// What it says.
        value: usize,
        /// What is allowed.
        limit: usize,
    },
    /// `head_len` is no multiple of [`ALIGN`], or 0.
    #[error("the head says it is {0} bytes long, which is no positive multiple of {ALIGN}")]
    HeadLength(usize),
    /// A string is not UTF-8.
    #[error("the text at byte {0} is not UTF-8")]
    NotText(usize),
    /// The status is no HTTP status.
    #[error("{0} is not an HTTP status between 200 and 599")]
    Status(u16),
    /// There is no such kind of frame, or it can't be here.
    #[error("a frame of kind {0} can't be here")]
    Kind(u8),
    /// A view has another number of parts than one.
    #[error("a view has {0} parts instead of one")]
    ViewParts(usize),
    /// A part ends beyond what any segment can hold.
    #[error("a part of {length} bytes at {offset} ends outside every segment")]
    Part {
        /// Its first byte.
        offset: u32,
        /// Its bytes.
        length: u32,
    },
    /// A list doesn't say how its parts are joined.
    #[error("the content type of a list is neither {} nor {}", Joining::Json.content_type(), Joining::Framed.content_type())]
    Joining,
    /// The name of an emitted value is none.
    #[error("the name of an emitted value is 1 to {NAME_MAX} characters of a-z, 0-9, _ and -")]
    Name,
    /// The content type of an emitted value is none.
    #[error(
        "the content type of an emitted value is at most {CONTENT_TYPE_MAX} characters of printable ASCII"
    )]
    ContentType,
}

/// Which kind of frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A client's request.
    Request = 0,
    /// What an instance answered.
    Response = 1,
    /// One value that lies elsewhere.
    View = 2,
    /// Several values that lie elsewhere.
    List = 3,
}

impl Kind {
    fn of(byte: u8) -> Result<Self, FrameError> {
        [Self::Request, Self::Response, Self::View, Self::List]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or(FrameError::Kind(byte))
    }

    fn head_max(self) -> usize {
        if self == Self::List { LIST_HEAD_MAX } else { HEAD_MAX }
    }
}

/// Bytes in some segment, named as in a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// The segment's slot.
    pub segment: u32,
    /// The slot's incarnation.
    pub generation: u32,
    /// The first byte.
    pub offset: u32,
    /// How many bytes.
    pub length: u32,
}

/// Where a request's frame lies in the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// Its first byte.
    pub offset: u32,
    /// Its bytes, head and body.
    pub length: u32,
}

/// The head of any frame, as it lies there: checked as a whole, lists read when asked for.
#[derive(Debug, Clone)]
pub enum Frame<'a> {
    /// [`Kind::Request`].
    Request(RequestView<'a>),
    /// [`Kind::Response`].
    Response(ResponseView<'a>),
    /// [`Kind::View`] or [`Kind::List`].
    Parts(PartsView<'a>),
}

impl<'a> Frame<'a> {
    /// Reads the head at the start of `frame`; returns it and where the body starts.
    pub fn decode(frame: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let mut reader = Reader::new(frame)?;
        let head = match reader.kind {
            Kind::Request => Self::Request(RequestView::read(&mut reader)?),
            Kind::Response => Self::Response(ResponseView::read(&mut reader)?),
            Kind::View | Kind::List => Self::Parts(PartsView::read(&mut reader)?),
        };
        Ok((head, reader.end()))
    }

    /// Its own headers.
    pub fn headers(&self) -> &Headers<'a> {
        match self {
            Self::Request(request) => &request.headers,
            Self::Response(response) => &response.headers,
            Self::Parts(parts) => &parts.headers,
        }
    }

    /// Where the request lies that it goes back to; `None` when it is that request.
    pub fn origin(&self) -> Option<Origin> {
        match self {
            Self::Request(_) => None,
            Self::Response(response) => Some(response.origin),
            Self::Parts(parts) => Some(parts.origin),
        }
    }
}

/// Replaces what is in `head` with a copy of the head of `frame`, which somebody may be writing to meanwhile. What
/// is decoded from the copy is within the copy, so it is within the frame; even if the copy has another length written in
/// it than the one that it was made by.
pub fn copy_head(frame: &[u8], head: &mut Vec<u8>) -> Result<(), FrameError> {
    let head_len = head_len(frame)?;
    let whole = frame.get(..head_len).ok_or(FrameError::Truncated(frame.len()))?;
    head.clear();
    head.reserve(head_len);
    // In pieces of a known length, which are copied in place: a head is short, and `memcpy` costs more to get to than to do
    // (docs/decisions/0024-code-pages.md).
    let (pieces, _) = whole.as_chunks::<ALIGN>();
    pieces.iter().for_each(|piece| head.extend_from_slice(piece));
    Ok(())
}

/// How long the head is that starts with these bytes.
fn head_len(start: &[u8]) -> Result<usize, FrameError> {
    let start = start.get(..START_LEN).ok_or(FrameError::Truncated(start.len()))?;
    let said = u32::from_le_bytes(start[..4].try_into().expect("four bytes")) as usize;
    bound("the head", said, Kind::of(start[KIND_AT])?.head_max())?;
    if said == 0 || !said.is_multiple_of(ALIGN) {
        return Err(FrameError::HeadLength(said));
    }
    Ok(said)
}

#[cfg(test)]
mod tests;
