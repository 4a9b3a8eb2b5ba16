//! Where the elements of a value lie: of a JSON array, or of framed bytes.
//!
//! Nothing is parsed but what tells the elements apart; whether an element is good JSON is for the function that gets it to
//! say. The input is a private copy: the offsets are good for the original as long as nobody rewrote it, and lie
//! within it in any case.

use std::ops::Range;

/// Elements of one value at most: their results must fit into one list.
pub(super) const ELEMENTS_MAX: usize = spry_wire::frame::PARTS_MAX;

/// Why a value has no elements.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// It is no array.
    #[error("it is not a JSON array (nor application/vnd.spry.frames)")]
    NotAnArray,
    /// The array is broken at this byte.
    #[error("the JSON array is broken at byte {0}")]
    Broken(usize),
    /// A frame's length goes beyond the end.
    #[error("the frame at byte {0} is longer than what is left")]
    Frame(usize),
    /// There are too many.
    #[error("it has more than {ELEMENTS_MAX} elements")]
    TooMany,
}

/// The elements of a JSON array, without the white space around them.
pub(super) fn json_array(text: &[u8]) -> Result<Vec<Range<usize>>, SplitError> {
    let mut at = skip_space(text, 0);
    if text.get(at) != Some(&b'[') {
        return Err(SplitError::NotAnArray);
    }
    at = skip_space(text, at + 1);
    let mut elements = Vec::new();
    if text.get(at) == Some(&b']') {
        return end(text, at + 1, elements);
    }
    loop {
        let start = skip_space(text, at);
        let stop = element(text, start)?;
        let trimmed = trim_end(text, start, stop);
        if trimmed == start {
            return Err(SplitError::Broken(start));
        }
        if elements.len() == ELEMENTS_MAX {
            return Err(SplitError::TooMany);
        }
        elements.push(start..trimmed);
        match text[stop] {
            b',' => at = stop + 1,
            _ => return end(text, stop + 1, elements),
        }
    }
}

/// Elements with their lengths (u32, little-endian) before them.
pub(super) fn frames(bytes: &[u8]) -> Result<Vec<Range<usize>>, SplitError> {
    let mut elements = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes.get(at..at + 4).ok_or(SplitError::Frame(at))?;
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let start = at + 4;
        if length > bytes.len() - start {
            return Err(SplitError::Frame(at));
        }
        if elements.len() == ELEMENTS_MAX {
            return Err(SplitError::TooMany);
        }
        elements.push(start..start + length);
        at = start + length;
    }
    Ok(elements)
}

/// Where the element that starts at `at` is followed by its array's comma or end.
fn element(text: &[u8], mut at: usize) -> Result<usize, SplitError> {
    let mut depth = 0_usize;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => at = string(text, at)?,
            b'[' | b'{' => depth += 1,
            b',' | b']' if depth == 0 => return Ok(at),
            b']' | b'}' => depth = depth.checked_sub(1).ok_or(SplitError::Broken(at))?,
            _ => {}
        }
        at += 1;
    }
    Err(SplitError::Broken(text.len()))
}

/// The closing quote of the string that starts at `at`.
fn string(text: &[u8], start: usize) -> Result<usize, SplitError> {
    let mut at = start + 1;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return Ok(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    Err(SplitError::Broken(start))
}

fn end(text: &[u8], at: usize, elements: Vec<Range<usize>>) -> Result<Vec<Range<usize>>, SplitError> {
    let rest = skip_space(text, at);
    if rest == text.len() { Ok(elements) } else { Err(SplitError::Broken(rest)) }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn skip_space(text: &[u8], at: usize) -> usize {
    at + text[at.min(text.len())..].iter().take_while(|byte| is_space(**byte)).count()
}

fn trim_end(text: &[u8], start: usize, stop: usize) -> usize {
    stop - text[start..stop].iter().rev().take_while(|byte| is_space(**byte)).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(text: &str) -> Result<Vec<&str>, SplitError> {
        Ok(json_array(text.as_bytes())?.into_iter().map(|range| &text[range]).collect())
    }

    #[test]
    fn elements_are_found_whatever_they_hold() {
        assert_eq!(texts("[]"), Ok(vec![]));
        assert_eq!(
            texts(" [ 1 , \"a,]\\\"\" ,{\"b\":[1,2]}\n, null ] "),
            Ok(vec!["1", "\"a,]\\\"\"", "{\"b\":[1,2]}", "null"])
        );
    }

    #[test]
    fn broken_arrays_are_refused_at_their_byte() {
        assert_eq!(texts("{}"), Err(SplitError::NotAnArray));
        assert_eq!(texts(""), Err(SplitError::NotAnArray));
        assert_eq!(texts("[1,]"), Err(SplitError::Broken(3)));
        assert_eq!(texts("[,1]"), Err(SplitError::Broken(1)));
        assert_eq!(texts("[1"), Err(SplitError::Broken(2)));
        assert_eq!(texts("[\"a]"), Err(SplitError::Broken(1)));
        assert_eq!(texts("[1}]"), Err(SplitError::Broken(2)));
        assert_eq!(texts("[1] 2"), Err(SplitError::Broken(4)));
        let many = format!("[{}1]", "1,".repeat(ELEMENTS_MAX));
        assert_eq!(texts(&many), Err(SplitError::TooMany));
    }

    #[test]
    fn frames_are_bounded_by_the_value() {
        assert_eq!(frames(b""), Ok(vec![]));
        assert_eq!(frames(b"\x01\0\0\0a\0\0\0\0"), Ok(vec![4..5, 9..9]));
        assert_eq!(frames(b"\x02\0\0\0a"), Err(SplitError::Frame(0)));
        assert_eq!(frames(b"\xff\xff\xff\xff"), Err(SplitError::Frame(0)));
        assert_eq!(frames(b"\0\0\0\0\0"), Err(SplitError::Frame(4)));
    }

    proptest! {
        #[test]
        fn what_serde_writes_is_split_where_serde_says(values in proptest::collection::vec(".*", 0..20), nested in any::<bool>()) {
            let values: Vec<serde_json::Value> = values.into_iter().map(|text| {
                if nested { serde_json::json!([text, {"k": [text]}]) } else { serde_json::json!(text) }
            }).collect();
            let text = serde_json::to_string_pretty(&values).expect("JSON");
            let parts: Vec<serde_json::Value> =
                texts(&text).expect("an array").into_iter().map(|part| serde_json::from_str(part).expect("JSON")).collect();
            prop_assert_eq!(parts, values);
        }

        #[test]
        fn any_bytes_give_ranges_within_them(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for ranges in [json_array(&bytes), frames(&bytes)].into_iter().flatten() {
                for range in ranges {
                    prop_assert!(bytes.get(range).is_some());
                }
            }
        }
    }
}
