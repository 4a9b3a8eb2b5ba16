//! What a function gets.

use std::cell::Cell;
use std::ffi::c_int;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::abi;
use crate::buffer::Buffer;
use crate::error::Error;

/// One invocation. Bodies and parts lie in shared memory, where their writers put them: no byte was copied for it.
///
/// In a chain, method, path, query, call id and deadline are those of the client's call of the chain; the body is what
/// the step before has answered.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    raw: &'a abi::Request,
    response: *mut abi::Response,
    buffer_taken: &'a Cell<bool>,
}

impl<'a> Request<'a> {
    /// # Safety
    ///
    /// `raw` holds what its fields say for `'a`; `response` is the runtime's response to this very request and
    /// valid for `'a`; `buffer_taken` is false and this request's own.
    pub(crate) unsafe fn new(
        raw: &'a abi::Request,
        response: *mut abi::Response,
        buffer_taken: &'a Cell<bool>,
    ) -> Self {
        Self { raw, response, buffer_taken }
    }

    /// The HTTP method.
    pub fn method(&self) -> &'a str {
        self.text(self.raw.method)
    }

    /// What follows the function's name in the path: empty, or starting with `/`.
    pub fn path(&self) -> &'a str {
        self.text(self.raw.path)
    }

    /// The query string without `?`, as the client sent it.
    pub fn query(&self) -> &'a str {
        self.text(self.raw.query)
    }

    /// The invocation's public name, the `X-Call-Id` of the response.
    pub fn call_id(&self) -> &'a str {
        self.text(self.raw.call_id)
    }

    /// The body. One that a client sent, or a function wrote, is aligned to 64 bytes; an element of somebody's array and
    /// a list are not.
    ///
    /// A list is joined to one body when this is first called: JSON values to an array, others each with its length
    /// before it, as a little-endian `u32`. The `content-type` says which, `application/json` or
    /// `application/vnd.spry.frames`. [`Self::parts`] has the values without a copy.
    pub fn body(&self) -> &'a [u8] {
        // SAFETY: the runtime's own function, for its own request; what it returns is valid and unwritten for `'a` (see
        // `new`).
        unsafe { (self.raw.body)(self.raw).bytes() }
    }

    /// The values of a list, in order, each with its name (which may be empty): what the branches before this step
    /// answered, or what a trigger has collected. Of any other input, the body alone.
    ///
    /// ```
    /// # use spry_fn::{Error, Request, Response};
    /// fn longest(request: Request<'_>) -> Result<Response<'_>, Error> {
    ///     let value = request.parts().map(|(_, value)| value).max_by_key(|value| value.len());
    ///     Ok(Response::new(value.unwrap_or_default()))
    /// }
    /// # spry_fn::handler!(longest);
    /// # fn main() {}
    /// ```
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let parts = match self.raw.part_count {
            0 => &[],
            // SAFETY: the runtime points at `part_count` parts, valid for `'a` (see `new`).
            count => unsafe { std::slice::from_raw_parts(self.raw.parts, count) },
        };
        let this = *self;
        // SAFETY: valid and unwritten for `'a` (see `new`).
        parts.iter().map(move |part| (this.text(part.name), unsafe { part.value.bytes() }))
    }

    /// Gives a copy of a value to the triggers of the chain that this call is part of, and goes on. What was emitted
    /// stays so, even if the call fails. `content_type` may be empty.
    ///
    /// Fails when the name isn't 1 to 64 characters of `a-z`, `0-9`, `_` and `-`; when the call is not part of a chain or
    /// has emitted 128 values before; and for want of room, like [`Self::buffer`].
    ///
    /// ```
    /// # use spry_fn::{Error, Request, Response};
    /// fn pages(request: Request<'_>) -> Result<Response<'_>, Error> {
    ///     for page in request.body().split(|byte| *byte == b'\x0c') {
    ///         request.emit("page", "text/plain", page)?;
    ///     }
    ///     Ok(Response::new(b"".as_slice()).status(204))
    /// }
    /// # spry_fn::handler!(pages);
    /// # fn main() {}
    /// ```
    pub fn emit(&self, name: &str, content_type: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        let value = value.as_ref();
        let (of_name, of_type) = (abi::Slice::of(name.as_bytes()), abi::Slice::of(content_type.as_bytes()));
        // SAFETY: `response` is valid for `'a`; its functions are the runtime's and copy what they get.
        let code = unsafe {
            ((*self.response).emit)(self.response, of_name, of_type, value.as_ptr().cast(), value.len())
        };
        let why = match code {
            code if code == abi::Code::Ok as c_int => return Ok(()),
            code if code == abi::Code::BadName as c_int => {
                "its name is 1 to 64 characters of a-z, 0-9, _ and -, its content type at most 256 of printable ASCII"
            }
            code if code == abi::Code::TooMany as c_int => "one call emits 128 values at most",
            code if code == abi::Code::NoChain as c_int => {
                "this call is not part of a chain, so nobody would get it"
            }
            code if code == abi::Code::TooLarge as c_int => "it is over the function's payload limit",
            code if code == abi::Code::Full as c_int => "values and answers before it still take the room",
            _ => "spryd is gone",
        };
        Err(Error::new(format!("the value {name:?} of {} bytes can't be emitted: {why}", value.len())))
    }

    /// The headers, names in lower case.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let headers = match self.raw.header_count {
            0 => &[],
            // SAFETY: the runtime points at `header_count` headers, valid for `'a` (see `new`).
            count => unsafe { std::slice::from_raw_parts(self.raw.headers, count as usize) },
        };
        let this = *self;
        // SAFETY: valid and unwritten for `'a` (see `new`).
        headers.iter().map(move |header| (this.text(header.name), unsafe { header.value.bytes() }))
    }

    /// The value of the first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find_map(|(found, value)| (found == name).then_some(value))
    }

    /// When the invocation's time runs out.
    pub fn deadline(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.raw.deadline_unix_ns)
    }

    /// Room for a response body of at most `capacity` bytes, where its reader will find it: what is written to a
    /// buffer isn't copied again. There is one at a time.
    ///
    /// Fails when `capacity` is over the function's payload limit, or when earlier answers that are still
    /// being sent leave no room.
    pub fn buffer(&self, capacity: usize) -> Result<Buffer<'a>, Error> {
        // SAFETY: `response` is valid for `'a`, and only buffers change the note (see `new`).
        unsafe { Buffer::reserve(self.response, self.buffer_taken, capacity) }
    }

    fn text(&self, slice: abi::Slice) -> &'a str {
        // SAFETY: valid for `'a`, and the runtime checked that names and texts are UTF-8 (see `new`).
        unsafe { std::str::from_utf8_unchecked(slice.bytes()) }
    }
}
