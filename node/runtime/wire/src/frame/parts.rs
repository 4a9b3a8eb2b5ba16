//! Values that lie elsewhere: views and lists. spryd writes their heads; the values stay where their writers put
//! them.
//!
//! A *view* stands for one value that isn't a frame of its own: a value that a function emitted, an element of an
//! array. A *list* stands for several, in order: what the branches of a fan-out answered, what a trigger has
//! collected. Who wants a list as one sequence of bytes joins it, as its content type says ([`Joining`]).

use super::codec::{self, Headers, Reader};
use super::{FrameError, HEAD_MAX, Kind, LIST_HEAD_MAX, Origin, PARTS_MAX, Place};

/// Below the least length for which glibc's `memcpy` takes instructions that some CPUs are slow at
/// (`shm_bus::copy` has the numbers).
const PIECE: usize = 1024;

/// One value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part<'a> {
    /// What it is called; may be empty.
    pub name: &'a str,
    /// Where its bytes lie: the value's own, no frame.
    pub place: Place,
}

/// How the parts of a list make one body. The list's content type says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// Every part is JSON; together they are an array: `[a,b]`.
    Json,
    /// Each part with its length before it, as a little-endian `u32`.
    Framed,
}

impl Joining {
    /// The content type of a list that is joined this way.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Framed => "application/vnd.spry.frames",
        }
    }

    /// How a list of this content type is joined.
    pub fn of(content_type: &[u8]) -> Option<Self> {
        [Self::Json, Self::Framed]
            .into_iter()
            .find(|joining| joining.content_type().as_bytes() == content_type)
    }

    /// How many bytes parts of these lengths are when joined.
    pub fn len(self, parts: impl Iterator<Item = u32>) -> u64 {
        let (mut count, mut bytes) = (0, 0);
        for len in parts {
            count += 1;
            bytes += u64::from(len);
        }
        bytes
            + match self {
                Self::Json => 2 + u64::saturating_sub(count, 1),
                Self::Framed => 4 * count,
            }
    }

    /// Appends the parts, joined.
    pub fn join<'a>(self, parts: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        if self == Self::Json {
            out.push(b'[');
        }
        for (index, part) in parts.enumerate() {
            match self {
                Self::Json if index > 0 => out.push(b','),
                Self::Json => {}
                Self::Framed => codec::put_u32(out, part.len() as u32),
            }
            part.chunks(PIECE).for_each(|piece| out.extend_from_slice(piece));
        }
        if self == Self::Json {
            out.push(b']');
        }
    }
}

/// What a view or list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One part, which is the body.
    View,
    /// Any number of parts.
    List(Joining),
}

/// The head of a view, for whoever writes one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ViewHead<'a> {
    /// Where the request lies that it goes back to.
    pub origin: Origin,
    /// Names, in lower case, and values.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// The value.
    pub part: Part<'a>,
}

impl ViewHead<'_> {
    /// Replaces what is in `out` with the frame.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        codec::start(out, Kind::View, 0);
        codec::put_origin(out, self.origin);
        codec::put_headers(out, self.headers.iter().copied())?;
        put_parts(out, std::slice::from_ref(&self.part))?;
        codec::finish(out, HEAD_MAX)
    }
}

/// The head of a list, for whoever writes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListHead<'a> {
    /// Where the request lies that it goes back to.
    pub origin: Origin,
    /// Its content type.
    pub joining: Joining,
    /// The values, in order.
    pub parts: Vec<Part<'a>>,
}

impl ListHead<'_> {
    /// Replaces what is in `out` with the frame. Its one header is its content type.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        codec::start(out, Kind::List, 0);
        codec::put_origin(out, self.origin);
        let content_type = ("content-type", self.joining.content_type().as_bytes());
        codec::put_headers(out, std::iter::once(content_type))?;
        put_parts(out, &self.parts)?;
        codec::finish(out, LIST_HEAD_MAX)
    }
}

fn put_parts(out: &mut Vec<u8>, parts: &[Part<'_>]) -> Result<(), FrameError> {
    codec::bound("the number of parts", parts.len(), PARTS_MAX)?;
    codec::put_u32(out, parts.len() as u32);
    for Part { name, place } in parts {
        codec::put(out, name.as_bytes());
        for word in [place.segment, place.generation, place.offset, place.length] {
            codec::put_u32(out, word);
        }
    }
    Ok(())
}

/// The head of a view or list as it lies in its frame.
#[derive(Debug, Clone)]
pub struct PartsView<'a> {
    /// Which of the two.
    pub shape: Shape,
    /// Where the request lies that it goes back to.
    pub origin: Origin,
    /// Names and values.
    pub headers: Headers<'a>,
    /// The values.
    pub parts: Parts<'a>,
}

impl<'a> PartsView<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, FrameError> {
        let origin = reader.origin()?;
        let headers = reader.headers()?;
        let count = reader.u32()? as usize;
        codec::bound("the number of parts", count, PARTS_MAX)?;
        let start = reader.at;
        for _ in 0..count {
            reader.text()?;
            reader.place()?;
        }
        let parts = Parts { bytes: reader.since(start), left: count };
        let shape = match reader.kind {
            Kind::List => {
                let joining = headers.get("content-type").and_then(Joining::of);
                Shape::List(joining.ok_or(FrameError::Joining)?)
            }
            _ if count == 1 => Shape::View,
            _ => return Err(FrameError::ViewParts(count)),
        };
        Ok(Self { shape, origin, headers, parts })
    }
}

/// Parts in a frame that were checked when it was decoded.
#[derive(Debug, Clone, Default)]
pub struct Parts<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader::over(self.bytes);
        let part = Part { name: reader.text().ok()?.as_str(), place: reader.place().ok()? };
        self.bytes = &self.bytes[reader.at..];
        Some(part)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Parts<'_> {}
