//! Makes a picture small and turns it upright.

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, Rgb, imageops};

use crate::raw::Header;

/// The picture, `wanted` pixels wide (never wider than it was) and upright: its header and its rows.
///
/// `rows` must be as long as `header` says.
pub fn scale(header: &Header, rows: &[u8], wanted: u32) -> (Header, Vec<u8>) {
    let large: ImageBuffer<Rgb<u8>, &[u8]> =
        ImageBuffer::from_raw(header.width, header.height, rows).expect("the caller has checked the length");
    let (width, height) = size((header.width, header.height), lies_on_its_side(header.orientation), wanted);
    let mut small = DynamicImage::from(imageops::thumbnail(&large, width, height));
    small.apply_orientation(header.orientation);
    (Header::upright(small.width(), small.height()), small.into_rgb8().into_raw())
}

/// The size before it is turned upright, so that it is `wanted` wide afterwards.
fn size((width, height): (u32, u32), on_its_side: bool, wanted: u32) -> (u32, u32) {
    let scaled = |along: u32, across: u32, to: u32| {
        let exact = (u64::from(across) * u64::from(to)).div_ceil(u64::from(along).max(1));
        exact.min(u64::from(across)) as u32
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
    use super::*;

    /// Red on the left, blue on the right.
    fn picture(width: u32, height: u32) -> Vec<u8> {
        let colour = |at| if at % width < width / 2 { [220, 20, 20] } else { [20, 20, 220] };
        (0..width * height).flat_map(colour).collect()
    }

    #[test]
    fn it_is_as_wide_as_asked_and_shows_the_same() {
        let (header, rows) = scale(&Header::upright(640, 400), &picture(640, 400), 64);
        assert_eq!(header, Header::upright(64, 40));
        assert_eq!(rows, picture(64, 40));
    }

    #[test]
    fn a_small_picture_is_not_blown_up() {
        let of =
            |width, height, wanted| scale(&Header::upright(width, height), &picture(width, height), wanted).0;
        assert_eq!(of(20, 10, 320), Header::upright(20, 10));
        assert_eq!(of(2000, 1, 10), Header::upright(10, 1));
    }

    #[test]
    fn a_picture_on_its_side_is_put_upright() {
        // Turned clockwise, what was left is on top.
        let lying = Header { orientation: Orientation::Rotate90, ..Header::upright(64, 40) };
        let (header, rows) = scale(&lying, &picture(64, 40), 20);
        assert_eq!(header, Header::upright(20, 32));
        assert_eq!((&rows[..3], &rows[rows.len() - 3..]), (&[220, 20, 20][..], &[20, 20, 220][..]));
    }

    #[test]
    fn nothing_stays_nothing() {
        for (width, height) in [(0, 0), (0, 5), (5, 0)] {
            let (header, rows) = scale(&Header::upright(width, height), &[], 10);
            assert_eq!((header.picture_len(), rows.len()), (16, 0), "{width} x {height}");
        }
    }
}
