//! From JPEG to rows of pixels and back.

use std::io::{Cursor, Write};

use image::codecs::jpeg::{JpegDecoder, JpegEncoder};
use image::{ColorType, ExtendedColorType, ImageDecoder, ImageError};

use crate::raw::Header;

/// Larger pictures are refused by their header alone. Decoding takes up to nine bytes a pixel beside the three of
/// the answer, and `decode/spry.toml` promises that much memory.
pub const PIXELS_MAX: u64 = 24_000_000;

/// Why there are no pixels. Always the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not a JPEG, or a broken one.
    #[error("this is not a JPEG that can be read: {0}")]
    NotAPicture(#[from] ImageError),
    /// A decompression bomb, or just a very large picture.
    #[error("a picture of {width} x {height} is too large: {PIXELS_MAX} pixels at most")]
    TooLarge {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
    },
    /// Neither grey nor colour.
    #[error("a JPEG with pixels of the kind {0:?} can't be read")]
    Colour(ColorType),
}

/// A JPEG whose header has been read.
pub struct Picture<'a> {
    header: Header,
    grey: bool,
    decoder: JpegDecoder<Cursor<&'a [u8]>>,
}

impl<'a> Picture<'a> {
    /// Reads the header.
    pub fn open(jpeg: &'a [u8]) -> Result<Self, Refusal> {
        let mut decoder = JpegDecoder::new(Cursor::new(jpeg))?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > PIXELS_MAX {
            return Err(Refusal::TooLarge { width, height });
        }
        let grey = match decoder.color_type() {
            ColorType::L8 => true,
            ColorType::Rgb8 => false,
            other => return Err(Refusal::Colour(other)),
        };
        let header = Header { width, height, orientation: decoder.orientation()? };
        Ok(Self { header, grey, decoder })
    }

    /// Of the raw picture that [`Self::decode`] makes.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Decodes into `rows`, which must be as long as the header says: straight there, without a copy, unless the
    /// picture is grey.
    pub fn decode(self, rows: &mut [u8]) -> Result<(), Refusal> {
        if !self.grey {
            return Ok(self.decoder.read_image(rows)?);
        }
        // The last third holds the grey values until each has been spread over three bytes, front to back: the
        // reading place is never behind the writing place.
        let pixels = rows.len() / 3;
        self.decoder.read_image(&mut rows[2 * pixels..])?;
        for at in 0..pixels {
            let value = rows[2 * pixels + at];
            rows[3 * at..3 * at + 3].fill(value);
        }
        Ok(())
    }
}

/// Encodes rows of pixels.
pub fn encode(header: &Header, rows: &[u8], quality: u8, out: impl Write) -> Result<(), ImageError> {
    let mut encoder = JpegEncoder::new_with_quality(out, quality);
    encoder.encode(rows, header.width, header.height, ExtendedColorType::Rgb8)
}

#[cfg(test)]
mod tests {
    use image::metadata::Orientation;

    use super::*;

    const SIZE: Header = Header { width: 64, height: 40, orientation: Orientation::NoTransforms };

    /// Red on the left, blue on the right.
    fn colours() -> Vec<u8> {
        (0..64 * 40).flat_map(|at| if at % 64 < 32 { [220, 20, 20] } else { [20, 20, 220] }).collect()
    }

    fn colour_jpeg() -> Vec<u8> {
        let mut jpeg = Vec::new();
        encode(&SIZE, &colours(), 90, &mut jpeg).unwrap();
        jpeg
    }

    /// The same with an EXIF note that says how it lies.
    fn lying(mut jpeg: Vec<u8>, orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        let mut segment = vec![0xff, 0xe1];
        segment.extend((exif.len() as u16 + 2).to_be_bytes());
        segment.extend(exif);
        jpeg.splice(2..2, segment);
        jpeg
    }

    fn decoded(jpeg: &[u8]) -> Result<(Header, Vec<u8>), Refusal> {
        let picture = Picture::open(jpeg)?;
        let header = picture.header();
        let mut rows = vec![0; 3 * (header.width * header.height) as usize];
        picture.decode(&mut rows).map(|()| (header, rows))
    }

    fn near(a: &[u8], b: &[u8]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) < 40)
    }

    #[test]
    fn colours_come_back() {
        let (header, rows) = decoded(&colour_jpeg()).unwrap();
        assert_eq!(header, SIZE);
        assert!(near(&rows, &colours()));
    }

    #[test]
    fn grey_becomes_three_equal_bytes_a_pixel() {
        let grey: Vec<u8> = (0..64 * 40).map(|at| (4 * (at % 64)) as u8).collect();
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 95).encode(&grey, 64, 40, ExtendedColorType::L8).unwrap();
        let (_, rows) = decoded(&jpeg).unwrap();
        let expected: Vec<u8> = grey.iter().flat_map(|value| [*value; 3]).collect();
        assert!(near(&rows, &expected));
    }

    #[test]
    fn how_it_lies_is_noted() {
        let (header, _) = decoded(&lying(colour_jpeg(), 6)).unwrap();
        assert_eq!(header, Header { orientation: Orientation::Rotate90, ..SIZE });
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let whole = colour_jpeg();
        for bytes in [b"".as_slice(), b"hello", &whole[..20], &[0xff, 0xd8, 0xff, 0xd9]] {
            assert!(matches!(decoded(bytes), Err(Refusal::NotAPicture(_))));
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bomb = colour_jpeg();
        let frame = bomb.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
        bomb[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
        let refusal = decoded(&bomb).expect_err("it was decoded");
        assert!(matches!(refusal, Refusal::TooLarge { width: 65500, height: 65500 }), "{refusal}");
    }
}
