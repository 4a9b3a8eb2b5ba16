//! Where a chain's time went, step by step and hop by hop, as `Server-Timing` says it.

use std::time::Instant;

use super::served::Route;
use crate::activation::Start;
use crate::dispatch::{Ended, Outcome};
use crate::gateway::{Refusal, milliseconds};

/// Entries that are told; what comes after them is counted.
const ENTRIES_MAX: usize = 64;
/// An entry with a name of ordinary length.
const ENTRY_LEN: usize = 48;

/// See the module. Durations in nanoseconds.
///
/// The entries are written when they are noted, and by hand: there are two for each step, formatting is what a chain's answer
/// would spend most of its time on, and keeping the names until later would count references that all workers share.
#[derive(Debug, Default)]
pub struct Timeline {
    text: Vec<u8>,
    steps: u8,
    hops: u8,
    untold: usize,
    first_sent: Option<Instant>,
    submitted: Option<Instant>,
    started_ns: u64,
    coldest: Option<Start>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Step,
    Hop,
}

impl Timeline {
    /// Notes a run that began with step `first` of `route`.
    pub(super) fn note(&mut self, route: &Route, first: u8, ended: &Ended) {
        self.submitted.get_or_insert(ended.submitted_at);
        self.text.reserve((2 * ended.visits.len()).min(ENTRIES_MAX - self.entries()) * ENTRY_LEN);
        let mut before: Option<u64> = None;
        for visit in &ended.visits {
            let step = &route.steps[usize::from(visit.step)];
            if let Some(answered_ns) = before {
                let ns = visit.hop.sent_ns.saturating_sub(answered_ns);
                self.push(Kind::Hop, &step.name, ns);
            }
            let ns = visit.hop.answered_ns.saturating_sub(visit.hop.sent_ns);
            self.push(Kind::Step, &step.name, ns);
            before = Some(visit.hop.answered_ns);
            if let Some((instance, served)) = &visit.by {
                let begun = ended.submitted_at;
                let starting = instance.ready_at.saturating_duration_since(instance.requested_at.max(begun));
                let start = match (*served, starting.is_zero()) {
                    (0, false) if instance.cold => Start::Cold,
                    (0, _) => Start::Forked,
                    _ => Start::Warm,
                };
                self.coldest = Some(self.coldest.map_or(start, |before| before.min(start)));
                if visit.step == first && self.first_sent.is_none() {
                    self.started_ns = starting.as_nanos() as u64;
                }
            }
        }
        // (One that nobody could serve has waited for all of the time.)
        let never_sent = matches!(
            ended.outcome,
            Outcome::Refused(Refusal::QueueTimeout(_) | Refusal::StartFailed(_)) if ended.visits.is_empty()
        );
        self.first_sent.get_or_insert_with(|| if never_sent { Instant::now() } else { ended.sent_at });
    }

    fn entries(&self) -> usize {
        usize::from(self.steps) + usize::from(self.hops)
    }

    fn push(&mut self, kind: Kind, name: &str, ns: u64) {
        if self.entries() >= ENTRIES_MAX {
            self.untold += 1;
            return;
        }
        let text = &mut self.text;
        let (letter, number, to) = match kind {
            Kind::Step => (b's', &mut self.steps, b"".as_slice()),
            Kind::Hop => (b'h', &mut self.hops, b"to ".as_slice()),
        };
        text.extend_from_slice(b", ");
        text.push(letter);
        decimal(text, *number);
        text.extend_from_slice(b";dur=");
        milliseconds(text, ns);
        text.extend_from_slice(b";desc=\"");
        text.extend_from_slice(to);
        text.extend_from_slice(name.as_bytes());
        text.push(b'"');
        *number += 1;
    }

    /// What served it, at the coldest.
    pub fn start(&self) -> Option<Start> {
        self.coldest
    }

    /// Waiting for the first step's instance to get free, and for it to be started.
    pub fn waits(&self) -> (u64, u64) {
        let waited_ns = match (self.submitted, self.first_sent) {
            (Some(submitted), Some(sent)) => sent.saturating_duration_since(submitted).as_nanos() as u64,
            _ => 0,
        };
        let starting_ns = self.started_ns.min(waited_ns);
        (waited_ns - starting_ns, starting_ns)
    }

    /// The entries of the steps, each with a comma before it.
    pub fn header(&self) -> Vec<u8> {
        let mut text = self.text.clone();
        if self.untold > 0 {
            text.extend_from_slice(format!(", more;desc=\"{} further entries\"", self.untold).as_bytes());
        }
        text
    }
}

/// A number of at most two digits: there are no more entries.
fn decimal(text: &mut Vec<u8>, number: u8) {
    const { assert!(ENTRIES_MAX <= 100) };
    if number >= 10 {
        text.push(b'0' + number / 10);
    }
    text.push(b'0' + number % 10);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(timeline: &Timeline) -> String {
        String::from_utf8(timeline.header()).expect("names are UTF-8")
    }

    #[test]
    fn each_step_and_hop_is_told_and_the_rest_counted() {
        let mut timeline = Timeline::default();
        timeline.push(Kind::Step, "decode", 1_234_567);
        timeline.push(Kind::Hop, "thumbs/resize", 6_000);
        assert_eq!(text(&timeline), ", s0;dur=1.234;desc=\"decode\", h0;dur=0.006;desc=\"to thumbs/resize\"");
        for _ in 0..ENTRIES_MAX {
            timeline.push(Kind::Step, "x", 0);
        }
        let header = text(&timeline);
        assert!(!header.contains(", s63;") && header.contains(", s62;dur=0.000;desc=\"x\""));
        assert!(header.ends_with(", more;desc=\"2 further entries\""));
    }

    #[test]
    fn what_was_never_sent_has_waited_for_all_of_its_time() {
        let route = Route { index: shm_bus::ids::RouteIndex(0), steps: Vec::new() };
        let waited = std::time::Duration::from_secs(5);
        let submitted_at = Instant::now() - waited;
        let waits = |refusal: Refusal, sent_at: Instant| {
            let outcome = Outcome::Refused(refusal);
            let mut timeline = Timeline::default();
            timeline.note(&route, 0, &Ended { outcome, block: None, visits: vec![], submitted_at, sent_at });
            timeline.waits()
        };
        for refusal in [Refusal::QueueTimeout(waited), Refusal::StartFailed("no memory".into())] {
            let (queue_ns, start_ns) = waits(refusal, submitted_at);
            assert!(queue_ns >= waited.as_nanos() as u64 && start_ns == 0, "{queue_ns} {start_ns}");
        }
        let sent_at = submitted_at + waited / 5;
        assert_eq!(waits(Refusal::ChainTimedOut(waited), sent_at), (1_000_000_000, 0), "it was at work");
    }
}
