//! Decode, resize, turn upright, encode.

use std::io::Cursor;

use image::codecs::jpeg::{JpegDecoder, JpegEncoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError};

use crate::query::Query;

/// Larger pictures are refused by their header alone. Decoding takes up to nine bytes a pixel, and
/// `spry.toml` promises that much memory.
const PIXELS_MAX: u64 = 24_000_000;

/// Why there is no thumbnail. Always the caller's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not a JPEG, or a broken one.
    #[error("this is not a JPEG that can be read: {0}")]
    NotAPicture(#[from] ImageError),
    /// A decompression bomb, or just a very large picture.
    #[error("a picture of {width} x {height} is too large: {PIXELS_MAX} pixels at most")]
    TooLarge { width: u32, height: u32 },
}

/// A JPEG that is `query.width` pixels wide (never wider than the original) and upright.
pub(crate) fn thumbnail(jpeg: &[u8], query: &Query) -> Result<Vec<u8>, Refusal> {
    let mut decoder = JpegDecoder::new(Cursor::new(jpeg))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(Refusal::TooLarge { width, height });
    }
    // Cameras store pictures lying on their side, with a note.
    let orientation = decoder.orientation()?;
    let picture = DynamicImage::from_decoder(decoder)?;
    let (width, height) = size((width, height), lies_on_its_side(orientation), query.width);
    let mut small = picture.thumbnail_exact(width, height);
    drop(picture);
    small.apply_orientation(orientation);
    let mut out = Vec::new();
    // JPEG knows no transparency and only eight bits.
    JpegEncoder::new_with_quality(&mut out, query.quality).encode_image(&small.into_rgb8())?;
    Ok(out)
}

/// The size before it is turned upright, so that it is `wanted` wide afterwards.
fn size((width, height): (u32, u32), on_its_side: bool, wanted: u32) -> (u32, u32) {
    let scaled = |along: u32, across: u32, to: u32| {
        (u64::from(across) * u64::from(to)).div_ceil(u64::from(along)).clamp(1, u64::from(across)) as u32
    };
    if on_its_side {
        let to = wanted.min(height);
        (scaled(height, width, to), to)
    } else {
        let to = wanted.min(width);
        (to, scaled(width, height, to))
    }
}

fn lies_on_its_side(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    /// Red on the left, blue on the right.
    fn picture(width: u32, height: u32) -> Vec<u8> {
        let colour = |x| if x < width / 2 { Rgb([220, 20, 20]) } else { Rgb([20, 20, 220]) };
        let picture = RgbImage::from_fn(width, height, |x, _| colour(x));
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 90).encode_image(&picture).unwrap();
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

    fn decoded(jpeg: &[u8]) -> RgbImage {
        image::load_from_memory(jpeg).unwrap().into_rgb8()
    }

    fn query(width: u32) -> Query {
        Query { width, ..Query::default() }
    }

    #[test]
    fn it_is_as_wide_as_asked_and_shows_the_same() {
        let small = decoded(&thumbnail(&picture(640, 400), &query(64)).unwrap());
        assert_eq!(small.dimensions(), (64, 40));
        let [left, right] = [small.get_pixel(8, 20), small.get_pixel(56, 20)];
        assert!(left[0] > 150 && left[2] < 90, "{left:?}");
        assert!(right[2] > 150 && right[0] < 90, "{right:?}");
    }

    #[test]
    fn a_small_picture_is_not_blown_up() {
        assert_eq!(decoded(&thumbnail(&picture(20, 10), &query(320)).unwrap()).dimensions(), (20, 10));
        assert_eq!(decoded(&thumbnail(&picture(2000, 1), &query(10)).unwrap()).dimensions(), (10, 1));
    }

    #[test]
    fn a_picture_on_its_side_is_put_upright() {
        // 6: turn it clockwise. What was left is then on top.
        let small = decoded(&thumbnail(&lying(picture(640, 400), 6), &query(40)).unwrap());
        assert_eq!(small.dimensions(), (40, 64));
        let [top, bottom] = [small.get_pixel(20, 8), small.get_pixel(20, 56)];
        assert!(top[0] > 150 && bottom[2] > 150, "{top:?} {bottom:?}");
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let whole = picture(64, 64);
        for bytes in [b"".as_slice(), b"hello", &whole[..20], &[0xff, 0xd8, 0xff, 0xd9]] {
            assert!(matches!(thumbnail(bytes, &query(32)), Err(Refusal::NotAPicture(_))));
        }
    }

    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let mut bomb = picture(64, 64);
        let frame = bomb.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
        bomb[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
        let refusal = thumbnail(&bomb, &query(32)).expect_err("it was decoded");
        assert!(matches!(refusal, Refusal::TooLarge { width: 65500, height: 65500 }), "{refusal}");
    }
}
