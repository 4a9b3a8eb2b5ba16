//! An answer being built: status and headers in private memory, the body already in the outbox.
//!
//! The body is written when it is given, since it may not outlive the call, and headers may follow it. So its
//! block starts with room for the head as it is then and [`HEAD_ROOM`] more; only a head that outgrows even that
//! makes the body move.

use spry_wire::frame::{ALIGN, FrameError, Origin, ResponseEncoder};

use shm_bus::Descriptor;

use crate::outbox::{Outbox, Place};

/// Bytes kept for headers that come after the body.
const HEAD_ROOM: usize = 128;

/// Why a part of an answer was not taken. What was there before stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The status is no HTTP status.
    #[error("{0} is not an HTTP status between 200 and 599")]
    Status(u16),
    /// The name or value holds bytes that HTTP doesn't allow.
    #[error("the response header {0:?} has a name or value that HTTP doesn't allow")]
    Header(String),
    /// Too many headers, or too long ones.
    #[error("the response's headers are too large: {0}")]
    Head(#[from] FrameError),
    /// The answer is larger than the function's limit.
    #[error("the response of {len} bytes is over the limit of {limit} bytes (`payload` in spry.toml)")]
    TooLarge {
        /// Bytes of head and body.
        len: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The outbox stayed full.
    #[error("outbox full: no room for a response of {len} bytes, earlier ones are still being sent")]
    Full {
        /// Bytes asked for.
        len: u64,
    },
    /// More was committed than reserved, or nothing was reserved.
    #[error("{len} bytes were committed of {reserved} that were reserved")]
    Commit {
        /// Bytes committed.
        len: usize,
        /// Bytes reserved.
        reserved: usize,
    },
}

#[derive(Debug, Clone, Copy)]
enum Body {
    None,
    /// In the outbox: the body starts `room` bytes into `place` and is `len` long, of `reserved`.
    Own {
        place: Place,
        room: usize,
        len: usize,
        reserved: usize,
    },
    /// The request's own.
    PassedThrough,
}

/// The answer to one invocation. Dropped without [`Self::finish`], it gives its memory back.
#[derive(Debug)]
pub struct Response<'a> {
    outbox: &'a mut Outbox,
    head: &'a mut ResponseEncoder,
    /// The whole frame that came in.
    request: Descriptor,
    status: u16,
    body: Body,
}

impl<'a> Response<'a> {
    pub(crate) fn new(outbox: &'a mut Outbox, head: &'a mut ResponseEncoder, request: Descriptor) -> Self {
        head.clear();
        Self { outbox, head, request, status: 200, body: Body::None }
    }

    /// Sets the status, 200 unless set.
    pub fn status(&mut self, status: u16) -> Result<(), ResponseError> {
        if !(200..=599).contains(&status) {
            return Err(ResponseError::Status(status));
        }
        self.status = status;
        Ok(())
    }

    /// Adds a header. Names and values that HTTP doesn't allow are refused.
    pub fn header(&mut self, name: &str, value: &[u8]) -> Result<(), ResponseError> {
        if name.is_empty() || !name.bytes().all(is_token) || !value.iter().copied().all(is_field_value) {
            return Err(ResponseError::Header(name.to_owned()));
        }
        Ok(self.head.header(name, value)?)
    }

    /// Copies a body, in place of an earlier one.
    pub fn body(&mut self, bytes: &[u8]) -> Result<(), ResponseError> {
        shm_bus::copy::copy(self.reserve(bytes.len())?, bytes);
        self.commit(bytes.len())
    }

    /// Room in the outbox for a body of at most `len` bytes, in place of an earlier body. It holds what earlier
    /// answers of this instance left there. [`Self::commit`] makes it the body; until then the body is empty.
    pub fn reserve(&mut self, len: usize) -> Result<&mut [u8], ResponseError> {
        self.discard();
        let room = self.head.len() + HEAD_ROOM.next_multiple_of(ALIGN);
        let place = self.outbox.allocate(room, len)?;
        self.body = Body::Own { place, room, len: 0, reserved: len };
        Ok(self.outbox.bytes_mut(place, room, len))
    }

    /// Makes the first `len` bytes of what was reserved the body.
    pub fn commit(&mut self, len: usize) -> Result<(), ResponseError> {
        match &mut self.body {
            Body::Own { len: committed, reserved, .. } if len <= *reserved => {
                *committed = len;
                Ok(())
            }
            Body::Own { reserved, .. } => Err(ResponseError::Commit { len, reserved: *reserved }),
            Body::None | Body::PassedThrough => Err(ResponseError::Commit { len, reserved: 0 }),
        }
    }

    /// Makes the request's body the answer's. Without headers and with status 200 the request's frame is the answer
    /// and no byte is written or copied; a head can't point elsewhere, so otherwise the body is copied behind it.
    pub fn pass_through(&mut self) {
        self.discard();
        self.body = Body::PassedThrough;
    }

    /// Forgets status, headers and body.
    pub fn clear(&mut self) {
        self.discard();
        self.head.clear();
        self.status = 200;
    }

    /// Writes the head and gives the descriptor's words about place and kind; the memory is the receiver's
    /// from here on. `request_bytes` is the request's body, for a pass-through that needs a head.
    pub(crate) fn finish(mut self, request_bytes: &[u8]) -> Result<Descriptor, ResponseError> {
        if matches!(self.body, Body::PassedThrough) {
            if self.head.is_empty() && self.status == 200 {
                return Ok(Descriptor { flags: 0, ..self.request });
            }
            self.body(request_bytes)?;
        }
        if matches!(self.body, Body::None) {
            self.reserve(0)?;
        }
        let head_len = self.head.len();
        if let Body::Own { room, place, len, .. } = self.body
            && head_len > room
        {
            self.make_room(place, room, head_len, len)?;
        }
        let Body::Own { place, room, len, .. } = std::mem::replace(&mut self.body, Body::None) else {
            unreachable!("a body was just put into the outbox");
        };
        let origin = Origin { offset: self.request.offset, length: self.request.length };
        let head = self.head.finish(self.status, origin, room as u32);
        self.outbox.bytes_mut(place, 0, head.len()).copy_from_slice(head);
        Ok(self.outbox.describe(place, room + len))
    }

    /// Moves a body further back, for a head that outgrew its room: within its block, or else into another.
    fn make_room(&mut self, place: Place, from: usize, to: usize, len: usize) -> Result<(), ResponseError> {
        if to + len <= place.len as usize {
            self.outbox.bytes_mut(place, 0, to + len).copy_within(from..from + len, to);
            self.body = Body::Own { place, room: to, len, reserved: len };
            return Ok(());
        }
        let moved = self.outbox.allocate(to, len)?;
        self.outbox.copy(place, from, moved, to, len);
        self.discard();
        self.body = Body::Own { place: moved, room: to, len, reserved: len };
        Ok(())
    }

    fn discard(&mut self) {
        if let Body::Own { place, .. } = std::mem::replace(&mut self.body, Body::None) {
            self.outbox.free(place);
        }
    }
}

impl Drop for Response<'_> {
    fn drop(&mut self) {
        self.discard();
    }
}

/// RFC 9110, 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110, 5.5: no control bytes but the tab.
fn is_field_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}
