//! One asynchronous call: what was asked for, in memory and on disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::gateway::call_id::CallId;

/// What the caller sent, without the body. On disk it is text: `METHOD /REST?QUERY`, then a line for each header.
/// (No header's value can have a line end in it.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// As it was sent.
    pub method: Method,
    /// What followed the function's name, with the query: empty, or starting with `/` or `?`.
    pub rest: String,
    /// Those that reach functions.
    pub headers: HeaderMap,
}

impl Head {
    /// As it lies on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.rest.as_bytes());
        encode_headers(&self.headers, &mut out);
        out
    }

    /// Bytes of what [`Self::encode`] writes.
    fn encoded_len(&self) -> usize {
        self.method.as_str().len() + 1 + self.rest.len() + encoded_headers_len(&self.headers)
    }

    /// Reads what [`Self::encode`] wrote; `None`: it didn't.
    pub fn decode(text: &[u8]) -> Option<Self> {
        let mut lines = text.split(|byte| *byte == b'\n');
        let first = std::str::from_utf8(lines.next()?).ok()?;
        let (method, rest) = first.split_once(' ')?;
        let headers = decode_headers(lines)?;
        Some(Self { method: method.parse().ok()?, rest: rest.to_owned(), headers })
    }
}

/// Appends a line for each header, each begun with a line end.
pub fn encode_headers(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        out.push(b'\n');
        out.extend_from_slice(name.as_str().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
}

/// Bytes of what [`encode_headers`] appends.
pub fn encoded_headers_len(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| 2 + name.as_str().len() + value.len()).sum()
}

/// Reads lines of `name:value`.
pub fn decode_headers<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(name, HeaderValue::from_bytes(&line[colon + 1..]).ok()?);
    }
    Some(headers)
}

/// A call that has been accepted and has not ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its public name.
    pub id: CallId,
    /// Its place on disk; later calls have higher ones.
    pub seq: u64,
    /// Whom it calls: a function or a chain.
    pub function: Arc<str>,
    /// What was sent.
    pub head: Arc<Head>,
    /// Its body, unless it is to be read from the disk again.
    pub body: Option<Bytes>,
    /// Bytes of the body.
    pub body_len: u64,
    /// Where its end is reported.
    pub callback: Option<Arc<str>>,
    /// When it was accepted, by the wall clock: for people.
    pub accepted_unix_ms: u64,
    /// When it was first due, by the clock that doesn't jump. (Of a call from before a restart: as far as is known.)
    pub ripe_at: Instant,
    /// When it may run.
    pub due: Instant,
    /// How often it has run and failed.
    pub failures: u32,
    /// How often in a row the node had no room for it.
    pub refusals: u32,
}

impl Call {
    /// What it takes of the room for calls that wait.
    pub fn bytes(&self) -> u64 {
        self.head.encoded_len() as u64 + self.body_len
    }

    /// Since it was first due: what its caller wanted it to wait doesn't make it old.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.ripe_at)
    }
}

/// How far a wait that was noted on disk is over. Of two clocks, neither can be trusted over a restart: the monotonic one
/// starts anew, the wall clock may have been set. So the wait is what the wall clock leaves of it, and never longer
/// than it was to begin with: a clock that was set back by an hour costs no more than the wait once more.
pub fn remaining(delay: Duration, noted_unix_ms: u64, now_unix_ms: u64) -> Duration {
    delay.saturating_sub(Duration::from_millis(now_unix_ms.saturating_sub(noted_unix_ms)))
}

/// The instant that lies as long ago as the wall clock says; never in the future.
pub fn instant_of(unix_ms: u64, now_unix_ms: u64, now: Instant) -> Instant {
    now.checked_sub(Duration::from_millis(now_unix_ms.saturating_sub(unix_ms))).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back_as_they_went() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_bytes(b"caf\xe9: b").expect("opaque bytes are allowed"));
        headers.append("x-a", HeaderValue::from_static("second"));
        headers.append("x-empty", HeaderValue::from_static(""));
        for rest in ["", "/a/b?c=d%20e", "?x"] {
            let head = Head { method: Method::PATCH, rest: rest.into(), headers: headers.clone() };
            assert_eq!(head.encoded_len(), head.encode().len());
            assert_eq!(Head::decode(&head.encode()), Some(head));
        }
        for bad in ["", "POST", "POST /\nno colon", "POST /\nbad name: x", "é /"] {
            assert_eq!(Head::decode(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_delays_no_longer_than_asked() {
        let (hour, noted) = (3_600_000, 1_700_000_000_000);
        let left = |delay_s, now| remaining(Duration::from_secs(delay_s), noted, now).as_millis() as u64;
        assert_eq!(left(10, noted + 4_000), 6_000);
        assert_eq!(left(10, noted + hour), 0);
        assert_eq!(left(10, noted - hour), 10_000);
        let now = Instant::now();
        assert_eq!(instant_of(noted, noted - hour, now), now);
        assert_eq!(now - instant_of(noted, noted + 5, now), Duration::from_millis(5));
    }
}
