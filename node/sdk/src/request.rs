//! What a function gets.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::abi;
use crate::buffer::Buffer;
use crate::error::Error;

/// One invocation. Everything in it lies in shared memory that spryd wrote: no byte was copied for it.
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

    /// The body, aligned to 64 bytes.
    pub fn body(&self) -> &'a [u8] {
        // SAFETY: valid and unwritten for `'a` (see `new`).
        unsafe { self.raw.body.bytes() }
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
