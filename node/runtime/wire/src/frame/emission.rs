//! A value that a function emits while it goes on serving, as it lies in a block of its instance's outbox.
//!
//! ```text
//! ├ name ┼ content type ┼ pad ┤ value                  string: u32 length, bytes
//! ```
//!
//! The value starts at a multiple of [`ALIGN`] and fills the rest of the block.

use super::codec::Reader;
use super::{ALIGN, FrameError};

/// Characters of a name at most.
pub const NAME_MAX: usize = 64;
/// Bytes of a content type at most.
pub const CONTENT_TYPE_MAX: usize = 256;
/// Bytes before the value at most: who copies so many of a block has copied all that [`Emission::decode`] needs.
pub const EMISSION_HEAD_MAX: usize = (4 + NAME_MAX + 4 + CONTENT_TYPE_MAX).next_multiple_of(ALIGN);

/// What comes before an emitted value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Emission<'a> {
    name: &'a str,
    content_type: &'a str,
}

impl<'a> Emission<'a> {
    /// Checks both.
    pub fn new(name: &'a str, content_type: &'a str) -> Result<Self, FrameError> {
        let of_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(of_name) {
            return Err(FrameError::Name);
        }
        let printable = |byte: u8| (b' '..=b'~').contains(&byte);
        if content_type.len() > CONTENT_TYPE_MAX || !content_type.bytes().all(printable) {
            return Err(FrameError::ContentType);
        }
        Ok(Self { name, content_type })
    }

    /// 1 to [`NAME_MAX`] characters of `a-z`, `0-9`, `_` and `-`.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Printable ASCII, at most [`CONTENT_TYPE_MAX`] of it; empty when its author said none.
    pub fn content_type(&self) -> &'a str {
        self.content_type
    }

    /// Where in its block the value starts, at most [`EMISSION_HEAD_MAX`].
    pub fn value_at(&self) -> usize {
        (8 + self.name.len() + self.content_type.len()).next_multiple_of(ALIGN)
    }

    /// Writes what comes before the value.
    ///
    /// # Panics
    /// When `head` isn't [`Self::value_at`] bytes long.
    pub fn encode(&self, head: &mut [u8]) {
        assert_eq!(head.len(), self.value_at(), "the head goes up to the value");
        head.fill(0);
        let mut at = 0;
        for text in [self.name, self.content_type] {
            head[at..at + 4].copy_from_slice(&(text.len() as u32).to_le_bytes());
            head[at + 4..at + 4 + text.len()].copy_from_slice(text.as_bytes());
            at += 4 + text.len();
        }
    }

    /// Reads it from a private copy of the block's first bytes: all of them, or [`EMISSION_HEAD_MAX`]. The second
    /// value says where in the block the value starts; the block is at least that long.
    pub fn decode(block: &'a [u8]) -> Result<(Self, usize), FrameError> {
        let mut reader = Reader::over(block);
        let emission = Self::new(reader.text()?.as_str(), reader.text()?.as_str())?;
        let value_at = emission.value_at();
        if value_at > block.len() {
            return Err(FrameError::Truncated(block.len()));
        }
        Ok((emission, value_at))
    }
}
