//! An answer being built: status and headers in private memory, the body already in the outbox. And what an invocation
//! says before its answer: the values that it emits.
//!
//! The body is written when it is given, since it may not outlive the call, and headers may follow it. So its
//! block starts with room for the head as it is then and [`HEAD_ROOM`] more; only a head that outgrows even that
//! makes the body move.

use std::fmt;

use shm_bus::Descriptor;
use shm_bus::transport::Endpoint;
use spry_ebpf_common::{CHAIN_BIT, EMITS_MAX, flags};
use spry_wire::frame::{ALIGN, Emission, FrameError, ResponseEncoder};

use crate::outbox::{Outbox, Place};
use crate::request::{Call, Request};

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
    /// The name or content type of an emitted value is none.
    #[error("a value can't be emitted: {0}")]
    Emission(#[source] FrameError),
    /// More values than one invocation may emit.
    #[error("a value can't be emitted: one call emits {EMITS_MAX} values at most")]
    Emissions,
    /// Nobody collects values outside chains.
    #[error("a value can't be emitted: this call is not part of a chain, so nobody would get it")]
    NoChain,
    /// The bus is gone.
    #[error("a value can't be emitted: {0}")]
    Bus(String),
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
    Request,
}

/// The answer to one invocation. Dropped without [`Self::finish`], it gives its memory back.
pub struct Response<'a> {
    outbox: &'a mut Outbox,
    head: &'a mut ResponseEncoder,
    bus: &'a mut dyn Endpoint,
    call: Call,
    status: u16,
    body: Body,
    emitted: u32,
}

impl<'a> Response<'a> {
    pub(crate) fn new(
        outbox: &'a mut Outbox,
        head: &'a mut ResponseEncoder,
        bus: &'a mut dyn Endpoint,
        call: Call,
    ) -> Self {
        head.clear();
        Self { outbox, head, bus, call, status: 200, body: Body::None, emitted: 0 }
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
            Body::None | Body::Request => Err(ResponseError::Commit { len, reserved: 0 }),
        }
    }

    /// Makes the request's body the answer's. Without headers and with status 200 the request's frame is the answer
    /// and no byte is written or copied; a head can't point elsewhere, so otherwise the body is copied behind it.
    pub fn pass_through(&mut self) {
        self.discard();
        self.body = Body::Request;
    }

    /// Forgets status, headers and body.
    pub fn clear(&mut self) {
        self.discard();
        self.head.clear();
        self.status = 200;
    }

    /// Gives a value to the chain's triggers, while this invocation goes on. What was emitted stays so, even if the
    /// invocation fails. `content_type` may be empty.
    pub fn emit(&mut self, name: &str, content_type: &str, value: &[u8]) -> Result<(), ResponseError> {
        self.emit_with(name, content_type, value.len(), |room| {
            shm_bus::copy::copy(room, value);
            Ok(())
        })
    }

    /// The same for a value of `len` bytes that `fill` writes to where its readers will find it.
    pub fn emit_with<E: From<ResponseError>>(
        &mut self,
        name: &str,
        content_type: &str,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let of = self.call.descriptor;
        if of.route & CHAIN_BIT == 0 {
            return Err(ResponseError::NoChain.into());
        }
        if self.emitted == EMITS_MAX {
            return Err(ResponseError::Emissions.into());
        }
        let emission = Emission::new(name, content_type).map_err(ResponseError::Emission)?;
        let value_at = emission.value_at();
        let place = self.outbox.allocate(value_at, len)?;
        emission.encode(self.outbox.bytes_mut(place, 0, value_at));
        if let Err(error) = fill(self.outbox.bytes_mut(place, value_at, len)) {
            self.outbox.free(place);
            return Err(error);
        }
        let block = self.outbox.describe(place, value_at + len);
        self.emitted += 1;
        let Descriptor { invocation, route, step, .. } = of;
        let sent = self.bus.send(&Descriptor { invocation, route, step, flags: flags::EMIT, ..block });
        Ok(sent.map_err(|error| ResponseError::Bus(error.to_string()))?)
    }

    /// Writes the head and gives the descriptor's words about place and kind; the memory is the receiver's
    /// from here on.
    pub(crate) fn finish(mut self, request: &Request<'_>) -> Result<Descriptor, ResponseError> {
        if matches!(self.body, Body::Request) {
            if self.head.is_empty() && self.status == 200 {
                let Descriptor { segment, generation, offset, length, .. } = self.call.descriptor;
                return Ok(Descriptor { segment, generation, offset, length, ..Descriptor::default() });
            }
            self.body(request.body())?;
        }
        self.finish_own()
    }

    /// The same for a body in the outbox.
    #[inline(never)]
    fn finish_own(mut self) -> Result<Descriptor, ResponseError> {
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
        let head = self.head.finish(self.status, self.call.origin, room as u32);
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

impl fmt::Debug for Response<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, body, emitted, .. } = self;
        let mut shown = f.debug_struct("Response");
        shown.field("status", status).field("body", body).field("emitted", emitted).finish_non_exhaustive()
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
