//! The end of an accepted call: its response, its record, its metrics and its span, all from one outcome.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;

use super::answer::Answer;
use super::call_id::CallId;
use super::service::{Outcome, SERVER_TIMING, X_SPRY_START, name, refuse};
use super::timing::Timing;
use crate::activation::{History, Record, Start, Stream};
use crate::function::Counts;
use crate::metrics;
use crate::trace::context::TRACEPARENT;
use crate::trace::{self, Traced, Tracer};

/// An invocation that has been accepted for a known function or chain.
pub(super) struct Accepted {
    pub(super) history: Arc<Mutex<History>>,
    pub(super) counts: Arc<Counts>,
    pub(super) version: u64,
    pub(super) call_id: CallId,
    pub(super) at: SystemTime,
    pub(super) traced: Option<Named>,
}

/// A call in a trace, and what it is a call of.
pub(super) struct Named {
    pub(super) traced: Traced,
    pub(super) name: String,
    pub(super) is_chain: bool,
}

impl Accepted {
    /// The response, which has been recorded. `steps` are further entries of `Server-Timing`.
    pub(super) fn respond(
        self,
        outcome: Outcome<Answer>,
        steps: &[u8],
        tracer: &Tracer,
    ) -> Response<Full<Bytes>> {
        let (mut response, timing, error) = match outcome {
            Ok((answer, timing)) => (answer.into_response(), timing, None),
            Err((failed, timing)) => {
                if let Some(text) = &failed.text {
                    self.history.lock().log(Some(self.call_id), Stream::Stderr, text.as_bytes());
                }
                let code = failed.refusal.status().1;
                (refuse(&failed.refusal, self.call_id, timing), timing, Some(code))
            }
        };
        name(&mut response, self.call_id);
        if let Some(start) = timing.start {
            response.headers_mut().insert(X_SPRY_START.clone(), HeaderValue::from_static(start.as_str()));
        }
        response.headers_mut().insert(SERVER_TIMING.clone(), timing.header(steps));
        self.record(response.status(), timing, error, steps);
        self.keep_result(&response);
        if let Some(Named { traced, name, is_chain }) = self.traced {
            response.headers_mut().insert(&TRACEPARENT, traced.header());
            tracer.leave(&traced, || {
                let phases =
                    [("queue", timing.queue_ns), ("start", timing.start_ns), ("exec", timing.exec_ns)];
                let call = trace::Call {
                    name,
                    is_chain,
                    version: self.version,
                    call_id: self.call_id.to_string(),
                    status: response.status().as_u16(),
                    error,
                    start: timing.start.map(Start::as_str),
                    phases,
                    steps: String::from_utf8_lossy(steps).into_owned(),
                };
                traced.span(self.at, call)
            });
        }
        response
    }

    fn record(&self, status: StatusCode, timing: Timing, error: Option<&'static str>, steps: &[u8]) {
        self.counts.ended(metrics::Outcome::of(status.as_u16(), error.is_some()));
        if let Some(start) = timing.start {
            self.counts.served(start, timing.queue_ns, timing.start_ns, timing.exec_ns);
        }
        self.history.lock().record(&Record {
            call_id: self.call_id,
            version: self.version,
            started_unix_ms: self.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            start: timing.start,
            queue_ns: timing.queue_ns,
            start_ns: timing.start_ns,
            exec_ns: timing.exec_ns,
            cpu_ns: timing.used.cpu_ns,
            memory_bytes: timing.used.memory_bytes,
            status: status.as_u16(),
            error,
            steps: (!steps.is_empty()).then(|| String::from_utf8_lossy(steps).into()),
        });
    }

    /// What was answered, for those who ask later, if the operator wants that.
    fn keep_result(&self, response: &Response<Full<Bytes>>) {
        let history = self.history.lock();
        if history.result_max() == 0 {
            return;
        }
        // (A body is one piece, and cloning it is counting it.)
        let body = response.body().clone().frame().now_or_never();
        let body = body.flatten().and_then(Result::ok).and_then(|frame| frame.into_data().ok());
        let content_type = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let status = response.status().as_u16();
        history.result(self.call_id, status, content_type, &body.unwrap_or_default());
    }
}
