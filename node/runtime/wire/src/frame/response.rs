//! What an instance answers: the head of a response.

use super::codec::{self, Headers, Reader};
use super::{ALIGN, FrameError, HEAD_MAX, HEADERS_MAX, Kind, Origin, START_LEN};

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseHead<'a> {
    /// 200 to 599.
    pub status: u16,
    /// Where the request lies that it goes back to.
    pub origin: Origin,
    /// Names and values; the gateway checks that HTTP allows them.
    pub headers: Vec<(&'a str, &'a [u8])>,
}

impl<'a> ResponseHead<'a> {
    /// Replaces what is in `out` with the encoded head, padded so that the body can follow.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        codec::start(out, Kind::Response, self.status);
        codec::put_origin(out, self.origin);
        codec::put_headers(out, self.headers.iter().copied())?;
        codec::finish(out, HEAD_MAX)
    }

    /// Reads the head at the start of `frame`, which must be a response's; returns it and where the body starts.
    pub fn decode(frame: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let mut reader = Reader::new(frame)?;
        if reader.kind != Kind::Response {
            return Err(FrameError::Kind(reader.kind as u8));
        }
        let ResponseView { status, origin, headers } = ResponseView::read(&mut reader)?;
        Ok((Self { status, origin, headers: headers.collect() }, reader.end()))
    }
}

/// The head of a response as it lies in its frame.
#[derive(Debug, Clone)]
pub struct ResponseView<'a> {
    /// As [`ResponseHead::status`].
    pub status: u16,
    /// As [`ResponseHead::origin`].
    pub origin: Origin,
    /// Names and values.
    pub headers: Headers<'a>,
}

impl<'a> ResponseView<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, FrameError> {
        let status = reader.status;
        if !(200..=599).contains(&status) {
            return Err(FrameError::Status(status));
        }
        Ok(Self { status, origin: reader.origin()?, headers: reader.headers()? })
    }
}

/// Builds the head of a response, header by header, in memory that is used again for the next one.
#[derive(Debug, Clone)]
pub struct ResponseEncoder {
    bytes: Vec<u8>,
    count: usize,
}

const COUNT_AT: usize = START_LEN + size_of::<Origin>();
/// Bytes before the first header.
const FIXED: usize = COUNT_AT + 4;

impl Default for ResponseEncoder {
    fn default() -> Self {
        let mut bytes = Vec::with_capacity(512);
        codec::start(&mut bytes, Kind::Response, 0);
        bytes.resize(FIXED, 0);
        Self { bytes, count: 0 }
    }
}

impl ResponseEncoder {
    /// Forgets all headers.
    pub fn clear(&mut self) {
        self.bytes.truncate(FIXED);
        self.count = 0;
    }

    /// Adds one header, its name in lower case; nothing is changed when it doesn't fit.
    pub fn header(&mut self, name: &str, value: &[u8]) -> Result<(), FrameError> {
        codec::bound("the number of headers", self.count + 1, HEADERS_MAX)?;
        let len = self.bytes.len().saturating_add(8).saturating_add(name.len()).saturating_add(value.len());
        codec::bound("the head", len, HEAD_MAX)?;
        codec::put(&mut self.bytes, name.as_bytes());
        let name_at = self.bytes.len() - name.len();
        self.bytes[name_at..].make_ascii_lowercase();
        codec::put(&mut self.bytes, value);
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
    pub fn finish(&mut self, status: u16, origin: Origin, body_at: u32) -> &[u8] {
        debug_assert!(body_at as usize >= self.len() && (body_at as usize).is_multiple_of(ALIGN));
        self.bytes[..4].copy_from_slice(&body_at.to_le_bytes());
        self.bytes[4..6].copy_from_slice(&status.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&origin.offset.to_le_bytes());
        self.bytes[12..COUNT_AT].copy_from_slice(&origin.length.to_le_bytes());
        self.bytes[COUNT_AT..FIXED].copy_from_slice(&(self.count as u32).to_le_bytes());
        &self.bytes
    }
}
