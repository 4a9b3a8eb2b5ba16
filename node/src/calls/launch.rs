//! A call on its way through a gateway worker: the request as if a client had sent it, and what comes of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc::UnboundedSender;

use super::call::Call;
use super::rows::Outcome;
use super::runner::ToRunner;
use crate::gateway::call_id::CallId;

/// Whether another attempt may fare better. Attached to every error that spry answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It would fail the same way.
    Never,
    /// It may; the function had its chance.
    Counted,
    /// It may; the node had no room, and the function has not seen the call.
    Free,
}

/// Why spry answered and not the function: an extension of such a response.
#[derive(Debug, Clone, Copy)]
pub struct Why {
    /// The error's code.
    pub code: &'static str,
    /// Whether to try again.
    pub again: Again,
}

/// What came of one run, and whether there should be another.
#[derive(Debug)]
pub struct Ran {
    /// What came of it.
    pub outcome: Outcome,
    /// `None`: it is done.
    pub again: Option<Again>,
}

/// A call on its way. Dropped unanswered, it has not run.
pub struct Launch {
    id: CallId,
    request: Option<Request<Full<Bytes>>>,
    name_len: usize,
    body_max: usize,
    since: Instant,
    runner: UnboundedSender<ToRunner>,
    answered: bool,
}

impl Launch {
    /// Of a call with its body. `body_max`: bytes of the answer's body that are kept.
    pub(super) fn new(call: &Call, body: Bytes, body_max: usize, runner: UnboundedSender<ToRunner>) -> Self {
        let target = format!("/function/{}{}", call.function, call.head.rest);
        let request = target.parse::<Uri>().ok().map(|uri| {
            let mut request = Request::new(Full::new(body));
            *request.method_mut() = call.head.method.clone();
            *request.uri_mut() = uri;
            *request.headers_mut() = call.head.headers.clone();
            request
        });
        let name_len = call.function.len();
        Self { id: call.id, request, name_len, body_max, since: Instant::now(), runner, answered: false }
    }

    /// The call's id.
    pub fn id(&self) -> CallId {
        self.id
    }

    /// Bytes of the called function's name, which stands behind `/function/`.
    pub fn name_len(&self) -> usize {
        self.name_len
    }

    /// The request; `None` when it was taken, or is none (the path is no path).
    pub fn take_request(&mut self) -> Option<Request<Full<Bytes>>> {
        self.request.take()
    }

    /// This came of it. The body is copied: what it lies in belongs to a function.
    pub async fn answer(mut self, response: Response<Full<Bytes>>) {
        let why = response.extensions().get::<Why>().copied();
        let (parts, mut body) = response.into_parts();
        let length = body.size_hint().lower();
        let body = match body.frame().await {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            _ => Bytes::new(),
        };
        let again = match why {
            Some(why) => Some(why.again),
            None if parts.status.is_server_error() || matches!(parts.status.as_u16(), 408 | 429) => {
                Some(Again::Counted)
            }
            None => None,
        };
        let kept = body.len().min(self.body_max);
        let mut headers = parts.headers;
        for own in ["x-call-id", "server-timing", "x-spry-start"] {
            headers.remove(own);
        }
        let outcome = Outcome {
            status: parts.status.as_u16(),
            headers,
            body: Bytes::copy_from_slice(&body[..kept]),
            truncated: (kept as u64) < length,
            error: why.map(|why| why.code.to_owned()),
            took: self.since.elapsed(),
        };
        self.answered = true;
        let _ = self.runner.send(ToRunner::Ran { id: self.id, ran: Some(Ran { outcome, again }) });
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        if !self.answered {
            let _ = self.runner.send(ToRunner::Ran { id: self.id, ran: None });
        }
    }
}

/// The outcome of a call that could not even be launched.
pub(super) fn unrunnable(code: &str, message: &str) -> Ran {
    let body = serde_json::json!({ "error": { "code": code, "message": message } }).to_string();
    let outcome = Outcome {
        status: 500,
        headers: Default::default(),
        body: body.into(),
        truncated: false,
        error: Some(code.to_owned()),
        took: Duration::ZERO,
    };
    Ran { outcome, again: Some(Again::Never) }
}
