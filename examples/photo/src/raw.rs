//! The raw picture that travels from step to step.
//!
//! ```text
//!  0        4        8        12           16
//!  | "RGB8" | width  | height | lies       | rows, top to bottom: red, green, blue, one byte each
//!             u32      u32      u32         all numbers little-endian
//! ```
//!
//! `lies` is the EXIF orientation (1 to 8, 1: upright): turning a small picture is cheaper than turning a large
//! one, so the step that makes it small does it.

use image::metadata::Orientation;

/// Bytes before the first row.
pub const HEADER_LEN: usize = 16;
const MAGIC: [u8; 4] = *b"RGB8";

/// Bytes that claim to be a raw picture and aren't.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRaw {
    /// Too short, or another beginning.
    #[error(
        "this is no raw picture: the step before should answer one (RGB8, width, height, orientation, rows)"
    )]
    Magic,
    /// No EXIF orientation.
    #[error("a picture can't lie in way {0}: EXIF knows 1 to 8")]
    Orientation(u32),
    /// The rows are not as many bytes as the size says.
    #[error("a raw picture of {width} x {height} has {expected} bytes, not {found}")]
    Length {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Header and rows.
        expected: u64,
        /// What there is.
        found: usize,
    },
}

/// A header that has been checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// How the picture lies.
    pub orientation: Orientation,
}

impl Header {
    /// Of a picture that stands upright.
    pub fn upright(width: u32, height: u32) -> Self {
        Self { width, height, orientation: Orientation::NoTransforms }
    }

    /// Bytes of the whole picture with this header.
    pub fn picture_len(&self) -> u64 {
        HEADER_LEN as u64 + 3 * u64::from(self.width) * u64::from(self.height)
    }

    /// The header as it travels.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let numbers = [self.width, self.height, u32::from(self.orientation.to_exif())];
        bytes[..4].copy_from_slice(&MAGIC);
        for (place, number) in bytes[4..].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// Takes a raw picture apart, without a copy: its header and its rows.
pub fn parse(bytes: &[u8]) -> Result<(Header, &[u8]), NotRaw> {
    let (header, rows) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(NotRaw::Magic)?;
    if header[..4] != MAGIC {
        return Err(NotRaw::Magic);
    }
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let orientation = u8::try_from(number(12)).ok().and_then(Orientation::from_exif);
    let header = Header {
        width: number(4),
        height: number(8),
        orientation: orientation.ok_or(NotRaw::Orientation(number(12)))?,
    };
    // Saturating: two sizes of four thousand million pixels each would not fit into 64 bits.
    let expected = (3 * u64::from(header.width))
        .saturating_mul(u64::from(header.height))
        .saturating_add(HEADER_LEN as u64);
    if expected != bytes.len() as u64 {
        let (width, height, found) = (header.width, header.height, bytes.len());
        return Err(NotRaw::Length { width, height, expected, found });
    }
    Ok((header, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(header: Header) -> Vec<u8> {
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(header.picture_len() as usize, 7);
        bytes
    }

    #[test]
    fn a_picture_is_taken_apart_as_it_was_put_together() {
        let header = Header { width: 3, height: 2, orientation: Orientation::Rotate90 };
        let bytes = picture(header);
        assert_eq!(&bytes[..HEADER_LEN], b"RGB8\x03\0\0\0\x02\0\0\0\x06\0\0\0");
        assert_eq!(parse(&bytes), Ok((header, [7; 18].as_slice())));
        assert_eq!(parse(&picture(Header::upright(0, 9))), Ok((Header::upright(0, 9), [].as_slice())));
    }

    #[test]
    fn what_is_no_picture_is_said() {
        let bytes = picture(Header::upright(3, 2));
        for len in [0, 3, 15] {
            assert_eq!(parse(&bytes[..len]), Err(NotRaw::Magic), "{len} bytes");
        }
        assert_eq!(parse(b"not a picture at all"), Err(NotRaw::Magic));
        for wrong in [&bytes[..bytes.len() - 1], &[bytes.as_slice(), b"x"].concat()] {
            let found = wrong.len();
            assert_eq!(parse(wrong), Err(NotRaw::Length { width: 3, height: 2, expected: 34, found }));
        }
        for lies in [0, 9, 257] {
            let mut bytes = bytes.clone();
            bytes[12..16].copy_from_slice(&u32::to_le_bytes(lies));
            assert_eq!(parse(&bytes), Err(NotRaw::Orientation(lies)));
        }
    }

    #[test]
    fn a_size_beyond_all_memory_is_only_a_wrong_size() {
        let bytes = Header::upright(u32::MAX, u32::MAX).to_bytes();
        assert!(matches!(parse(&bytes), Err(NotRaw::Length { expected: u64::MAX, .. })));
    }
}
