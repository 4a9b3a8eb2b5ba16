//! W3C trace context (Recommendation of 23 November 2021): one `traceparent` header, read strictly and written anew.
//!
//! ```text
//! 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
//! version  trace id (not all zero)     parent id (nor this) flags: bit 0, sampled
//! ```

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The header that carries it.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors add; means nothing without the other.
pub static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of the header in version 00.
const LEN: usize = 55;
/// The only flag of version 00.
const SAMPLED: u8 = 1;

/// A place in a trace: 32 hexadecimal digits, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceId([u8; 32]);

impl TraceId {
    /// These digits, if they can be one.
    pub fn new(digits: &[u8]) -> Option<Self> {
        let id: [u8; 32] = digits.try_into().ok()?;
        (id.iter().all(|byte| is_digit(*byte)) && id.iter().any(|byte| *byte != b'0')).then_some(Self(id))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What a caller said about its trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Context {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span; never 0.
    pub parent: u64,
    /// Whether the caller records it.
    pub sampled: bool,
}

impl Context {
    /// What the request's headers say. `None`: nothing, or something that the recommendation forbids.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(&TRACEPARENT).iter();
        let only = all.next()?;
        // Several of them say nothing.
        if all.next().is_some() { None } else { Self::parse(only.as_bytes()) }
    }

    /// Reads one header's value. A later version may go on after a hyphen; what this one knows is read then.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(LEN)?;
        let [v0, v1, b'-', ids @ .., b'-', f0, f1] = known else { return None };
        let version = byte(*v0, *v1)?;
        let goes_on_well = match version {
            0xff => return None,
            0 => rest.is_empty(),
            _ => rest.first().is_none_or(|next| *next == b'-'),
        };
        let flags = byte(*f0, *f1)?;
        let (trace, parent) = (&ids[..32], &ids[33..]);
        if !goes_on_well || ids[32] != b'-' || !parent.iter().all(|digit| is_digit(*digit)) {
            return None;
        }
        let parent = u64::from_str_radix(std::str::from_utf8(parent).ok()?, 16).ok()?;
        let trace = TraceId::new(trace)?;
        (parent != 0).then_some(Self { trace, parent, sampled: flags & SAMPLED != 0 })
    }
}

/// The header's value for the span `span` of this trace.
pub fn header(trace: &TraceId, span: u64, sampled: bool) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    text[3..35].copy_from_slice(&trace.0);
    for (at, digit) in text[36..52].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(span >> (60 - 4 * at) & 15) as usize];
    }
    text[54] += u8::from(sampled);
    HeaderValue::from_bytes(&text).expect("digits and hyphens")
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

fn byte(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| is_digit(byte).then(|| (byte as char).to_digit(16)).flatten();
    Some((digit(high)? << 4 | digit(low)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_good_header_is_read_and_written() {
        let context = Context::parse(GOOD.as_bytes()).expect("good");
        assert_eq!(context.trace.as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((context.parent, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(header(&context.trace, context.parent, true), GOOD);
        // Flags that this version doesn't know are not passed on.
        let context = Context::parse(GOOD.replace("-01", "-fe").as_bytes()).expect("good");
        assert_eq!(header(&context.trace, 1, context.sampled).as_bytes()[36..], *b"0000000000000001-00");
    }

    #[test]
    fn what_the_recommendation_forbids_is_nothing() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-+0f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Context::parse(bad.as_bytes()), None, "{bad}");
        }
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-then";
        assert!(Context::parse(later.as_bytes()).is_some());
        let mut twice = HeaderMap::new();
        twice.append(&TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(Context::of(&twice).is_some());
        twice.append(&TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(Context::of(&twice).is_none());
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_the_same(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Context::parse(&bytes);
        }
        #[test]
        fn every_context_survives(trace in 1u128.., parent in 1u64.., sampled: bool) {
            let digits = format!("{trace:032x}");
            let trace = TraceId::new(digits.as_bytes()).expect("digits");
            let written = header(&trace, parent, sampled);
            prop_assert_eq!(Context::parse(written.as_bytes()), Some(Context { trace, parent, sampled }));
        }
    }
}
