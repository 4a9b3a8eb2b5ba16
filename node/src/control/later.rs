//! Asynchronous calls over the control API: one call and its result, waited for if need be; dead letters.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;

use super::query::Query;
use super::{Control, Refused, WAIT_MAX, answer, blocking, json, limit};
use crate::activation::unix_ms;
use crate::api::{ActivationView, LaterState, LaterView};
use crate::calls::rows::Ended;
use crate::calls::runner::Live;
use crate::calls::{Calls, CallsError};
use crate::gateway::call_id::CallId;
use crate::records::{Filter, StoredResult};
use crate::units::{Period, UnitError};

type Answer = Result<Response<Full<Bytes>>, Refused>;

/// What is known of an asynchronous call.
pub(crate) enum Found {
    /// It has not ended.
    Live(Live),
    /// It has.
    Ended(Ended),
}

/// Looks for a call; with `wait`, until it has ended or the time is over.
pub(crate) async fn find(
    calls: &Arc<Calls>,
    id: CallId,
    wait: Duration,
) -> Result<Option<Found>, CallsError> {
    if let Some(mut live) = calls.live(id).await {
        let over = !wait.is_zero() && tokio::time::timeout(wait, &mut live.over).await.is_ok();
        if !over {
            return Ok(calls.live(id).await.map(Found::Live).or(Some(Found::Live(live))));
        }
    }
    let calls = Arc::clone(calls);
    let ended = tokio::task::spawn_blocking(move || calls.ended(id)).await;
    ended.unwrap_or(Err(CallsError::ShuttingDown)).map(|ended| ended.map(Found::Ended))
}

/// As the control API shows it. `run`: its last run, if that is known.
pub(crate) fn view(id: CallId, found: Found, run: Option<ActivationView>) -> ActivationView {
    let (function, status, error, later, took_ms) = match found {
        Found::Live(live) => {
            let state = match live.state {
                "queued" => LaterState::Queued,
                "delayed" => LaterState::Delayed,
                _ => LaterState::Running,
            };
            let due_ms = (state == LaterState::Delayed).then_some(live.due_in.as_millis() as u64);
            let (attempts, accepted_unix_ms) = (live.failures, live.accepted_unix_ms);
            let later = LaterView { state, attempts, accepted_unix_ms, ended_unix_ms: None, due_ms };
            (live.function, 0, None, later, 0.0)
        }
        Found::Ended(ended) => {
            let state = match ended.outcome.error.as_deref() {
                Some("cancelled") => LaterState::Cancelled,
                _ if ended.dead => LaterState::Dead,
                _ => LaterState::Done,
            };
            let later = LaterView {
                state,
                attempts: ended.attempts,
                accepted_unix_ms: ended.accepted_unix_ms,
                ended_unix_ms: Some(ended.ended_unix_ms),
                due_ms: None,
            };
            let took_ms = ended.outcome.took.as_secs_f64() * 1e3;
            (ended.function, ended.outcome.status, ended.outcome.error, later, took_ms)
        }
    };
    let mut view = run.unwrap_or_else(|| ActivationView {
        call_id: id.to_string(),
        function: function.to_string(),
        version: 0,
        started_unix_ms: later.accepted_unix_ms,
        start: None,
        queue_ms: 0.0,
        start_ms: 0.0,
        exec_ms: took_ms,
        cpu_ms: None,
        memory_peak: None,
        status,
        error: error.clone(),
        steps: Vec::new(),
        later: None,
        logs: Vec::new(),
    });
    (view.status, view.error, view.later) = (status, error, Some(later));
    view
}

/// Which calls are wanted: `function`, `status`, `since` and `until` (instants, or periods before now).
pub(super) fn filter(query: &Query) -> Result<Filter, Refused> {
    let bad = |name, problem: String| Refused::Parameter { name, problem };
    let instant = |name: &'static str| -> Result<Option<u64>, Refused> {
        let Some(text) = query.text(name) else { return Ok(None) };
        if let Ok(unix_ms) = text.parse() {
            return Ok(Some(unix_ms));
        }
        let ago: Period = text.parse().map_err(|error: UnitError| bad(name, error.to_string()))?;
        Ok(Some(unix_ms().saturating_sub(ago.as_millis())))
    };
    Ok(Filter {
        function: query.text("function").map(str::to_owned),
        status: query.text("status").map(str::parse).transpose().map_err(|problem| bad("status", problem))?,
        since_unix_ms: instant("since")?,
        until_unix_ms: instant("until")?,
    })
}

pub(super) async fn activation(id: &str, query: &Query, control: &Control) -> Answer {
    let wait = query.period("wait")?.unwrap_or_default().min(WAIT_MAX);
    if let (Some(calls), Some(call)) = (&control.calls, CallId::parse(id))
        && let Some(found) = find(calls, call, wait).await?
    {
        let run = control.engine.activation(id).await;
        return json(&view(call, found, run));
    }
    json(&super::activation(id, control).await?)
}

/// What a call answered: its status, its headers and its body.
pub(super) async fn result(id: &str, query: &Query, control: &Control) -> Answer {
    let wait = query.period("wait")?.unwrap_or_default().min(WAIT_MAX);
    if let (Some(calls), Some(call)) = (&control.calls, CallId::parse(id)) {
        match find(calls, call, wait).await? {
            Some(Found::Live(_)) => return Err(Refused::NotEnded(id.into())),
            Some(Found::Ended(ended)) => return Ok(answered(ended)),
            None => {}
        }
    }
    super::activation(id, control).await?;
    let kept = control.engine.result(id).await;
    kept.map(kept_answer).ok_or_else(|| Refused::NoResult(id.into()))
}

/// The answer of a synchronous call, as far as it was kept.
fn kept_answer(kept: StoredResult) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(kept.body));
    *response.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::from_str(&kept.content_type)
        && !kept.content_type.is_empty()
    {
        headers.insert(CONTENT_TYPE, kind);
    }
    headers.insert(HeaderName::from_static("x-spry-call-state"), HeaderValue::from_static("done"));
    if kept.truncated {
        headers.insert(HeaderName::from_static("x-spry-truncated"), HeaderValue::from_static("true"));
    }
    response
}

/// The answer of a call that has ended, as its caller would have got it.
pub(crate) fn answered(ended: Ended) -> Response<Full<Bytes>> {
    let outcome = ended.outcome;
    let mut response = Response::new(Full::new(outcome.body));
    // A cancelled call has no answer; 410 says that there won't be one.
    let status = if outcome.status == 499 { 410 } else { outcome.status };
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = outcome.headers;
    let headers = response.headers_mut();
    let state = if ended.dead { "dead" } else { "done" };
    headers.insert(HeaderName::from_static("x-spry-call-state"), HeaderValue::from_static(state));
    headers.insert(HeaderName::from_static("x-spry-attempts"), HeaderValue::from(ended.attempts));
    if outcome.truncated {
        headers.insert(HeaderName::from_static("x-spry-truncated"), HeaderValue::from_static("true"));
    }
    response
}

fn calls(control: &Control) -> Result<Arc<Calls>, Refused> {
    control.calls.clone().ok_or(Refused::NoSuchPath)
}

fn parse(id: &str) -> Result<CallId, Refused> {
    CallId::parse(id).ok_or_else(|| Refused::NoSuchActivation(id.into()))
}

pub(super) async fn dead(query: &Query, control: &Control) -> Answer {
    let (calls, limit) = (calls(control)?, limit(query)?);
    let (function, until) = (query.text("function").map(str::to_owned), query.number("until")?);
    json(&blocking(move || calls.dead(function.as_deref(), until.unwrap_or(u64::MAX), limit)).await??)
}

pub(super) async fn revive(id: &str, control: &Control) -> Answer {
    calls(control)?.revive(parse(id)?).await?;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}

pub(super) async fn drop_dead(id: &str, control: &Control) -> Answer {
    calls(control)?.drop_dead(parse(id)?).await?;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}
