//! One request: to a function, to the control API, or to one of the node's own pages.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;
use spry_wire::frame::{HEAD_MAX, RequestHead};

use super::Refusal;
use super::answer::{self, Answer, Failed};
use super::body::Body;
use super::call_id::{CallId, CallIds};
use super::headers::reaches_function;
use super::timing::Timing;
use crate::activation::{History, Record, Stream};
use crate::calls::Calls;
use crate::calls::launch::{Launch, Why};
use crate::control::{self, Caller, Control};
use crate::dispatch::{self, Dispatcher, Job};
use crate::function::{Counts, Entered};
use crate::inbox::{Block, Full as FullInbox, Inbox};
use crate::node::Node;

/// A buffer for request heads that has grown beyond this is let go, so that one large request isn't kept in memory.
const SCRATCH_KEPT: usize = 16 * 1024;

static X_CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
static X_SPRY_START: HeaderName = HeaderName::from_static("x-spry-start");
static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What one worker thread serves with.
pub(super) struct Worker {
    pub(super) node: Arc<Node>,
    control: Arc<Control>,
    pub(super) calls: Arc<Calls>,
    dispatcher: Rc<Dispatcher>,
    pub(super) call_ids: CallIds,
    scratch: RefCell<Vec<u8>>,
}

/// An invocation that has been accepted for a known function or chain.
struct Accepted {
    history: Arc<Mutex<History>>,
    counts: Arc<Counts>,
    version: u64,
    call_id: CallId,
    at: SystemTime,
}

/// What comes of an invocation that went through, and what of one that didn't; where the time went either way.
pub(super) type Outcome<T> = Result<(T, Timing), (Failed, Timing)>;

impl Worker {
    /// A worker that names invocations with `random` and sends on `dispatcher`'s port.
    pub(super) fn new(
        random: u64,
        node: Arc<Node>,
        control: Arc<Control>,
        calls: Arc<Calls>,
        dispatcher: Rc<Dispatcher>,
    ) -> Rc<Self> {
        let call_ids = CallIds::new(random);
        Rc::new(Self { node, control, calls, dispatcher, call_ids, scratch: RefCell::default() })
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
            let call_id = self.call_ids.next();
            return self.invoke(request, name_len, call_id).await;
        }
        if let Some(rest) = path.strip_prefix("/async-function/") {
            let name_len = rest.find('/').unwrap_or(rest.len());
            return self.later(request, name_len).await;
        }
        let call_id = self.call_ids.next();
        let mut response = match path {
            "/healthz" => only_reads(request.method()).map(|()| text(StatusCode::OK, "ok\n".into())),
            "/metrics" => only_reads(request.method()).map(|()| {
                text(
                    StatusCode::OK,
                    crate::metrics::render(&self.node) + &crate::metrics::calls(&self.calls.counts()),
                )
            }),
            _ if control::is_control_path(path) => Ok(control::handle(request, &self.control, caller).await),
            "*" if request.method() == Method::OPTIONS => Ok(options()),
            _ => Err(Refusal::NoSuchPath),
        }
        .unwrap_or_else(|refusal| refuse(&refusal, call_id, Timing::NONE));
        name(&mut response, call_id);
        if !response.headers().contains_key(&SERVER_TIMING) {
            response.headers_mut().insert(SERVER_TIMING.clone(), Timing::NONE.header(b""));
        }
        response
    }

    /// Runs an asynchronous call, as if a client had sent it.
    pub(super) async fn run_launch(self: Rc<Self>, mut launch: Launch) {
        let (call_id, name_len) = (launch.id(), launch.name_len());
        let response = match launch.take_request() {
            Some(request) => self.invoke(request, name_len, call_id).await,
            None => refuse(&Refusal::NoSuchPath, call_id, Timing::NONE),
        };
        launch.answer(response).await;
    }

    async fn invoke<B>(
        self: Rc<Self>,
        request: Request<B>,
        name_len: usize,
        call_id: CallId,
    ) -> Response<Full<Bytes>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let at = SystemTime::now();
        let called = &request.uri().path()["/function/".len()..][..name_len];
        if let Some(entered) = self.node.enter(called) {
            let (history, counts) = (Arc::clone(&entered.history), Arc::clone(&entered.counts));
            let accepted = Accepted { history, counts, version: entered.stored.version, call_id, at };
            let outcome = self.run(entered, request, name_len, call_id).await;
            return accepted.respond(outcome, b"");
        }
        if let Some(chain) = self.node.chain_named(called) {
            let (history, counts) = (Arc::clone(&chain.history), Arc::clone(&chain.counts));
            let accepted = Accepted { history, counts, version: chain.version, call_id, at };
            let (outcome, steps) = self.run_chain(chain, request, name_len, call_id).await;
            return accepted.respond(outcome, &steps);
        }
        let mut response = refuse(&Refusal::NoSuchFunction(called.to_owned()), call_id, Timing::NONE);
        name(&mut response, call_id);
        response
    }

    /// The result of a function, or why there is none; and where the time went either way.
    async fn run<B>(
        &self,
        entered: Entered,
        request: Request<B>,
        name_len: usize,
        call_id: CallId,
    ) -> Outcome<Answer>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let function = Arc::clone(&entered);
        let timeout = function.stored.manifest.limits.timeout.as_duration();
        let limit_bytes = function.stored.manifest.limits.payload.as_bytes();
        let block = self
            .take_in(&function.inbox(), limit_bytes, request, name_len, call_id)
            .await
            .map_err(|refusal| (refusal.into(), Timing::NONE))?;
        let begun = Instant::now();
        let deadline = set_deadline(&block, begun, timeout);
        let job = Job::Function { function: entered, block };
        let invocation = self
            .dispatcher
            .submit(dispatch::Request { call_id, deadline, job })
            .map_err(|refusal| (refusal.into(), Timing::waited(begun.elapsed())))?;
        let mut ended = invocation.await;
        let outcome =
            std::mem::replace(&mut ended.outcome, dispatch::Outcome::Refused(Refusal::ShuttingDown));
        let answered = match outcome {
            dispatch::Outcome::Answered(answered) => answered,
            dispatch::Outcome::Refused(refusal) => {
                return Err((refusal.into(), Timing::waited(begun.elapsed())));
            }
        };
        let now_unix_ms = crate::activation::unix_ms();
        let before = answered.instance.answered(now_unix_ms);
        function.used(now_unix_ms, answered.at.saturating_duration_since(ended.submitted_at));
        let timing = Timing::answered(&ended, answered.at, &answered.instance, before);
        let block = ended.block.expect("a function's request comes back with its end");
        let find = answer::of_call(&answered.instance, block);
        let answer = answer::read(&answered.descriptor, limit_bytes, find);
        let answer = answer.map_err(|failed| (failed, timing))?;
        Ok((answer, timing))
    }

    /// Writes a request into an inbox while it arrives.
    pub(super) async fn take_in<B>(
        &self,
        inbox: &Arc<Inbox>,
        limit_bytes: u64,
        request: Request<B>,
        name_len: usize,
        call_id: CallId,
    ) -> Result<Block, Refusal>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
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
            let block = inbox.allocate(scratch.len() + reserve);
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

/// Says in a request's head when its time is over; returns when that is.
pub(super) fn set_deadline(block: &Block, begun: Instant, timeout: Duration) -> Instant {
    let deadline_unix_ns = (SystemTime::now() + timeout).duration_since(UNIX_EPOCH).unwrap_or_default();
    block.patch(8, (deadline_unix_ns.as_nanos() as u64).to_le_bytes());
    begun + timeout
}

impl Accepted {
    /// The response, which has been recorded. `steps` are further entries of `Server-Timing`.
    fn respond(self, outcome: Outcome<Answer>, steps: &[u8]) -> Response<Full<Bytes>> {
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
        response
    }

    fn record(&self, status: StatusCode, timing: Timing, error: Option<&'static str>, steps: &[u8]) {
        let ended = if error.is_some() { &self.counts.failed } else { &self.counts.ok };
        ended.fetch_add(1, Ordering::Relaxed);
        if let Some(start) = timing.start {
            self.counts.served(start, timing.exec_ns);
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
}

pub(super) fn name(response: &mut Response<Full<Bytes>>, call_id: CallId) {
    let value = HeaderValue::from_bytes(call_id.as_bytes()).expect("hexadecimal digits");
    response.headers_mut().insert(X_CALL_ID.clone(), value);
}

pub(super) fn refuse(refusal: &Refusal, call_id: CallId, timing: Timing) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(refusal.body(call_id))));
    let (status, code) = refusal.status();
    *response.status_mut() = status;
    response.extensions_mut().insert(Why { code, again: refusal.again() });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(SERVER_TIMING.clone(), timing.header(b""));
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
