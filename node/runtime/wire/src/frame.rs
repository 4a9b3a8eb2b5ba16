//! Request and response frames: a head, then the body, in one block of a segment.
//!
//! ```text
//! request:  ├ u32 head_len ┼ u32 zero ┼ u64 deadline (Unix, ns) ┼ call id ┼ method ┼ path ┼ query ┼ headers ┼ pad ┤ body
//! response: ├ u32 head_len ┼ u16 status ┼ u16 zero ┼ headers ┼ pad ┤ body
//! string:   u32 length, bytes          headers: u32 count, then name and value as strings
//! ```
//!
//! Integers are little-endian. `head_len` counts from the frame's first byte to the body's first and is a
//! multiple of [`ALIGN`]; the fields may end before it (an instance reserves the body's place before it knows
//! all of the head). The body fills the rest of the block that the descriptor names.
//!
//! [`RequestHead`] and [`ResponseHead`] own their list of headers; [`RequestView`] and [`ResponseEncoder`] do the
//! same work without allocating, for the instance's side of the warm path.

/// The body starts at a multiple of this, so that a function can view it as an array of anything.
pub const ALIGN: usize = 64;
/// Heads longer than this are refused by both sides.
pub const HEAD_MAX: usize = 64 * 1024;
/// More headers than this are refused by both sides.
pub const HEADERS_MAX: usize = 256;

/// Why a frame can't be read.
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
    /// `head_len` is not a multiple of [`ALIGN`], or the fields go beyond it.
    #[error("the head says it is {said} bytes long, but its fields take {is}")]
    HeadLength {
        /// What the frame says.
        said: usize,
        /// What its fields add up to.
        is: usize,
    },
    /// A string is not UTF-8.
    #[error("the text at byte {0} is not UTF-8")]
    NotText(usize),
    /// The status is no HTTP status.
    #[error("{0} is not an HTTP status between 200 and 599")]
    Status(u16),
}

/// The head of a request, borrowed from whoever encodes or from the frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestHead<'a> {
    /// When the invocation's time runs out: nanoseconds since the Unix epoch.
    pub deadline_unix_ns: u64,
    /// The invocation's public name (`X-Call-Id`).
    pub call_id: &'a str,
    /// The HTTP method.
    pub method: &'a str,
    /// The rest of the path after the function's name: empty, or starting with `/`.
    pub path: &'a str,
    /// The query string without `?`.
    pub query: &'a str,
    /// Names are in lower case; values are bytes.
    pub headers: Vec<(&'a str, &'a [u8])>,
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseHead<'a> {
    /// 200 to 599.
    pub status: u16,
    /// Names and values; the gateway checks that HTTP allows them.
    pub headers: Vec<(&'a str, &'a [u8])>,
}

impl<'a> RequestHead<'a> {
    /// Replaces what is in `out` with the encoded head, padded so that the body can follow.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        out.clear();
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.deadline_unix_ns.to_le_bytes());
        for text in [self.call_id, self.method, self.path, self.query] {
            put(out, text.as_bytes());
        }
        put_headers(out, &self.headers)?;
        finish(out)
    }

    /// Reads the head at the start of `frame`; returns it and where the body starts.
    pub fn decode(frame: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let (view, body_at) = RequestView::decode(frame)?;
        let RequestView { deadline_unix_ns, call_id, method, path, query, headers } = view;
        let headers = headers.collect();
        Ok((Self { deadline_unix_ns, call_id, method, path, query, headers }, body_at))
    }
}

/// The head of a request as it lies in its frame: checked as a whole, headers read when asked for.
#[derive(Debug, Clone)]
pub struct RequestView<'a> {
    /// As [`RequestHead::deadline_unix_ns`].
    pub deadline_unix_ns: u64,
    /// As [`RequestHead::call_id`].
    pub call_id: &'a str,
    /// As [`RequestHead::method`].
    pub method: &'a str,
    /// As [`RequestHead::path`].
    pub path: &'a str,
    /// As [`RequestHead::query`].
    pub query: &'a str,
    /// Names and values.
    pub headers: Headers<'a>,
}

impl<'a> RequestView<'a> {
    /// Reads the head at the start of `frame`; returns it and where the body starts.
    pub fn decode(frame: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let mut reader = Reader::new(frame)?;
        reader.u32()?;
        let deadline_unix_ns = u64::from_le_bytes(reader.take(8)?.try_into().expect("eight bytes"));
        let view = Self {
            deadline_unix_ns,
            call_id: reader.text()?,
            method: reader.text()?,
            path: reader.text()?,
            query: reader.text()?,
            headers: reader.headers()?,
        };
        Ok((view, reader.end()?))
    }
}

/// Headers in a frame whose every length and name was checked when it was decoded.
#[derive(Debug, Clone, Default)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader { frame: self.bytes, at: 0, head_len: self.bytes.len() };
        let header = (reader.text().ok()?, reader.bytes().ok()?);
        self.bytes = &self.bytes[reader.at..];
        Some(header)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// Builds the head of a response, header by header, in memory that is used again for the next one.
#[derive(Debug, Clone)]
pub struct ResponseEncoder {
    bytes: Vec<u8>,
    count: usize,
}

/// Bytes before the first header: `head_len`, status, zero, count.
const RESPONSE_FIXED: usize = 12;

impl Default for ResponseEncoder {
    fn default() -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.resize(RESPONSE_FIXED, 0);
        Self { bytes, count: 0 }
    }
}

impl ResponseEncoder {
    /// Forgets all headers.
    pub fn clear(&mut self) {
        self.bytes.truncate(RESPONSE_FIXED);
        self.count = 0;
    }

    /// Adds one header; nothing is changed when it doesn't fit.
    pub fn header(&mut self, name: &str, value: &[u8]) -> Result<(), FrameError> {
        bound("the number of headers", self.count + 1, HEADERS_MAX)?;
        let len = self.bytes.len().saturating_add(8).saturating_add(name.len()).saturating_add(value.len());
        bound("the head", len, HEAD_MAX)?;
        put(&mut self.bytes, name.as_bytes());
        put(&mut self.bytes, value);
        self.count += 1;
        Ok(())
    }

    /// Whether no header was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the head takes now, up to the body.
    pub fn len(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGN)
    }

    /// The head with its first fields filled in; the body starts at `body_at`, at least [`Self::len`].
    /// What lies between the returned bytes and `body_at` has no meaning.
    pub fn finish(&mut self, status: u16, body_at: u32) -> &[u8] {
        debug_assert!(body_at as usize >= self.len() && (body_at as usize).is_multiple_of(ALIGN));
        self.bytes[..4].copy_from_slice(&body_at.to_le_bytes());
        self.bytes[4..6].copy_from_slice(&status.to_le_bytes());
        self.bytes[6..8].copy_from_slice(&[0; 2]);
        self.bytes[8..RESPONSE_FIXED].copy_from_slice(&(self.count as u32).to_le_bytes());
        &self.bytes
    }
}

impl<'a> ResponseHead<'a> {
    /// Replaces what is in `out` with the encoded head, padded so that the body can follow.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        out.clear();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.status.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        put_headers(out, &self.headers)?;
        finish(out)
    }

    /// Reads the head at the start of `frame`; returns it and where the body starts.
    pub fn decode(frame: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let mut reader = Reader::new(frame)?;
        let status = u16::from_le_bytes(reader.take(4)?[..2].try_into().expect("two bytes"));
        if !(200..=599).contains(&status) {
            return Err(FrameError::Status(status));
        }
        let head = Self { status, headers: reader.headers()?.collect() };
        Ok((head, reader.end()?))
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_headers(out: &mut Vec<u8>, headers: &[(&str, &[u8])]) -> Result<(), FrameError> {
    bound("the number of headers", headers.len(), HEADERS_MAX)?;
    out.extend_from_slice(&(headers.len() as u32).to_le_bytes());
    for (name, value) in headers {
        put(out, name.as_bytes());
        put(out, value);
    }
    Ok(())
}

fn finish(out: &mut Vec<u8>) -> Result<(), FrameError> {
    out.resize(out.len().next_multiple_of(ALIGN), 0);
    bound("the head", out.len(), HEAD_MAX)?;
    let head_len = out.len() as u32;
    out[..4].copy_from_slice(&head_len.to_le_bytes());
    Ok(())
}

fn bound(what: &'static str, value: usize, limit: usize) -> Result<(), FrameError> {
    if value > limit { Err(FrameError::TooLarge { what, value, limit }) } else { Ok(()) }
}

struct Reader<'a> {
    frame: &'a [u8],
    at: usize,
    head_len: usize,
}

impl<'a> Reader<'a> {
    fn new(frame: &'a [u8]) -> Result<Self, FrameError> {
        let mut reader = Self { frame, at: 0, head_len: frame.len().min(HEAD_MAX) };
        let head_len = reader.u32()? as usize;
        bound("the head", head_len, HEAD_MAX)?;
        if head_len > frame.len() {
            return Err(FrameError::Truncated(frame.len()));
        }
        reader.head_len = head_len;
        Ok(reader)
    }
    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.head_len);
        let end = end.ok_or(FrameError::Truncated(self.at))?;
        let bytes = self.frame.get(self.at..end).ok_or(FrameError::Truncated(self.at))?;
        self.at = end;
        Ok(bytes)
    }
    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }
    fn bytes(&mut self) -> Result<&'a [u8], FrameError> {
        let len = self.u32()? as usize;
        self.take(len)
    }
    fn text(&mut self) -> Result<&'a str, FrameError> {
        let at = self.at;
        std::str::from_utf8(self.bytes()?).map_err(|_| FrameError::NotText(at))
    }
    /// Walks over the headers, checking each; the result reads them again without failing.
    fn headers(&mut self) -> Result<Headers<'a>, FrameError> {
        let count = self.u32()? as usize;
        bound("the number of headers", count, HEADERS_MAX)?;
        let start = self.at;
        for _ in 0..count {
            self.text()?;
            self.bytes()?;
        }
        Ok(Headers { bytes: &self.frame[start..self.at], left: count })
    }
    fn end(&self) -> Result<usize, FrameError> {
        let (said, is) = (self.head_len, self.at);
        if said.is_multiple_of(ALIGN) { Ok(said) } else { Err(FrameError::HeadLength { said, is }) }
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
