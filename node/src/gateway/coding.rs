//! How a request's body is coded for its way. All that is undone here (by hyper) is `chunked`, once; a function would be given
//! anything else as it came, and a proxy before it may have read it otherwise: RFC 9112, section 6.1, has it answered with 501.

use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, HeaderValue};

use super::Refusal;

/// `Transfer-Encoding` is `chunked`, or isn't there.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut given = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    match (given.next(), given.next()) {
        (None, _) => Ok(()),
        (Some(value), None) if is_chunked(value) => Ok(()),
        _ => Err(Refusal::UnknownCoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[&'static str]) -> bool {
        let headers = values.iter().map(|value| (TRANSFER_ENCODING, HeaderValue::from_static(value)));
        check(&headers.collect()).is_ok()
    }

    #[test]
    fn chunked_once_is_all_that_is_understood() {
        assert!(with(&[]) && with(&["chunked"]) && with(&["Chunked"]));
        for values in
            [&["gzip, chunked"][..], &["chunked", "chunked"], &["chunked, chunked"], &["identity"], &[""]]
        {
            assert!(!with(values), "{values:?}");
        }
    }
}
