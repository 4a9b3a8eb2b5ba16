//! Spans on their way to a collector: OTLP over HTTP, as JSON, in batches, from a thread of its own.
//!
//! A worker puts a span into a bounded channel and goes on; when the channel is full, or the collector doesn't take a batch,
//! spans are dropped and counted, and no call waits. Nothing is tried again: traces are samples.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::span::{self, Span};

/// Spans that wait for the exporter.
const WAITING_MAX: usize = 8192;
/// Spans in one request.
const BATCH_MAX: usize = 512;
/// A batch that isn't full goes after this.
const BATCH_TIME: Duration = Duration::from_secs(1);
/// What a collector may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Of a collector's answer, this much is read.
const ANSWER_MAX: usize = 64 * 1024;

/// What became of spans.
#[derive(Debug, Default)]
pub struct Exported {
    /// Taken by the collector.
    pub sent: AtomicU64,
    /// Not told to anybody: the channel was full, or the collector didn't take them.
    pub dropped: AtomicU64,
}

/// Where workers put spans.
#[derive(Debug, Clone)]
pub struct Sink {
    spans: mpsc::Sender<Span>,
    counts: Arc<Exported>,
    sample: f64,
}

impl Sink {
    /// The part of the calls without a trace that get one.
    pub(super) fn sample(&self) -> f64 {
        self.sample
    }

    pub(super) fn send(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread. It ends when every [`Sink`] has been dropped, after a last batch.
#[derive(Debug)]
pub struct Exporter {
    thread: std::thread::JoinHandle<()>,
}

impl Exporter {
    /// Starts it. `endpoint` is whole: `http://HOST:PORT/v1/traces`.
    pub fn start(endpoint: Uri, sample: f64) -> std::io::Result<(Self, Sink, Arc<Exported>)> {
        let (spans, incoming) = mpsc::channel(WAITING_MAX);
        let counts = Arc::new(Exported::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let collector = Collector { endpoint, counts: Arc::clone(&counts), failing: false };
        let thread = std::thread::Builder::new().name("spry-trace".into());
        let thread = thread.spawn(move || runtime.block_on(collector.serve(incoming)))?;
        Ok((Self { thread }, Sink { spans, counts: Arc::clone(&counts), sample }, counts))
    }

    /// Waits for the last batch (a few seconds at most). Every sink must have been dropped.
    pub fn finish(self) {
        let _ = self.thread.join();
    }
}

struct Collector {
    endpoint: Uri,
    counts: Arc<Exported>,
    failing: bool,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("connect: {0}")]
    Connect(std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("it answered {0}")]
    Refused(http::StatusCode),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl Collector {
    async fn serve(mut self, mut incoming: mpsc::Receiver<Span>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while let Some(first) = incoming.recv().await {
            batch.push(first);
            let until = tokio::time::Instant::now() + BATCH_TIME;
            while batch.len() < BATCH_MAX {
                match tokio::time::timeout_at(until, incoming.recv()).await {
                    Ok(Some(span)) => batch.push(span),
                    Ok(None) | Err(_) => break,
                }
            }
            let sent = tokio::time::timeout(TIMEOUT, self.post(&batch)).await;
            self.note(batch.len() as u64, sent.unwrap_or(Err(ExportError::Timeout)));
            batch.clear();
        }
    }

    /// Says once that a collector fails, and once that it is back.
    fn note(&mut self, count: u64, sent: Result<(), ExportError>) {
        let endpoint = &self.endpoint;
        match sent {
            Ok(()) => {
                self.counts.sent.fetch_add(count, Ordering::Relaxed);
                if std::mem::replace(&mut self.failing, false) {
                    tracing::info!(%endpoint, "the trace collector takes spans again");
                }
            }
            Err(error) => {
                self.counts.dropped.fetch_add(count, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%endpoint, %error, "the trace collector takes no spans; they are dropped");
                }
            }
        }
    }

    async fn post(&self, batch: &[Span]) -> Result<(), ExportError> {
        let (host, port) = (self.endpoint.host().unwrap_or_default(), self.endpoint.port_u16().unwrap_or(80));
        let host = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, port)).await.map_err(ExportError::Connect)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.endpoint.path_and_query().map_or("/", |path| path.as_str()))
            .header("host", self.endpoint.authority().map_or("", |authority| authority.as_str()))
            .header("content-type", "application/json")
            .header("connection", "close")
            .body(Full::new(Bytes::from(span::request(batch))))?;
        // It ends with the sender, or with the connection.
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let _ = http_body_util::Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        driver.abort();
        if status.is_success() { Ok(()) } else { Err(ExportError::Refused(status)) }
    }
}
