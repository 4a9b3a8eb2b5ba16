//! Tracing of calls: which trace a call belongs to ([`context`]), what is told of it ([`span`]), to whom ([`export`]).
//!
//! A request with a `traceparent` that holds up keeps its trace: the function gets the header with the gateway's own span as
//! the parent, the caller gets it back with the answer. Without export that is all, and a request that brings no header
//! costs one look into its headers. With `trace.otlp`, calls whose caller samples them are told to a collector, and of those that
//! bring no trace the part `trace.sample`: the trace is then named by the call's id.
//! `docs/decisions/0021-tracing.md` says why this is no OpenTelemetry SDK.

pub mod context;
pub mod export;
pub mod span;

use std::cell::Cell;
use std::time::SystemTime;

use http::HeaderValue;
use http::header::HeaderMap;

use crate::gateway::call_id::CallId;
use context::{Context, TRACEPARENT, TRACESTATE, TraceId};
pub use export::{Exporter, Sink};
pub use span::{Call, Span};

/// One worker's view: decides which calls are traced, and names their spans.
#[derive(Debug)]
pub struct Tracer {
    sink: Option<Sink>,
    random: Cell<u64>,
}

/// A call's place in its trace.
#[derive(Debug, Clone, Copy)]
pub struct Traced {
    trace: TraceId,
    parent: Option<u64>,
    span: u64,
    sampled: bool,
}

impl Tracer {
    /// `sink`: where spans go, if anywhere. `seed`: random.
    pub fn new(sink: Option<Sink>, seed: u64) -> Self {
        Self { sink, random: Cell::new(seed) }
    }

    /// Where a request belongs; its headers then say so to the function. `None`: to no trace.
    pub fn enter(&self, headers: &mut HeaderMap, call_id: &CallId) -> Option<Traced> {
        let traced = if headers.contains_key(&TRACEPARENT) { self.join(headers) } else { None };
        let traced = traced.or_else(|| self.begin(call_id));
        match &traced {
            Some(traced) => drop(headers.insert(&TRACEPARENT, traced.header())),
            // What can't be read is not passed on, nor what means nothing without it.
            None => {
                headers.remove(&TRACEPARENT);
                headers.remove(&TRACESTATE);
            }
        }
        traced
    }

    fn join(&self, headers: &mut HeaderMap) -> Option<Traced> {
        let Some(Context { trace, parent, sampled }) = Context::of(headers) else {
            headers.remove(&TRACEPARENT);
            headers.remove(&TRACESTATE);
            return None;
        };
        Some(Traced { trace, parent: Some(parent), span: self.draw(), sampled })
    }

    /// A trace of our own, for a part of the calls, while somebody is told.
    fn begin(&self, call_id: &CallId) -> Option<Traced> {
        let sink = self.sink.as_ref()?;
        let drawn = self.draw();
        if drawn as f64 / u64::MAX as f64 >= sink.sample() {
            return None;
        }
        Some(Traced { trace: TraceId::new(call_id.as_bytes())?, parent: None, span: drawn, sampled: true })
    }

    /// A call has ended: its span goes to the collector, if there is one and the call is sampled. `span` makes it.
    pub fn leave(&self, traced: &Traced, span: impl FnOnce() -> Span) {
        if let Some(sink) = self.sink.as_ref().filter(|_| traced.sampled) {
            sink.send(span());
        }
    }

    /// SplitMix64, and never 0. Names of spans are no secret.
    fn draw(&self) -> u64 {
        let next = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(next);
        let mixed = (next ^ next >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).max(1)
    }
}

impl Traced {
    /// The header, for the function and for the caller.
    pub fn header(&self) -> HeaderValue {
        context::header(&self.trace, self.span, self.sampled)
    }

    /// The span of a call that began then and ends now.
    pub fn span(&self, begun: SystemTime, call: Call) -> Span {
        Span::new(self.trace, self.parent, self.span, begun, call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(traceparent: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(&TRACESTATE, HeaderValue::from_static("vendor=1"));
        if let Some(value) = traceparent {
            headers.insert(&TRACEPARENT, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_trace_goes_on_with_a_span_of_our_own() {
        let tracer = Tracer::new(None, 7);
        let mut given = headers(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        let traced = tracer.enter(&mut given, &CallId::new(1, 2)).expect("a trace");
        let passed = Context::of(&given).expect("whole");
        assert_eq!(passed.trace.as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(passed.parent, 0x00f0_67aa_0ba9_02b7);
        assert!(passed.sampled);
        assert_eq!(given[&TRACEPARENT], traced.header());
        assert_eq!(given[&TRACESTATE], "vendor=1");
    }

    #[test]
    fn what_can_not_be_read_is_not_passed_on() {
        let tracer = Tracer::new(None, 7);
        for bad in [None, Some("00-zz"), Some("")] {
            let mut given = headers(bad);
            assert!(tracer.enter(&mut given, &CallId::new(1, 2)).is_none());
            assert!(given.is_empty(), "{given:?}");
        }
    }
}
