//! What is told of one call, and its form in OTLP's JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::context::TraceId;

/// A call, and its place in a trace.
#[derive(Debug, Clone)]
pub struct Span {
    trace: TraceId,
    parent: Option<u64>,
    id: u64,
    begun: SystemTime,
    ended: SystemTime,
    call: Call,
}

/// What became of a call, and where its time went.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// The function or chain.
    pub name: String,
    /// Whether it is a chain.
    pub is_chain: bool,
    /// Its version.
    pub version: u64,
    /// The call's public name.
    pub call_id: String,
    /// The HTTP status.
    pub status: u16,
    /// The error's code, if it failed.
    pub error: Option<&'static str>,
    /// `cold`, `forked` or `warm`.
    pub start: Option<&'static str>,
    /// Waiting for an instance, for its start, and the work, in nanoseconds.
    pub phases: [(&'static str, u64); 3],
    /// A chain's steps, as in `Server-Timing`.
    pub steps: String,
}

/// OTLP's `SPAN_KIND_INTERNAL` and `SPAN_KIND_SERVER`, `STATUS_CODE_ERROR`.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const ERROR: u8 = 2;

impl Span {
    /// A span that ends now.
    pub(super) fn new(trace: TraceId, parent: Option<u64>, id: u64, begun: SystemTime, call: Call) -> Self {
        Self { trace, parent, id, begun, ended: SystemTime::now(), call }
    }

    /// It and its phases as OTLP spans.
    pub(super) fn write(&self, spans: &mut Vec<Value>) {
        let (begun, ended) = (unix_ns(self.begun), unix_ns(self.ended));
        let mut attributes = vec![
            text("faas.invoked_name", &self.call.name),
            text("spry.call_id", &self.call.call_id),
            number("spry.version", self.call.version),
            number("http.response.status_code", self.call.status.into()),
            json!({ "key": "spry.chain", "value": { "boolValue": self.call.is_chain } }),
        ];
        if let Some(start) = self.call.start {
            attributes.push(text("spry.start", start));
            let cold = start == "cold";
            attributes.push(json!({ "key": "faas.coldstart", "value": { "boolValue": cold } }));
        }
        if !self.call.steps.is_empty() {
            attributes.push(text("spry.steps", self.call.steps.trim_start_matches(", ")));
        }
        let mut whole = json!({
            "traceId": self.trace.as_str(),
            "spanId": id(self.id),
            "name": self.call.name,
            "kind": SERVER,
            "startTimeUnixNano": begun.to_string(),
            "endTimeUnixNano": ended.max(begun).to_string(),
            "attributes": attributes,
        });
        if let Some(parent) = self.parent {
            whole["parentSpanId"] = id(parent).into();
        }
        if let Some(error) = self.call.error {
            whole["status"] = json!({ "code": ERROR, "message": error });
        }
        spans.push(whole);
        // The last phase ends with the call, the ones before it with the next one's beginning.
        let mut end = ended.max(begun);
        for (at, (name, ns)) in self.call.phases.iter().enumerate().rev().filter(|(_, (_, ns))| *ns > 0) {
            let start = end.saturating_sub(u128::from(*ns)).max(begun);
            spans.push(json!({
                "traceId": self.trace.as_str(),
                // Names of their own, made from the call's: nobody refers to them from outside.
                "spanId": id((self.id ^ (at as u64 + 1) << 56).max(1)),
                "parentSpanId": id(self.id),
                "name": name,
                "kind": INTERNAL,
                "startTimeUnixNano": start.to_string(),
                "endTimeUnixNano": end.to_string(),
            }));
            end = start;
        }
    }
}

/// The request's body for these spans (`ExportTraceServiceRequest`).
pub(super) fn request(spans: &[Span]) -> Vec<u8> {
    let mut all = Vec::with_capacity(spans.len() * 3);
    spans.iter().for_each(|span| span.write(&mut all));
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let resource = [
        text("service.name", "spry"),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("host.name", &host),
        number("process.pid", std::process::id().into()),
    ];
    let request = json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{
            "scope": { "name": "spry", "version": env!("CARGO_PKG_VERSION") },
            "spans": all,
        }],
    }] });
    request.to_string().into_bytes()
}

fn id(id: u64) -> String {
    format!("{id:016x}")
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// OTLP's JSON has 64-bit numbers as text.
fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn unix_ns(at: SystemTime) -> u128 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_phases_lie_within_the_call_one_after_the_other() {
        let trace = TraceId::new(b"4bf92f3577b34da6a3ce929d0e0e4736").expect("digits");
        let begun = SystemTime::now() - Duration::from_millis(10);
        let phases = [("queue", 1_000_000), ("start", 2_000_000), ("exec", 4_000_000)];
        let span = Span::new(trace, Some(5), 6, begun, Call { phases, ..Call::default() });
        let mut written = Vec::new();
        span.write(&mut written);
        let time = |at: usize, key: &str| -> u128 {
            written[at][key].as_str().expect("text").parse().expect("a number")
        };
        assert_eq!(written.len(), 4);
        assert_eq!(written[0]["parentSpanId"], "0000000000000005");
        assert_eq!(written[1]["name"], "exec");
        assert_eq!(time(1, "endTimeUnixNano"), time(0, "endTimeUnixNano"));
        assert_eq!(time(1, "startTimeUnixNano"), time(2, "endTimeUnixNano"));
        assert_eq!(time(2, "endTimeUnixNano") - time(2, "startTimeUnixNano"), 2_000_000);
        assert!(time(3, "startTimeUnixNano") >= time(0, "startTimeUnixNano"));
        for child in &written[1..] {
            assert_eq!(child["parentSpanId"], written[0]["spanId"]);
            assert_ne!(child["spanId"], written[0]["spanId"]);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_negative_span() {
        let trace = TraceId::new(b"4bf92f3577b34da6a3ce929d0e0e4736").expect("digits");
        let begun = SystemTime::now() + Duration::from_secs(3600);
        let phases = [("queue", 0), ("start", 0), ("exec", u64::MAX)];
        let span = Span::new(trace, None, 6, begun, Call { phases, ..Call::default() });
        let mut written = Vec::new();
        span.write(&mut written);
        for span in &written {
            let time = |key: &str| span[key].as_str().expect("text").parse::<u128>().expect("a number");
            assert!(time("startTimeUnixNano") <= time("endTimeUnixNano"));
        }
        assert!(written[0].get("parentSpanId").is_none());
    }
}
