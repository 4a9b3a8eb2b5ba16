//! One request: to a function, to the control API, or to one of the node's own pages.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use spry_wire::frame::{HEAD_MAX, RequestHead};

use super::Refusal;
use super::answer::{self, Failed};
use super::body::Body;
use super::call_id::{CallId, CallIds};
use super::headers::reaches_function;
use super::timing::Timing;
use crate::activation::{Record, Stream};
use crate::control::{self, Caller, Control};
use crate::dispatch::{self, Dispatcher, Outcome};
use crate::function::{Entered, Function};
use crate::inbox::{Block, Full as FullInbox};
use crate::node::Node;

/// A buffer for request heads that has grown beyond this is let go, so that one large request isn't kept in memory.
const SCRATCH_KEPT: usize = 16 * 1024;

static X_CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
static X_SPRY_START: HeaderName = HeaderName::from_static("x-spry-start");
static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What one worker thread serves with.
pub(super) struct Worker {
    node: Arc<Node>,
    control: Arc<Control>,
    dispatcher: Rc<Dispatcher>,
    call_ids: CallIds,
    scratch: RefCell<Vec<u8>>,
}

/// An invocation that has been accepted for a known function.
struct Accepted {
    function: Arc<Function>,
    call_id: CallId,
    at: SystemTime,
}

impl Worker {
    /// A worker that names invocations with `random` and sends on `dispatcher`'s port.
    pub(super) fn new(
        random: u64,
        node: Arc<Node>,
        control: Arc<Control>,
        dispatcher: Rc<Dispatcher>,
    ) -> Rc<Self> {
        let call_ids = CallIds::new(random);
        Rc::new(Self { node, control, dispatcher, call_ids, scratch: RefCell::default() })
    }

    /// Its way onto the bus.
    pub(super) fn dispatcher(&self) -> &Rc<Dispatcher> {
        &self.dispatcher
    }

    /// Answers one request, whatever it is.
    pub(super) async fn handle(
        self: Rc<Self>,
        request: Request<Incoming>,
        caller: Caller,
    ) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        if let Some(rest) = path.strip_prefix("/function/") {
            let name_len = rest.find('/').unwrap_or(rest.len());
            return self.invoke(request, name_len).await;
        }
        let call_id = self.call_ids.next();
        let mut response = match path {
            "/healthz" => only_reads(request.method()).map(|()| text(StatusCode::OK, "ok\n".into())),
            "/metrics" => only_reads(request.method())
                .map(|()| text(StatusCode::OK, crate::metrics::render(&self.node))),
            _ if control::is_control_path(path) => Ok(control::handle(request, &self.control, caller).await),
            "*" if request.method() == Method::OPTIONS => Ok(options()),
            _ => Err(Refusal::NoSuchPath),
        }
        .unwrap_or_else(|refusal| refuse(&refusal, call_id, Timing::NONE));
        name(&mut response, call_id);
        if !response.headers().contains_key(&SERVER_TIMING) {
            response.headers_mut().insert(SERVER_TIMING.clone(), Timing::NONE.header());
        }
        response
    }

    async fn invoke(self: Rc<Self>, request: Request<Incoming>, name_len: usize) -> Response<Full<Bytes>> {
        let call_id = self.call_ids.next();
        let at = SystemTime::now();
        let path = &request.uri().path()["/function/".len()..];
        let Some(entered) = self.node.enter(&path[..name_len]) else {
            let refusal = Refusal::NoSuchFunction(path[..name_len].to_owned());
            let mut response = refuse(&refusal, call_id, Timing::NONE);
            name(&mut response, call_id);
            return response;
        };
        let accepted = Accepted { function: Arc::clone(&entered), call_id, at };
        let (mut response, timing, error) = match self.run(entered, request, name_len, call_id).await {
            Ok((response, timing)) => (response, timing, None),
            Err((failed, timing)) => {
                accepted.log_failure(&failed);
                let code = failed.refusal.status().1;
                (refuse(&failed.refusal, call_id, timing), timing, Some(code))
            }
        };
        name(&mut response, call_id);
        if let Some(start) = timing.start {
            response.headers_mut().insert(X_SPRY_START.clone(), HeaderValue::from_static(start.as_str()));
        }
        response.headers_mut().insert(SERVER_TIMING.clone(), timing.header());
        accepted.record(response.status(), timing, error);
        response
    }

    /// The result of a function, or why there is none; and where the time went either way.
    async fn run(
        &self,
        entered: Entered,
        request: Request<Incoming>,
        name_len: usize,
        call_id: CallId,
    ) -> Result<(Response<Full<Bytes>>, Timing), (Failed, Timing)> {
        let function = Arc::clone(&entered);
        let timeout = function.stored.manifest.limits.timeout.as_duration();
        let block = self
            .take_in(&entered, request, name_len, call_id)
            .await
            .map_err(|refusal| (refusal.into(), Timing::NONE))?;
        let begun = Instant::now();
        let deadline = begun + timeout;
        let deadline_unix_ns = (SystemTime::now() + timeout).duration_since(UNIX_EPOCH).unwrap_or_default();
        block.patch(8, (deadline_unix_ns.as_nanos() as u64).to_le_bytes());
        let wanted = dispatch::Request { call_id, block, deadline };
        let invocation = self
            .dispatcher
            .submit(entered, wanted)
            .map_err(|refusal| (refusal.into(), Timing::waited(begun.elapsed())))?;
        let mut ended = invocation.await;
        let outcome = std::mem::replace(&mut ended.outcome, Outcome::Refused(Refusal::ShuttingDown));
        let answered = match outcome {
            Outcome::Answered(answered) => answered,
            Outcome::Refused(refusal) => return Err((refusal.into(), Timing::waited(begun.elapsed()))),
        };
        let before = answered.instance.answered(crate::activation::unix_ms());
        let timing = Timing::answered(&ended, answered.at, &answered.instance, before);
        let limit_bytes = function.stored.manifest.limits.payload.as_bytes();
        let find = answer::of_call(&answered.instance, ended.block);
        let answer = answer::read(&answered.descriptor, limit_bytes, find);
        let answer = answer.map_err(|failed| (failed, timing))?;
        let mut response = Response::new(Full::new(answer.body));
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        if answer.status == StatusCode::NO_CONTENT || answer.status == StatusCode::NOT_MODIFIED {
            *response.body_mut() = Full::default();
        }
        Ok((response, timing))
    }

    /// Writes a request into the function's inbox while it arrives.
    async fn take_in(
        &self,
        function: &Function,
        request: Request<Incoming>,
        name_len: usize,
        call_id: CallId,
    ) -> Result<Block, Refusal> {
        let limit_bytes = function.stored.manifest.limits.payload.as_bytes();
        let too_large = Refusal::PayloadTooLarge { limit_bytes };
        let announced = request.body().size_hint();
        if announced.lower() > limit_bytes {
            return Err(too_large);
        }
        let (parts, body) = request.into_parts();
        let reserve = announced.exact().unwrap_or(limit_bytes) as usize;
        let mut block = {
            let mut scratch = self.scratch.borrow_mut();
            encode_head(&parts, name_len, call_id, &mut scratch).map_err(Refusal::HeadTooLarge)?;
            debug_assert!(scratch.len() <= HEAD_MAX);
            let block = function.inbox().allocate(scratch.len() + reserve);
            let mut block = block.ok_or(Refusal::NodeFull { what: "waiting bodies of this function" })?;
            fill(&mut block, &scratch, &too_large)?;
            if scratch.capacity() > SCRATCH_KEPT {
                *scratch = Vec::new();
            }
            block
        };
        if body.is_end_stream() {
            return Ok(block);
        }
        let head_len = block.len();
        let mut body = Body::new(body);
        while let Some(frame) = body.next().await? {
            let Ok(data) = frame.into_data() else { continue };
            if u64::from(block.len() - head_len) + data.len() as u64 > limit_bytes {
                return Err(too_large);
            }
            fill(&mut block, &data, &too_large)?;
        }
        if announced.exact().is_none() {
            block.shrink();
        }
        Ok(block)
    }
}

fn fill(block: &mut Block, bytes: &[u8], too_large: &Refusal) -> Result<(), Refusal> {
    block.append(bytes).map_err(|full| match full {
        FullInbox::Block => too_large.clone(),
        FullInbox::Node => Refusal::NodeFull { what: "memory for requests" },
    })
}

fn encode_head(
    parts: &http::request::Parts,
    name_len: usize,
    call_id: CallId,
    out: &mut Vec<u8>,
) -> Result<(), spry_wire::frame::FrameError> {
    let mut headers = Vec::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        if reaches_function(name) {
            headers.push((name.as_str(), value.as_bytes()));
        }
    }
    let head = RequestHead {
        deadline_unix_ns: 0,
        call_id: call_id.as_str(),
        method: parts.method.as_str(),
        path: &parts.uri.path()["/function/".len() + name_len..],
        query: parts.uri.query().unwrap_or(""),
        headers,
    };
    head.encode(out)
}

impl Accepted {
    fn log_failure(&self, failed: &Failed) {
        if let Some(text) = &failed.text {
            self.function.history.lock().log(Some(self.call_id), Stream::Stderr, text.as_bytes());
        }
    }

    fn record(&self, status: StatusCode, timing: Timing, error: Option<&'static str>) {
        let counts = &self.function.counts;
        let ended = if error.is_some() { &counts.failed } else { &counts.ok };
        ended.fetch_add(1, Ordering::Relaxed);
        if let Some(start) = timing.start {
            counts.served(start, timing.exec_ns);
        }
        self.function.history.lock().record(Record {
            call_id: self.call_id,
            version: self.function.stored.version,
            started_unix_ms: self.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            start: timing.start,
            queue_ns: timing.queue_ns,
            start_ns: timing.start_ns,
            exec_ns: timing.exec_ns,
            status: status.as_u16(),
            error,
        });
    }
}

fn name(response: &mut Response<Full<Bytes>>, call_id: CallId) {
    let value = HeaderValue::from_bytes(call_id.as_bytes()).expect("hexadecimal digits");
    response.headers_mut().insert(X_CALL_ID.clone(), value);
}

fn refuse(refusal: &Refusal, call_id: CallId, timing: Timing) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(refusal.body(call_id))));
    *response.status_mut() = refusal.status().0;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SERVER_TIMING.clone(), timing.header());
    if let Some(seconds) = refusal.retry_after_s() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Refusal::MethodNotAllowed(allowed) = refusal {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

fn only_reads(method: &Method) -> Result<(), Refusal> {
    if method == Method::GET || method == Method::HEAD {
        Ok(())
    } else {
        Err(Refusal::MethodNotAllowed("GET, HEAD"))
    }
}

fn options() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
