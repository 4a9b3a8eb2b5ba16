//! What a function answers.

use std::borrow::Cow;
use std::ffi::c_int;

use crate::abi;
use crate::buffer::Buffer;
use crate::error::Error;

/// An HTTP response: status 200 and no headers unless said otherwise.
#[derive(Debug)]
pub struct Response<'a> {
    status: u16,
    headers: Vec<(Cow<'a, str>, Cow<'a, [u8]>)>,
    body: Body<'a>,
}

#[derive(Debug)]
enum Body<'a> {
    Bytes(Cow<'a, [u8]>),
    Buffer(Buffer<'a>),
    Input,
}

impl<'a> Response<'a> {
    /// A response with these bytes. They are copied once, into shared memory, when the function has returned;
    /// see [`Request::buffer`](crate::Request::buffer) for how to write them there directly.
    pub fn new(body: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Bytes(body.into()) }
    }

    /// The bytes written to a buffer; not copied.
    pub fn buffer(body: Buffer<'a>) -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Buffer(body) }
    }

    /// The request's own body. Without a header or another status no byte is copied or written; otherwise a head is
    /// written, and the body copied behind it.
    pub fn pass_through() -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Input }
    }

    /// Text, with its content type.
    pub fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::new(into_bytes(text.into())).header("content-type", b"text/plain; charset=utf-8".as_slice())
    }

    /// JSON that is already written down, with its content type.
    pub fn json(json: impl Into<Cow<'a, str>>) -> Self {
        Self::new(into_bytes(json.into())).header("content-type", b"application/json".as_slice())
    }

    /// Sets the status, 200 to 599 (others fail the invocation).
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header (one that HTTP doesn't allow fails the invocation).
    pub fn header(mut self, name: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, [u8]>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Hands everything over to the runtime.
    ///
    /// # Safety
    ///
    /// `raw` is the runtime's response to the request that this was made for.
    #[inline]
    pub(crate) unsafe fn give(self, raw: *mut abi::Response) -> Result<(), Error> {
        // SAFETY: the caller vouches for `raw`; its functions are the runtime's and copy what they get.
        unsafe {
            if self.status != 200 {
                check(((*raw).set_status)(raw, self.status), || {
                    format!("{} is no HTTP status between 200 and 599", self.status)
                })?;
            }
            for (name, value) in &self.headers {
                let result = ((*raw).add_header)(raw, abi::Slice::of(name.as_bytes()), abi::Slice::of(value));
                check(result, || {
                    format!("the response header {name:?} is not allowed, too long, or one too many")
                })?;
            }
            match self.body {
                Body::Bytes(bytes) => {
                    let result = ((*raw).set_body)(raw, bytes.as_ptr().cast(), bytes.len());
                    check(result, || no_room(result, bytes.len()))
                }
                Body::Buffer(buffer) => {
                    check(((*raw).commit)(raw, buffer.len()), || "the buffer can't be committed".to_owned())
                }
                Body::Input => {
                    check(((*raw).pass_through)(raw), || "the body can't be passed through".to_owned())
                }
            }
        }
    }
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn check(result: c_int, message: impl FnOnce() -> String) -> Result<(), Error> {
    if result == abi::Code::Ok as c_int { Ok(()) } else { Err(Error::new(message())) }
}

fn no_room(result: c_int, len: usize) -> String {
    if result == abi::Code::Full as c_int {
        format!("no room for a response of {len} bytes: earlier answers are still being sent")
    } else {
        format!("the response of {len} bytes is over the function's payload limit")
    }
}
