//! What a client wants: the head of a request.

use super::codec::{self, Headers, Reader, Text};
use super::{FrameError, HEAD_MAX, Kind};

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

impl<'a> RequestHead<'a> {
    /// Replaces what is in `out` with the encoded head, padded so that the body can follow.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        codec::start(out, Kind::Request, 0);
        out.extend_from_slice(&self.deadline_unix_ns.to_le_bytes());
        for text in [self.call_id, self.method, self.path, self.query] {
            codec::put(out, text.as_bytes());
        }
        codec::put_headers(out, self.headers.iter().copied())?;
        codec::finish(out, HEAD_MAX)
    }

    /// Reads the head at the start of `frame`; returns it and where the body starts.
    pub fn decode(frame: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let (view, body_at) = RequestView::decode(frame)?;
        let RequestView { deadline_unix_ns, call_id, method, path, query, headers } = view;
        let [call_id, method, path, query] = [call_id, method, path, query].map(Text::as_str);
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
    pub call_id: Text<'a>,
    /// As [`RequestHead::method`].
    pub method: Text<'a>,
    /// As [`RequestHead::path`].
    pub path: Text<'a>,
    /// As [`RequestHead::query`].
    pub query: Text<'a>,
    /// Names and values.
    pub headers: Headers<'a>,
}

impl<'a> RequestView<'a> {
    /// Reads the head at the start of `frame`, which must be a request's; returns it and where the body starts.
    pub fn decode(frame: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let mut reader = Reader::new(frame)?;
        if reader.kind != Kind::Request {
            return Err(FrameError::Kind(reader.kind as u8));
        }
        Ok((Self::read(&mut reader)?, reader.end()))
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, FrameError> {
        Ok(Self {
            deadline_unix_ns: reader.u64()?,
            call_id: reader.text()?,
            method: reader.text()?,
            path: reader.text()?,
            query: reader.text()?,
            headers: reader.headers()?,
        })
    }
}
