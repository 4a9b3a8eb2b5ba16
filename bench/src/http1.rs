//! HTTP/1.1 responses, read as they come in: strict, incremental, without a copy of the body.
//!
//! The reader is fed whatever the socket gave and hands body bytes to a [`Sink`] where they lie. It keeps
//! bytes only when a line or a head is cut in two. A benchmark that believes a broken answer measures
//! nonsense, so everything that HTTP forbids and that could shift a message's end is an error here: two
//! lengths, a length beside chunks, a bad chunk, a bare name, a folded line.

mod client;

pub use client::{CallError, Client, call};

/// Longest head, and longest sum of trailers.
const HEAD_MAX: usize = 64 * 1024;
/// Longest line that announces a chunk.
const CHUNK_LINE_MAX: usize = 4096;

/// How a response breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The first line is not `HTTP/1.x NNN reason`.
    #[error("the status line is malformed")]
    StatusLine,
    /// A header line has no colon, no name, or is folded.
    #[error("a header line is malformed")]
    Header,
    /// The head, the trailers or a chunk's line is longer than the reader's bound.
    #[error("a line or head is longer than {0} bytes")]
    TooLong(usize),
    /// No valid length, two different ones, or a length beside chunks.
    #[error("the message's length is malformed or said twice")]
    Length,
    /// A chunk's size or end is malformed.
    #[error("a chunk is malformed")]
    Chunk,
    /// The connection ended within the message.
    #[error("the message ends early")]
    Truncated,
}

/// What `X-Spry-Start` says about the instance that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The function's zygote had to be started.
    Cold,
    /// The instance was forked for this request.
    Forked,
    /// The instance was waiting.
    Warm,
}

/// What the reader keeps of a response's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The HTTP status.
    pub status: u16,
    /// The server closes the connection after this response.
    pub close: bool,
    /// From `X-Spry-Start`, if it is there and known.
    pub start: Option<Start>,
    /// From `Content-Length`.
    pub length: Option<u64>,
    chunked: bool,
}

/// Takes the body's bytes, in order.
pub trait Sink {
    /// The next part of the body.
    fn body(&mut self, part: &[u8]);
}

impl Sink for Vec<u8> {
    fn body(&mut self, part: &[u8]) {
        self.extend_from_slice(part);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Fixed { left: u64 },
    ChunkSize,
    ChunkData { left: u64 },
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

/// Reads one response after the other.
#[derive(Debug)]
pub struct ResponseReader {
    state: State,
    head: Option<Head>,
    /// The beginning of a head or line that is not whole yet.
    pending: Vec<u8>,
    trailer_bytes: usize,
}

impl Default for ResponseReader {
    fn default() -> Self {
        Self { state: State::Head, head: None, pending: Vec::new(), trailer_bytes: 0 }
    }
}

impl ResponseReader {
    /// Takes more bytes. `Some(n)`: the response is whole and ends after the first `n` of them; the next call
    /// starts a new response. `None`: all were taken and more are needed.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<Option<usize>, ResponseError> {
        if self.state == State::Done {
            *self = Self { pending: std::mem::take(&mut self.pending), ..Self::default() };
        }
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            at += self.step(&bytes[at..], sink)?;
        }
        Ok((self.state == State::Done).then_some(at))
    }

    /// The head of the current or last response, once it is whole.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// Nothing of a response has been seen since the last one ended.
    pub fn is_fresh(&self) -> bool {
        self.state == State::Done || (self.state == State::Head && self.pending.is_empty())
    }

    /// The connection has ended: fine only for a response that lasts until then.
    pub fn end_of_file(&mut self) -> Result<(), ResponseError> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(ResponseError::Truncated),
        }
    }

    /// One step; returns how many bytes it took (at least one, or it changed the state).
    fn step(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, ResponseError> {
        match self.state {
            State::Head => self.step_head(bytes),
            State::Fixed { left } => {
                let take = take_up_to(bytes, left);
                sink.body(&bytes[..take]);
                let left = left - take as u64;
                self.state = if left == 0 { State::Done } else { State::Fixed { left } };
                Ok(take)
            }
            State::ChunkData { left } => {
                let take = take_up_to(bytes, left);
                sink.body(&bytes[..take]);
                let left = left - take as u64;
                self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData { left } };
                Ok(take)
            }
            State::ChunkSize => self.step_line(bytes, CHUNK_LINE_MAX, |reader, line| {
                let left = chunk_size(line)?;
                reader.state = if left == 0 { State::Trailers } else { State::ChunkData { left } };
                reader.trailer_bytes = 0;
                Ok(())
            }),
            State::ChunkEnd => self.step_line(bytes, 2, |reader, line| {
                reader.state = State::ChunkSize;
                if line.is_empty() { Ok(()) } else { Err(ResponseError::Chunk) }
            }),
            State::Trailers => self.step_line(bytes, HEAD_MAX, |reader, line| {
                reader.trailer_bytes += line.len() + 2;
                if line.is_empty() {
                    reader.state = State::Done;
                } else if reader.trailer_bytes > HEAD_MAX {
                    return Err(ResponseError::TooLong(HEAD_MAX));
                } else {
                    split_header(line)?;
                }
                Ok(())
            }),
            State::UntilClose => {
                sink.body(bytes);
                Ok(bytes.len())
            }
            State::Done => Ok(0),
        }
    }

    fn step_head(&mut self, bytes: &[u8]) -> Result<usize, ResponseError> {
        let before = self.pending.len();
        let (head, taken) = if before == 0 {
            match find_head_end(bytes, 0) {
                Some(end) => (parse_head(&bytes[..end])?, end),
                None => return self.keep(bytes, HEAD_MAX),
            }
        } else {
            self.pending.extend_from_slice(bytes);
            let Some(end) = find_head_end(&self.pending, before.saturating_sub(3)) else {
                self.pending.truncate(before);
                return self.keep(bytes, HEAD_MAX);
            };
            let head = parse_head(&self.pending[..end])?;
            self.pending.clear();
            (head, end - before)
        };
        if before + taken > HEAD_MAX {
            return Err(ResponseError::TooLong(HEAD_MAX));
        }
        self.state = match head {
            // An interim response: the real one follows. (101 would hand the connection to another protocol.)
            Head { status: 100..=199, .. } => return Ok(taken),
            Head { status: 204 | 304, .. } => State::Done,
            Head { chunked: true, .. } => State::ChunkSize,
            Head { length: Some(0), .. } => State::Done,
            Head { length: Some(left), .. } => State::Fixed { left },
            Head { length: None, .. } => State::UntilClose,
        };
        self.head = Some(head);
        Ok(taken)
    }

    fn step_line(
        &mut self,
        bytes: &[u8],
        limit: usize,
        act: impl FnOnce(&mut Self, &[u8]) -> Result<(), ResponseError>,
    ) -> Result<usize, ResponseError> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            return self.keep(bytes, limit);
        };
        self.keep(&bytes[..=end], limit)?;
        let line = std::mem::take(&mut self.pending);
        act(self, line.strip_suffix(b"\r\n").ok_or(ResponseError::Chunk)?)?;
        Ok(end + 1)
    }

    fn keep(&mut self, bytes: &[u8], limit: usize) -> Result<usize, ResponseError> {
        if self.pending.len() + bytes.len() > limit {
            return Err(ResponseError::TooLong(limit));
        }
        self.pending.extend_from_slice(bytes);
        Ok(bytes.len())
    }
}

fn take_up_to(bytes: &[u8], left: u64) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

/// Where the head that may end at or after `from` ends, its empty line included.
fn find_head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == b'\r') {
        at += next;
        if bytes[at..].starts_with(b"\r\n\r\n") {
            return Some(at + 4);
        }
        at += 1;
    }
    None
}

fn parse_head(bytes: &[u8]) -> Result<Head, ResponseError> {
    let mut lines = bytes[..bytes.len() - 4].split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let mut head = Head {
        status: parse_status_line(first.strip_suffix(b"\r").unwrap_or(first))?,
        // HTTP/1.0 closes unless it says otherwise.
        close: first.starts_with(b"HTTP/1.0"),
        start: None,
        length: None,
        chunked: false,
    };
    for line in lines {
        let (name, value) = split_header(line.strip_suffix(b"\r").unwrap_or(line))?;
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        head.close = true;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        head.close = false;
                    }
                }
            }
            12 if name.eq_ignore_ascii_case(b"x-spry-start") => {
                head.start = match value {
                    b"cold" => Some(Start::Cold),
                    b"forked" => Some(Start::Forked),
                    b"warm" => Some(Start::Warm),
                    _ => None,
                };
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = decimal(value).ok_or(ResponseError::Length)?;
                if head.length.is_some_and(|before| before != length) {
                    return Err(ResponseError::Length);
                }
                head.length = Some(length);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if head.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(ResponseError::Length);
                }
                head.chunked = true;
            }
            _ => {}
        }
    }
    if head.chunked && head.length.is_some() { Err(ResponseError::Length) } else { Ok(head) }
}

fn parse_status_line(line: &[u8]) -> Result<u16, ResponseError> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', a, b, c, rest @ ..] = line else {
        return Err(ResponseError::StatusLine);
    };
    let ends = rest.is_empty() || rest[0] == b' ';
    match (a, b, c) {
        (b'1'..=b'9', b'0'..=b'9', b'0'..=b'9') if ends => {
            Ok(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
        }
        _ => Err(ResponseError::StatusLine),
    }
}

fn split_header(line: &[u8]) -> Result<(&[u8], &[u8]), ResponseError> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or(ResponseError::Header)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || name.iter().any(|byte| !byte.is_ascii_graphic()) || value.contains(&0) {
        return Err(ResponseError::Header);
    }
    Ok((name, value.trim_ascii()))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn chunk_size(line: &[u8]) -> Result<u64, ResponseError> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 {
        return Err(ResponseError::Chunk);
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        let value = char::from(*digit).to_digit(16).ok_or(ResponseError::Chunk)?;
        Ok(sum * 16 + u64::from(value))
    })
}

#[cfg(test)]
mod tests;
