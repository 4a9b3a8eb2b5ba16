//! What the caller may choose. The query goes to every step of a chain; each takes from it what concerns it.

use std::ops::RangeInclusive;

/// Widths that can be asked for, in pixels.
pub const WIDTHS: RangeInclusive<u32> = 1..=2048;
/// JPEG qualities that can be asked for.
pub const QUALITIES: RangeInclusive<u32> = 1..=100;

/// A value out of its range, or no number.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}={value}: {key} is a number from {} to {}", .range.start(), .range.end())]
pub struct BadQuery {
    key: &'static str,
    value: String,
    range: RangeInclusive<u32>,
}

/// How wide the picture shall be; 640 pixels unless the query says otherwise.
pub fn width(query: &str) -> Result<u32, BadQuery> {
    number(query, "width", WIDTHS).map(|width| width.unwrap_or(640))
}

/// The quality of the JPEG; 85 unless the query says otherwise.
pub fn quality(query: &str) -> Result<u8, BadQuery> {
    number(query, "quality", QUALITIES).map(|quality| quality.unwrap_or(85) as u8)
}

/// The last value of a key, as everywhere on the web.
fn number(query: &str, key: &'static str, range: RangeInclusive<u32>) -> Result<Option<u32>, BadQuery> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.rev().find(|(found, _)| *found == key) else { return Ok(None) };
    match value.parse().ok().filter(|number| range.contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(BadQuery { key, value: value.to_owned(), range }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_choices() {
        assert_eq!((width(""), quality("width=9")), (Ok(640), Ok(85)));
        assert_eq!((width("a=1&width=7&width=64"), quality("quality=100&x")), (Ok(64), Ok(100)));
    }

    #[test]
    fn out_of_range_is_said() {
        for query in ["width=0", "width=2049", "width=-1", "width=a", "width="] {
            assert!(width(query).is_err(), "{query}");
        }
        let error = quality("quality=101").unwrap_err();
        assert_eq!(error.to_string(), "quality=101: quality is a number from 1 to 100");
    }
}
