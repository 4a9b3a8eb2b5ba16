//! The pieces that all heads are made of: integers, strings, headers.

use std::fmt;

use super::{ALIGN, FrameError, HEADERS_MAX, KIND_AT, Kind, Origin, Place, START_LEN, STATUS_AT, head_len};

/// A string in a frame, which was checked when it was decoded.
///
/// It stays bytes until somebody asks for text: whoever passes it on as bytes (the C ABI) doesn't pay for a
/// second look at every character.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// Its bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// As text.
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.0).expect("checked when it was read")
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Headers in a frame whose every length and name was checked when it was decoded.
#[derive(Debug, Clone, Default)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Headers<'a> {
    /// The value of the first one of that name.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.pairs().find_map(|(found, value)| (found.as_bytes() == name.as_bytes()).then_some(value))
    }

    /// The same headers, their names not yet as `str`.
    pub fn pairs(&self) -> Pairs<'a> {
        Pairs(self.clone())
    }

    fn read(&mut self) -> Option<(Text<'a>, &'a [u8])> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader::over(self.bytes);
        // Names were checked when the frame was decoded.
        let header = (Text(reader.bytes().ok()?), reader.bytes().ok()?);
        self.bytes = &self.bytes[reader.at..];
        Some(header)
    }
}

/// See [`Headers::pairs`].
#[derive(Debug, Clone)]
pub struct Pairs<'a>(Headers<'a>);

impl<'a> Iterator for Pairs<'a> {
    type Item = (Text<'a>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.read()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.read().map(|(name, value)| (name.as_str(), value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// Starts a head in `out`, in place of what is there; [`finish`] fills in its length.
pub(super) fn start(out: &mut Vec<u8>, kind: Kind, status: u16) {
    out.clear();
    out.extend_from_slice(&[0; START_LEN]);
    out[STATUS_AT..KIND_AT].copy_from_slice(&status.to_le_bytes());
    out[KIND_AT] = kind as u8;
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len() as u32);
    out.extend_from_slice(bytes);
}

pub(super) fn put_origin(out: &mut Vec<u8>, origin: Origin) {
    put_u32(out, origin.offset);
    put_u32(out, origin.length);
}

pub(super) fn put_headers<'a>(
    out: &mut Vec<u8>,
    headers: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>,
) -> Result<(), FrameError> {
    bound("the number of headers", headers.len(), HEADERS_MAX)?;
    put_u32(out, headers.len() as u32);
    for (name, value) in headers {
        put(out, name.as_bytes());
        put(out, value);
    }
    Ok(())
}

/// Pads a head so that a body can follow.
pub(super) fn finish(out: &mut Vec<u8>, limit: usize) -> Result<(), FrameError> {
    out.resize(out.len().next_multiple_of(ALIGN), 0);
    bound("the head", out.len(), limit)?;
    let head_len = out.len() as u32;
    out[..4].copy_from_slice(&head_len.to_le_bytes());
    Ok(())
}

pub(super) fn bound(what: &'static str, value: usize, limit: usize) -> Result<(), FrameError> {
    if value > limit { Err(FrameError::TooLarge { what, value, limit }) } else { Ok(()) }
}

/// Whether all bytes are ASCII, as nearly every string in a head is. Eight at a time: `from_utf8` looks at each byte of
/// a string that is short or doesn't lie at a multiple of eight, and a head has some fifteen such strings.
fn is_ascii(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk::<8>() else { return bytes.is_ascii() };
    let (words, _) = bytes.as_chunks::<8>();
    let bits = words.iter().fold(u64::from_ne_bytes(*last), |bits, word| bits | u64::from_ne_bytes(*word));
    bits & 0x8080_8080_8080_8080 == 0
}

/// Reads a head field by field, never beyond the length that it started with.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) kind: Kind,
    pub(super) status: u16,
}

impl<'a> Reader<'a> {
    /// Reads what all frames start with.
    pub(super) fn new(frame: &'a [u8]) -> Result<Self, FrameError> {
        let head_len = head_len(frame)?;
        let bytes = frame.get(..head_len).ok_or(FrameError::Truncated(frame.len()))?;
        let status = u16::from_le_bytes([bytes[STATUS_AT], bytes[STATUS_AT + 1]]);
        Ok(Self { bytes, at: START_LEN, kind: Kind::of(bytes[KIND_AT])?, status })
    }

    /// Reads fields that no frame's start comes before.
    pub(super) fn over(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, kind: Kind::Request, status: 0 }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let end = self.at.checked_add(len).ok_or(FrameError::Truncated(self.at))?;
        let bytes = self.bytes.get(self.at..end).ok_or(FrameError::Truncated(self.at))?;
        self.at = end;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], FrameError> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<Text<'a>, FrameError> {
        let at = self.at;
        let bytes = self.bytes()?;
        if is_ascii(bytes) || std::str::from_utf8(bytes).is_ok() {
            Ok(Text(bytes))
        } else {
            Err(FrameError::NotText(at))
        }
    }

    pub(super) fn origin(&mut self) -> Result<Origin, FrameError> {
        Ok(Origin { offset: self.u32()?, length: self.u32()? })
    }

    pub(super) fn place(&mut self) -> Result<Place, FrameError> {
        let (segment, generation, offset, length) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        if offset.checked_add(length).is_none() {
            return Err(FrameError::Part { offset, length });
        }
        Ok(Place { segment, generation, offset, length })
    }

    /// Walks over the headers, checking each; the result reads them again without failing.
    pub(super) fn headers(&mut self) -> Result<Headers<'a>, FrameError> {
        let count = self.u32()? as usize;
        bound("the number of headers", count, HEADERS_MAX)?;
        let start = self.at;
        for _ in 0..count {
            self.text()?;
            self.bytes()?;
        }
        Ok(Headers { bytes: self.since(start), left: count })
    }

    /// What was read since `start`.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.at]
    }

    /// Where the body starts.
    pub(super) fn end(&self) -> usize {
        self.bytes.len()
    }
}
