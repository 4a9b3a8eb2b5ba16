//! One request: to a function, to the control API, or to one of the node's own pages.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use spry_wire::frame::{HEAD_MAX, RequestHead};
use tokio::sync::watch;

use super::Refusal;
use super::accepted::{Accepted, Named};
use super::answer::{self, Answer, Failed};
use super::body::Body;
use super::call_id::{CallId, CallIds};
use super::headers::reaches_function;
use super::pages::{no_tunnel, only_reads, options, text};
use super::timing::Timing;
use super::unsent::{Client, Shelf, Unsent};
use super::{coding, host};
use crate::access::{Caller, Denied, Need, Scope};
use crate::calls::Calls;
use crate::calls::launch::{Launch, Why};
use crate::control::{self, Control};
use crate::dispatch::{self, Dispatcher, Job};
use crate::function::Entered;
use crate::inbox::{Block, Full as FullInbox, Inbox};
use crate::manifest::Isolation;
use crate::node::Node;
use crate::trace::Tracer;

/// A buffer for request heads that has grown beyond this is let go, so that one large request isn't kept in memory.
const SCRATCH_KEPT: usize = 16 * 1024;

const INBOX_FULL: Refusal = Refusal::NodeFull { what: "waiting bodies of this function" };
pub(super) const MEMORY_FULL: Refusal = Refusal::NodeFull { what: "memory for requests" };

static X_CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
pub(super) static X_SPRY_START: HeaderName = HeaderName::from_static("x-spry-start");
pub(super) static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What one worker thread serves with.
pub(super) struct Worker {
    pub(super) node: Arc<Node>,
    control: Arc<Control>,
    pub(super) calls: Arc<Calls>,
    pub(super) unsent: Arc<Unsent>,
    dispatcher: Rc<Dispatcher>,
    pub(super) call_ids: CallIds,
    scratch: RefCell<Vec<u8>>,
    tracer: Tracer,
    ending: Ending,
}

/// How far spryd's end has come, for those who have to know.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// Answers say that their connection ends with them.
    pub(super) closing: Cell<bool>,
    /// Nothing is waited for any more.
    pub(super) cut: watch::Sender<bool>,
}

/// What comes of an invocation that went through, and what of one that didn't; where the time went either way.
pub(super) type Outcome<T> = Result<(T, Timing), (Failed, Timing)>;

impl Worker {
    /// A worker that names invocations with `random` and sends on `dispatcher`'s port.
    pub(super) fn new(
        random: u64,
        tracer: Tracer,
        node: Arc<Node>,
        control: Arc<Control>,
        calls: Arc<Calls>,
        unsent: Arc<Unsent>,
        dispatcher: Rc<Dispatcher>,
    ) -> Rc<Self> {
        let call_ids = CallIds::new(random);
        Rc::new(Self {
            node,
            control,
            calls,
            unsent,
            dispatcher,
            call_ids,
            scratch: RefCell::default(),
            tracer,
            ending: Ending::default(),
        })
    }

    /// How far the end has come.
    pub(super) fn ending(&self) -> &Ending {
        &self.ending
    }

    /// The control API.
    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// Its way onto the bus.
    pub(super) fn dispatcher(&self) -> &Rc<Dispatcher> {
        &self.dispatcher
    }

    /// Answers one request, whatever it is.
    pub(super) async fn handle(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        caller: Caller,
        client: Arc<Client>,
    ) -> Response<Full<Bytes>> {
        let sound = host::settle(&mut request)
            .and_then(|()| coding::check(request.headers()))
            .and_then(|()| no_tunnel(request.method()));
        let path = request.uri().path();
        let admitted = match path {
            // Whether it lives must be answered, whoever asks too often.
            "/healthz" => Ok(()),
            _ => self.control.access().admit(caller, request.headers()),
        };
        let admitted = sound.and_then(|()| admitted.map_err(Refusal::Denied));
        if let Err(refusal) = admitted {
            let call_id = self.call_ids.next();
            let mut response = refuse(&refusal, call_id, Timing::NONE);
            name(&mut response, call_id);
            return response;
        }
        if let Some(rest) = path.strip_prefix("/function/") {
            let name_len = rest.find('/').unwrap_or(rest.len());
            let call_id = self.call_ids.next();
            return self.invoke(request, name_len, call_id, caller, Some(&client)).await;
        }
        if let Some(rest) = path.strip_prefix("/async-function/") {
            let name_len = rest.find('/').unwrap_or(rest.len());
            return self.later(request, name_len, caller).await;
        }
        let call_id = self.call_ids.next();
        let mut response = match path {
            "/healthz" => only_reads(request.method()).map(|()| text(StatusCode::OK, "ok\n".into())),
            "/metrics" => match only_reads(request.method()) {
                Ok(()) => Ok(self.metrics().await),
                Err(refusal) => Err(refusal),
            },
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

    /// Whether a caller may call this; `closed`: it asks for a token.
    pub(super) fn let_in(
        &self,
        closed: bool,
        caller: Caller,
        headers: &HeaderMap,
        called: &str,
    ) -> Result<(), Denied> {
        let need = Need { scope: Scope::Invoke, name: Some(called) };
        if closed { self.control.access().check(caller, headers, need) } else { Ok(()) }
    }

    /// Runs an asynchronous call, as if a client had sent it. Whether it may was looked at when it was taken.
    pub(super) async fn run_launch(self: Rc<Self>, mut launch: Launch) {
        let (call_id, name_len) = (launch.id(), launch.name_len());
        let response = match launch.take_request() {
            Some(request) => self.invoke(request, name_len, call_id, Caller::Local, None).await,
            None => refuse(&Refusal::NoSuchPath, call_id, Timing::NONE),
        };
        launch.answer(response).await;
    }

    async fn invoke<B>(
        self: Rc<Self>,
        mut request: Request<B>,
        name_len: usize,
        call_id: CallId,
        caller: Caller,
        client: Option<&Arc<Client>>,
    ) -> Response<Full<Bytes>>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let at = SystemTime::now();
        let traced = self.tracer.enter(request.headers_mut(), &call_id);
        let called = &request.uri().path()["/function/".len()..][..name_len];
        let entered = self.node.enter(called);
        let chain = if entered.is_none() { self.node.chain_named(called) } else { None };
        // A chain is as closed as the most closed of its functions.
        let closed = entered.as_ref().is_some_and(|entered| entered.stored.manifest.access.token)
            || chain.as_ref().is_some_and(|chain| chain.needs_token());
        let access = self.control.access();
        if let Err(denied) = self.let_in(closed, caller, request.headers(), called) {
            let mut response = refuse(&Refusal::Denied(denied), call_id, Timing::NONE);
            name(&mut response, call_id);
            return response;
        }
        if let Some(entered) = entered {
            access.conceal(request.headers_mut());
            let (history, counts) = (Arc::clone(&entered.history), Arc::clone(&entered.counts));
            let traced = traced.map(|traced| Named { traced, name: entered.name().into(), is_chain: false });
            let version = entered.stored.version;
            let accepted = Accepted { history, counts, version, call_id, at, traced };
            let outcome = self.run(entered, request, name_len, call_id, client).await;
            return accepted.respond(outcome, b"", &self.tracer);
        }
        if let Some(chain) = chain {
            access.conceal(request.headers_mut());
            let (history, counts) = (Arc::clone(&chain.history), Arc::clone(&chain.counts));
            let traced = traced.map(|traced| Named { traced, name: chain.name().into(), is_chain: true });
            let accepted = Accepted { history, counts, version: chain.version, call_id, at, traced };
            let (outcome, steps) = self.run_chain(chain, request, name_len, call_id, client).await;
            return accepted.respond(outcome, &steps, &self.tracer);
        }
        let called = request.uri().path()["/function/".len()..][..name_len].to_owned();
        let mut response = refuse(&Refusal::NoSuchFunction(called), call_id, Timing::NONE);
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
        client: Option<&Arc<Client>>,
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
        function.served.note(now_unix_ms, answered.at.saturating_duration_since(ended.submitted_at));
        function.counts.waited_for_core(answered.used.wait_ns);
        let timing = Timing::answered(&ended, &answered, before);
        let block = ended.block.expect("a function's request comes back with its end");
        let find = answer::of_call(&answered.instance, block);
        let answer = answer::read(&answered.descriptor, limit_bytes, find);
        let answer = answer.map_err(|failed| (failed, timing))?;
        let is_reused = function.stored.manifest.isolation == Isolation::Instance;
        let shelf = is_reused.then_some(&answered.instance.unsent);
        Ok((self.sent(answer, client, shelf), timing))
    }

    /// An answer on its way to a client, if there is one.
    pub(super) fn sent(
        &self,
        answer: Answer,
        client: Option<&Arc<Client>>,
        shelf: Option<&Arc<Shelf>>,
    ) -> Answer {
        let Some(client) = client else { return answer };
        let body = self.unsent.send(client, answer.body, shelf);
        if self.unsent.wants_relief() {
            tokio::task::spawn_local(Arc::clone(&self.unsent).relieve());
        }
        Answer { body, ..answer }
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
            let block = inbox.open(scratch.len(), reserve);
            let mut block = block.ok_or(INBOX_FULL)?;
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
        let mut body = Body::new(body, self.ending.cut.subscribe());
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
        FullInbox::Inbox => INBOX_FULL,
        FullInbox::Node => MEMORY_FULL,
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
    if let Refusal::Denied(Denied::Unknown) = refusal {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"spry\""));
    }
    if let Refusal::MethodNotAllowed(allowed) = refusal {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}
