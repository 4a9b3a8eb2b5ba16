//! Where an invocation's time went, as `Server-Timing` says it: milliseconds with three decimals.

use std::time::Duration;

use http::HeaderValue;

use crate::activation::Start;
use crate::dispatch::{Answered, Ended};
use crate::instance::Used;

/// Where the time went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// What served it; `None`: nothing did.
    pub start: Option<Start>,
    /// Waiting for a free instance.
    pub queue_ns: u64,
    /// Waiting for an instance to be started.
    pub start_ns: u64,
    /// From the descriptor's leaving to the answer's coming.
    pub exec_ns: u64,
    /// What its process used (of a chain's steps, which are many processes', nothing is known).
    pub used: Used,
}

impl Timing {
    /// Nothing happened.
    pub(super) const NONE: Self =
        Self { start: None, queue_ns: 0, start_ns: 0, exec_ns: 0, used: Used::UNKNOWN };

    /// Of an invocation that was answered by an instance that had served `before` others.
    pub(super) fn answered(ended: &Ended, answered: &Answered, before: u64) -> Self {
        let (answered_at, instance, used) = (answered.at, &answered.instance, answered.used);
        // (It may have been sent ahead, before its instance was there.)
        let begun = ended.sent_at.max(instance.ready_at);
        let waited = begun.saturating_duration_since(ended.submitted_at);
        let exec_ns = nanoseconds(answered_at.saturating_duration_since(begun));
        if before > 0 {
            return Self {
                start: Some(Start::Warm),
                queue_ns: nanoseconds(waited),
                start_ns: 0,
                exec_ns,
                used,
            };
        }
        // The part of the wait in which its process was being made.
        let from = instance.requested_at.max(ended.submitted_at);
        let starting = instance.ready_at.saturating_duration_since(from);
        let start = if instance.cold && !starting.is_zero() { Start::Cold } else { Start::Forked };
        Self {
            start: Some(start),
            queue_ns: nanoseconds(waited.saturating_sub(starting)),
            start_ns: nanoseconds(starting),
            exec_ns,
            used,
        }
    }

    /// Of an invocation that waited this long for nothing.
    pub(super) fn waited(waited: Duration) -> Self {
        Self { queue_ns: nanoseconds(waited), ..Self::NONE }
    }

    /// The header's value. `steps`: what else there is, each entry with a comma before it.
    pub(super) fn header(&self, steps: &[u8]) -> HeaderValue {
        let mut text = Vec::with_capacity(80 + steps.len());
        for (name, ns) in
            [("queue;dur=", self.queue_ns), (", start;dur=", self.start_ns), (", exec;dur=", self.exec_ns)]
        {
            text.extend_from_slice(name.as_bytes());
            milliseconds(&mut text, ns);
        }
        if let Some(ns) = self.used.cpu_ns {
            text.extend_from_slice(b", cpu;dur=");
            milliseconds(&mut text, ns);
        }
        if let Some(start) = self.start {
            text.extend_from_slice(b", kind;desc=\"");
            text.extend_from_slice(start.as_str().as_bytes());
            text.push(b'"');
        }
        text.extend_from_slice(steps);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).expect("digits and ASCII words")
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `1234567` ns is `1.234`.
pub(crate) fn milliseconds(text: &mut Vec<u8>, ns: u64) {
    let us = ns / 1000;
    let mut digits = [0; 24];
    let mut at = digits.len();
    let mut rest = us;
    let mut place = 0;
    while rest > 0 || place < 4 {
        if place == 3 {
            at -= 1;
            digits[at] = b'.';
        }
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        place += 1;
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ns: u64) -> String {
        let mut text = Vec::new();
        milliseconds(&mut text, ns);
        String::from_utf8(text).expect("ASCII")
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        assert_eq!(shown(0), "0.000");
        assert_eq!(shown(999), "0.000");
        assert_eq!(shown(12_345), "0.012");
        assert_eq!(shown(1_234_567), "1.234");
        assert_eq!(shown(61_000_000_000), "61000.000");
        assert!(shown(u64::MAX).ends_with(".551"));
    }

    #[test]
    fn the_header_names_each_part() {
        let timing = Timing {
            start: Some(Start::Forked),
            queue_ns: 20_000,
            start_ns: 1_200_000,
            exec_ns: 3_400_000,
            used: Used { cpu_ns: Some(900_000), ..Used::UNKNOWN },
        };
        assert_eq!(
            timing.header(b", s0;dur=1"),
            "queue;dur=0.020, start;dur=1.200, exec;dur=3.400, cpu;dur=0.900, kind;desc=\"forked\", s0;dur=1"
        );
    }
}
