//! What the caller may choose.

use std::ops::RangeInclusive;

const WIDTHS: RangeInclusive<u32> = 1..=2048;
const QUALITIES: RangeInclusive<u32> = 1..=100;

/// A checked query string.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Query {
    /// Pixels; the height follows from the picture.
    pub(crate) width: u32,
    /// JPEG quality.
    pub(crate) quality: u8,
}

impl Default for Query {
    fn default() -> Self {
        Self { width: 320, quality: 80 }
    }
}

/// A value out of its range, or no number.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}={value}: {key} is a number from {} to {}", .range.start(), .range.end())]
pub(crate) struct BadQuery {
    key: &'static str,
    value: String,
    range: RangeInclusive<u32>,
}

impl Query {
    /// Reads `width=…&quality=…`; other keys mean nothing here.
    pub(crate) fn parse(text: &str) -> Result<Self, BadQuery> {
        let mut query = Self::default();
        for (key, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
            match key {
                "width" => query.width = number("width", value, WIDTHS)?,
                "quality" => query.quality = number("quality", value, QUALITIES)? as u8,
                _ => {}
            }
        }
        Ok(query)
    }
}

fn number(key: &'static str, value: &str, range: RangeInclusive<u32>) -> Result<u32, BadQuery> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| BadQuery { key, value: value.to_owned(), range })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_choices() {
        assert_eq!(Query::parse(""), Ok(Query::default()));
        assert_eq!(Query::parse("x=1&width=64&quality=100"), Ok(Query { width: 64, quality: 100 }));
    }

    #[test]
    fn out_of_range_is_said() {
        for text in ["width=0", "width=2049", "width=-1", "width=a", "quality=0", "quality=101"] {
            assert!(Query::parse(text).is_err(), "{text}");
        }
        let error = Query::parse("width=9999").unwrap_err();
        assert_eq!(error.to_string(), "width=9999: width is a number from 1 to 2048");
    }
}
