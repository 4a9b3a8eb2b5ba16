//! `/async-function/`: calls that are answered before they run.
//!
//! `POST …/NAME[/rest]` puts the call on disk and answers 202; `GET …/ID` says where it is and, once it has ended, what it
//! answered; `DELETE …/ID` takes it back. Whoever knows the id may do the latter two: it is drawn at random, and only the
//! submitter was told it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use spry_wire::frame::RequestHead;
use tokio::sync::watch;

use super::Refusal;
use super::body::Body;
use super::call_id::CallId;
use super::headers::reaches_function;
use super::service::{MEMORY_FULL, Worker, name, refuse};
use super::timing::Timing;
use crate::access::Caller;
use crate::calls::call::Head;
use crate::calls::{BODY_MAX, CallsError, DELAY_MAX, KEY_MAX, NewCall};
use crate::control::later::{Found, answered, find, view};
use crate::inbox::Held;
use crate::units::Period;

const X_CALLBACK_URL: &str = "x-callback-url";
const X_DELAY: &str = "x-delay";
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// How long a caller may wait for a call's end.
const WAIT_MAX: Duration = Duration::from_secs(60);

static X_REPEATED: HeaderName = HeaderName::from_static("x-spry-repeated");

impl Worker {
    pub(super) async fn later(
        self: Rc<Self>,
        request: Request<Incoming>,
        name_len: usize,
        caller: Caller,
    ) -> Response<Full<Bytes>> {
        let done = match *request.method() {
            Method::POST | Method::PUT | Method::PATCH => self.submit_later(request, name_len, caller).await,
            Method::DELETE => self.take_back(&request).await,
            Method::GET | Method::HEAD => self.say_where(&request).await,
            _ => Err(Refusal::MethodNotAllowed("GET, HEAD, POST, PUT, PATCH, DELETE")),
        };
        done.unwrap_or_else(|refusal| {
            let call_id = self.call_ids.next();
            let mut response = refuse(&refusal, call_id, Timing::NONE);
            name(&mut response, call_id);
            response
        })
    }

    async fn submit_later(
        &self,
        mut request: Request<Incoming>,
        name_len: usize,
        caller: Caller,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let called = request.uri().path()["/async-function/".len()..][..name_len].to_owned();
        let closed = self.node.named(&called).is_some_and(|function| function.stored.manifest.access.token)
            || self.node.chain_named(&called).is_some_and(|chain| chain.needs_token());
        self.let_in(closed, caller, request.headers(), &called).map_err(Refusal::Denied)?;
        // Nor does a token lie on the disk.
        self.control().access().conceal(request.headers_mut());
        let path = &request.uri().path()["/async-function/".len()..];
        let (called, rest) = path.split_at(name_len);
        let limit_bytes = match (self.node.named(called), self.node.chain_named(called)) {
            (Some(function), _) => function.stored.manifest.limits.payload.as_bytes(),
            (None, Some(chain)) => chain.plan.payload_bytes,
            (None, None) => return Err(Refusal::NoSuchFunction(called.to_owned())),
        };
        let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
        let (function, rest) = (called.into(), format!("{rest}{query}"));
        let headers = request.headers();
        let callback = text_of(headers, X_CALLBACK_URL)?.map(str::to_owned);
        let key = headers.get(IDEMPOTENCY_KEY).map(|value| value.as_bytes().to_vec());
        if key.as_ref().is_some_and(|key| key.is_empty() || key.len() > KEY_MAX) {
            let problem = format!("it must have 1 to {KEY_MAX} bytes");
            return Err(Refusal::Header { name: "Idempotency-Key", problem });
        }
        let delay = delay_of(headers)?;
        let method = request.method().clone();
        let own = |name: &HeaderName| matches!(name.as_str(), X_CALLBACK_URL | X_DELAY);
        let mut kept = HeaderMap::with_capacity(headers.len());
        for (name, value) in headers.iter().filter(|(name, _)| reaches_function(name) && !own(name)) {
            kept.append(name.clone(), value.clone());
        }
        let head = Head { method, rest, headers: kept };
        self.fits(&head)?;
        // What arrives counts among the requests in memory until it is on disk.
        let mut held = Held::new(Arc::clone(self.unsent.memory()));
        let limit_bytes = limit_bytes.min(BODY_MAX);
        let body = whole(request.into_body(), limit_bytes, &mut held, self.ending().cut.subscribe()).await?;
        let accepted = self.calls.accept(NewCall { function, head, body, callback, delay, key }).await?;
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::ACCEPTED;
        name(&mut response, accepted.id);
        let place = HeaderValue::from_str(&format!("/async-function/{}", accepted.id));
        response.headers_mut().insert(LOCATION, place.expect("a path of ASCII letters"));
        if accepted.repeated {
            response.headers_mut().insert(X_REPEATED.clone(), HeaderValue::from_static("true"));
        }
        Ok(response)
    }

    /// Whether a function can be given this head: a call of which that isn't so would be accepted for nothing.
    fn fits(&self, head: &Head) -> Result<(), Refusal> {
        let (path, query) = head.rest.split_once('?').unwrap_or((&head.rest, ""));
        let headers = head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let mut headers: Vec<_> = headers.collect();
        // A run may be traced, and is told so.
        if !head.headers.contains_key("traceparent") {
            headers.push(("traceparent", &[b'0'; 55]));
        }
        let call_id = self.call_ids.next();
        let (call_id, method) = (call_id.as_str(), head.method.as_str());
        let head = RequestHead { deadline_unix_ns: 0, call_id, method, path, query, headers };
        head.encode(&mut Vec::new()).map_err(Refusal::HeadTooLarge)
    }

    async fn take_back(&self, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        let id = id_of(request)?;
        self.calls.cancel(id).await?;
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        name(&mut response, id);
        Ok(response)
    }

    /// 202 and where it is, or the answer as its caller would have got it.
    async fn say_where(&self, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        let id = id_of(request)?;
        let wait = wait_of(request.uri().query().unwrap_or_default())?;
        let mut response = match find(&self.calls, id, wait).await? {
            None => return Err(CallsError::NoSuchCall(id).into()),
            Some(Found::Ended(ended)) => answered(ended),
            Some(live) => {
                let shown = serde_json::to_vec(&view(id, live, None)).unwrap_or_default();
                let mut response = Response::new(Full::new(Bytes::from(shown)));
                *response.status_mut() = StatusCode::ACCEPTED;
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
        };
        name(&mut response, id);
        Ok(response)
    }
}

fn id_of(request: &Request<Incoming>) -> Result<CallId, Refusal> {
    CallId::parse(&request.uri().path()["/async-function/".len()..]).ok_or(Refusal::NoSuchPath)
}

fn text_of<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, Refusal> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    value.to_str().map(Some).map_err(|_| Refusal::Header { name, problem: "it is no plain text".into() })
}

/// `X-Delay`: seconds, or a period such as `10m`.
fn delay_of(headers: &HeaderMap) -> Result<Duration, Refusal> {
    let Some(text) = text_of(headers, X_DELAY)? else { return Ok(Duration::ZERO) };
    let bad = |problem: String| Refusal::Header { name: "X-Delay", problem };
    let delay = match text.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => text.parse::<Period>().map_err(|error| bad(error.to_string()))?.as_duration(),
    };
    if delay > DELAY_MAX {
        return Err(bad(format!("{text:?} is over the limit of 30d")));
    }
    Ok(delay)
}

fn wait_of(query: &str) -> Result<Duration, Refusal> {
    let wait = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "wait");
    let Some((_, text)) = wait else { return Ok(Duration::ZERO) };
    match text.parse::<Period>() {
        Ok(period) => Ok(period.as_duration().min(WAIT_MAX)),
        Err(error) => Err(Refusal::Header { name: "wait", problem: error.to_string() }),
    }
}

/// A body of at most `limit_bytes`.
async fn whole(
    incoming: Incoming,
    limit_bytes: u64,
    held: &mut Held,
    cut: watch::Receiver<bool>,
) -> Result<Bytes, Refusal> {
    let too_large = || Refusal::PayloadTooLarge { limit_bytes };
    if incoming.size_hint().lower() > limit_bytes {
        return Err(too_large());
    }
    let mut body = Body::new(incoming, cut);
    let mut pieces = BytesMut::new();
    while let Some(frame) = body.next().await? {
        let Ok(data) = frame.into_data() else { continue };
        if (pieces.len() + data.len()) as u64 > limit_bytes {
            return Err(too_large());
        }
        held.take(data.len() as u64).map_err(|_| MEMORY_FULL)?;
        if pieces.is_empty() && body.is_end() {
            return Ok(data);
        }
        pieces.extend_from_slice(&data);
    }
    Ok(pieces.freeze())
}
