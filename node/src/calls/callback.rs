//! Telling somebody that a call has ended: `X-Callback-Url`.
//!
//! The answer is POSTed with the headers that OpenFaaS' queue worker sends, so that receivers written for it work. Where
//! to is the caller's word and as hostile as any other: see [`super::target`]. Nothing of the receiver's answer is read
//! beyond its head, no redirect is followed, everything has one time limit.
//!
//! Answers wait on disk and are read when they are sent: what waits in memory is whom to tell, and when.
//!
//! A receiver that is slow or gone holds up its own callbacks only: of one host, a few are under way at a time.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio_rustls::rustls::pki_types::ServerName;

use super::database::Reader;
use super::policy::{Policy, Verdict};
use super::rows::{Callback, Ended};
use super::runner::ToRunner;
use super::settings::CallbackSettings;
use super::target::{Rules, Target, TargetError};
use super::trust::{Trust, TrustError};

/// Callbacks under way.
const AT_ONCE: usize = 64;
/// Of these, to one host.
const AT_ONCE_HOST: usize = 8;
/// The longest head of a receiver's answer.
const HEAD_MAX: usize = 16 * 1024;

/// What was tried, and how it went.
#[derive(Debug)]
pub struct Post {
    callback: Callback,
    host: Arc<str>,
    result: Result<(), PostError>,
}

/// Why a callback was not taken.
#[derive(Debug, thiserror::Error)]
enum PostError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("connect: {0}")]
    Connect(std::io::Error),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("TLS: {0}")]
    Tls(std::io::Error),
    #[error("send: {0}")]
    Http(#[from] hyper::Error),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("read what it is to be told: {0}")]
    Unread(#[from] rusqlite::Error),
    #[error("what it was to be told is gone from the database")]
    Gone,
}

impl PostError {
    /// Whether the same would happen again.
    fn is_final(&self) -> bool {
        match self {
            Self::Target(error) => error.is_final(),
            Self::Status(status) => status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429),
            Self::Gone => true,
            _ => false,
        }
    }
}

/// What is to be done after a try.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is over.
    Over {
        /// Its place on disk.
        seq: u64,
        /// What it held of the room.
        bytes: u64,
        /// It was taken.
        made: bool,
    },
    /// It is tried again.
    Later {
        /// Its place on disk.
        seq: u64,
        /// How often it was tried.
        tries: u32,
        /// After so long.
        delay: Duration,
    },
}

/// Callbacks that are to be made.
pub(super) struct Posts {
    rules: Arc<Rules>,
    trust: Arc<Trust>,
    policy: Policy,
    timeout: Duration,
    due: BTreeMap<(Instant, u64), Callback>,
    hosts: HashMap<Arc<str>, Host>,
    at_once: usize,
}

#[derive(Default)]
struct Host {
    at_once: usize,
    parked: VecDeque<Callback>,
}

impl Posts {
    pub(super) fn new(settings: &CallbackSettings) -> Self {
        Self {
            rules: Arc::new(settings.rules.clone()),
            trust: Trust::new(&settings.roots),
            policy: settings.policy,
            timeout: settings.timeout,
            due: BTreeMap::new(),
            hosts: HashMap::new(),
            at_once: 0,
        }
    }

    pub(super) fn insert(&mut self, callback: Callback) {
        self.due.insert((callback.due, callback.seq), callback);
    }

    /// When the next one is due; `None` also while no more may be under way.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let first = self.due.first_key_value().map(|((due, _), _)| *due);
        first.filter(|_| self.at_once < AT_ONCE)
    }

    /// Begins what is due.
    pub(super) fn pump(
        this: &Rc<RefCell<Self>>,
        now: Instant,
        reader: &Reader,
        runner: &UnboundedSender<ToRunner>,
    ) {
        loop {
            let mut posts = this.borrow_mut();
            if posts.at_once >= AT_ONCE || posts.next_due().is_none_or(|due| due > now) {
                return;
            }
            let Some((_, callback)) = posts.due.pop_first() else { return };
            let host: Arc<str> = Target::host_of(&callback.url).into();
            let at = posts.hosts.entry(Arc::clone(&host)).or_default();
            if at.at_once >= AT_ONCE_HOST {
                at.parked.push_back(callback);
                continue;
            }
            at.at_once += 1;
            posts.at_once += 1;
            let (rules, trust) = (Arc::clone(&posts.rules), Arc::clone(&posts.trust));
            let (timeout, runner) = (posts.timeout, runner.clone());
            let told = reader.told(callback.seq).map_err(PostError::from);
            let told = told.and_then(|told| told.ok_or(PostError::Gone));
            tokio::task::spawn_local(async move {
                let posting = async { post(&callback.url, &told?, &rules, trust).await };
                let posted = tokio::time::timeout(timeout, posting).await;
                let result = posted.unwrap_or(Err(PostError::Timeout(timeout)));
                let _ = runner.send(ToRunner::Posted(Post { callback, host, result }));
            });
        }
    }

    /// A try is over.
    pub(super) fn posted(&mut self, post: Post) -> Next {
        let Post { mut callback, host, result } = post;
        self.at_once -= 1;
        if let Some(at) = self.hosts.get_mut(&host) {
            at.at_once -= 1;
            let next = at.parked.pop_front();
            if at.at_once == 0 && next.is_none() {
                self.hosts.remove(&host);
            }
            if let Some(next) = next {
                self.due.insert((next.due, next.seq), next);
            }
        }
        let (seq, bytes) = (callback.seq, callback.bytes);
        let Err(error) = result else { return Next::Over { seq, bytes, made: true } };
        callback.attempts += 1;
        let draw = crate::sys::random_u64().map_or(0.5, |bits| (bits >> 11) as f64 / (1u64 << 53) as f64);
        let verdict = match error.is_final() {
            true => Verdict::GiveUp,
            false => self.policy.verdict(callback.attempts, Duration::ZERO, draw),
        };
        let Verdict::Again(delay) = verdict else {
            tracing::warn!(call = %callback.id, url = &*callback.url, %error, "a callback was given up");
            return Next::Over { seq, bytes, made: false };
        };
        tracing::debug!(call = %callback.id, url = &*callback.url, %error, "a callback is tried again");
        let tries = callback.attempts;
        callback.due = Instant::now() + delay;
        self.insert(callback);
        Next::Later { seq, tries, delay }
    }
}

async fn post(url: &str, told: &Ended, rules: &Rules, trust: Arc<Trust>) -> Result<(), PostError> {
    let target = Target::parse(url)?;
    let address = target.resolve(rules).await?;
    let stream = TcpStream::connect(address).await.map_err(PostError::Connect)?;
    let _ = stream.set_nodelay(true);
    let request = request(told, &target);
    if !target.tls {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(target.host.clone())
        .map_err(|_| PostError::Target(TargetError::Url(url.to_owned())))?;
    let connector = tokio::task::spawn_blocking(move || trust.connector()).await;
    let connector = connector.map_err(|error| PostError::Tls(error.into()))??;
    exchange(connector.connect(name, stream).await.map_err(PostError::Tls)?, request).await
}

/// Sends a request, and reads the status of its answer.
async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(), PostError>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(HEAD_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection is driven here and ends with this: whatever else the receiver would say is not read.
    let answer = tokio::select! {
        answer = answer.as_mut() => answer,
        _ended = connection => answer.await,
    };
    match answer?.status() {
        status if status.is_success() => Ok(()),
        status => Err(PostError::Status(status)),
    }
}

fn request(ended: &Ended, target: &Target) -> Request<Full<Bytes>> {
    let outcome = &ended.outcome;
    let mut request = Request::new(Full::new(outcome.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.path.clone();
    let headers = request.headers_mut();
    let text = |text: String| HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("-"));
    headers.insert(HOST, text(target.authority.clone()));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("spry/", env!("CARGO_PKG_VERSION"))));
    if let Some(kind) = outcome.headers.get(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, kind.clone());
    }
    if outcome.truncated {
        headers.insert(HeaderName::from_static("x-spry-truncated"), HeaderValue::from_static("true"));
    }
    let started_unix_ms = ended.ended_unix_ms.saturating_sub(outcome.took.as_millis() as u64);
    for (name, value) in [
        ("x-call-id", ended.id.to_string()),
        ("x-function-name", ended.function.to_string()),
        ("x-function-status", outcome.status.to_string()),
        ("x-duration-seconds", format!("{:.6}", outcome.took.as_secs_f64())),
        // Nanoseconds since the Unix epoch, as OpenFaaS says it.
        ("x-start-time", (u128::from(started_unix_ms) * 1_000_000).to_string()),
        ("x-spry-attempts", ended.attempts.to_string()),
    ] {
        headers.insert(HeaderName::from_static(name), text(value));
    }
    request
}
