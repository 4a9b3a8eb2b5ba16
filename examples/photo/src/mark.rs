//! The watermark: the mark of `mark.txt` in the lower right corner, a quarter of the picture wide.
//!
//! Each `#` of it lightens a square of the picture, each `:` (its shadow) darkens one. `watermark.py` does the same
//! to the byte.

use crate::raw::Header;

/// The mark, a character a square.
const MARK: &str = include_str!("../watermark-python/mark.txt");

/// A stretch of a row that is to be changed: where it begins, how many bytes, and whether they get lighter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// First byte, counted from the first row's first.
    pub at: usize,
    /// Bytes.
    pub len: usize,
    /// Lighter, or darker.
    pub lighter: bool,
}

impl Stretch {
    /// Changes it.
    pub fn apply(&self, rows: &mut [u8]) {
        for value in &mut rows[self.at..self.at + self.len] {
            *value = if self.lighter { 255 - (255 - *value) / 3 } else { *value / 2 };
        }
    }
}

/// What of a picture is to be changed; nothing when it is too small for the mark.
pub fn stretches(header: &Header) -> Vec<Stretch> {
    let (width, height) = (header.width as usize, header.height as usize);
    let (across, down) = (MARK.lines().next().unwrap_or_default().len(), MARK.lines().count());
    let side = width / (4 * across);
    if side == 0 || (down + 2) * side > height {
        return Vec::new();
    }
    // Two squares away from the edges.
    let (left, top) = (width - (across + 2) * side, height - (down + 2) * side);
    let mut found = Vec::new();
    for (line, squares) in MARK.lines().enumerate() {
        for row in top + line * side..top + (line + 1) * side {
            for (column, square) in squares.bytes().enumerate().filter(|(_, square)| *square != b'.') {
                let at = 3 * (row * width + left + column * side);
                found.push(Stretch { at, len: 3 * side, lighter: square == b'#' });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_a_rectangle_of_known_squares() {
        let width = MARK.lines().next().unwrap().len();
        assert!(MARK.lines().all(|line| line.len() == width));
        assert!(MARK.chars().all(|square| "#:.\n".contains(square)) && MARK.contains('#'));
    }

    #[test]
    fn it_lies_in_the_lower_right_corner_and_changes_nothing_else() {
        let header = Header::upright(400, 300);
        let before = vec![100; 3 * 400 * 300];
        let mut after = before.clone();
        for stretch in stretches(&header) {
            stretch.apply(&mut after);
        }
        let changed: Vec<usize> =
            (0..400 * 300).filter(|pixel| after[3 * pixel] != before[3 * pixel]).collect();
        assert!(changed.iter().all(|pixel| pixel % 400 >= 300 && pixel / 400 >= 260), "out of the corner");
        // A square of 4 x 4 pixels for each character that is not a dot.
        let squares = MARK.bytes().filter(|square| b"#:".contains(square)).count();
        assert_eq!(changed.len(), 16 * squares);
        assert!(
            changed
                .iter()
                .all(|pixel| matches!(after[3 * pixel..3 * pixel + 3], [204, 204, 204] | [50, 50, 50]))
        );
    }

    #[test]
    fn a_picture_too_small_for_it_stays_as_it_is() {
        for (width, height) in [(0, 0), (83, 300), (400, 31), (2048, 1)] {
            assert_eq!(stretches(&Header::upright(width, height)), [], "{width} x {height}");
        }
        assert_ne!(stretches(&Header::upright(84, 8)), []);
    }
}
