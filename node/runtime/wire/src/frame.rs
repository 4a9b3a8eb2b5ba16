//! Request and response frames: a head, then the body, in one block of a segment.
//!
//! ```text
//! request:  ├ u32 head_len ┼ u32 zero ┼ u64 deadline (Unix, ns) ┼ call id ┼ method ┼ path ┼ query ┼ headers ┼ pad ┤ body
//! response: ├ u32 head_len ┼ u16 status ┼ u16 zero ┼ headers ┼ pad ┤ body
//! string:   u32 length, bytes          headers: u32 count, then name and value as strings
//! ```
//!
//! Integers are little-endian. `head_len` counts from the frame's first byte to the body's first and is a
//! multiple of [`ALIGN`]; the body fills the rest of the block that the descriptor names.

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
    /// `head_len` is not where the head ends.
    #[error("the head says it is {said} bytes long, but it is {is}")]
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
        let mut reader = Reader::new(frame)?;
        reader.u32()?;
        let deadline_unix_ns = u64::from_le_bytes(reader.take(8)?.try_into().expect("eight bytes"));
        let head = Self {
            deadline_unix_ns,
            call_id: reader.text()?,
            method: reader.text()?,
            path: reader.text()?,
            query: reader.text()?,
            headers: reader.headers()?,
        };
        Ok((head, reader.end()?))
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
        let head = Self { status, headers: reader.headers()? };
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
        std::str::from_utf8(self.bytes()?).map_err(|_| FrameError::Truncated(at))
    }
    fn headers(&mut self) -> Result<Vec<(&'a str, &'a [u8])>, FrameError> {
        let count = self.u32()? as usize;
        bound("the number of headers", count, HEADERS_MAX)?;
        (0..count).map(|_| Ok((self.text()?, self.bytes()?))).collect()
    }
    fn end(&self) -> Result<usize, FrameError> {
        let is = self.at.next_multiple_of(ALIGN);
        if is == self.head_len { Ok(is) } else { Err(FrameError::HeadLength { said: self.head_len, is }) }
    }
}
