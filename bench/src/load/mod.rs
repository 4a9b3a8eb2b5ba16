//! The load generator: one thread, one epoll, plain nonblocking sockets, three system calls a request.
//!
//! **Closed loop**: every connection sends its next request when the answer to the last has come. It finds the
//! server's capacity, and its latencies are those of a server that is never asked more than it answers.
//!
//! **Open loop**: requests are due at times that don't depend on the answers, as real callers' are. A
//! request that is due while all connections are busy waits in the generator, and its latency counts
//! **from the time it was due**. So a server that stalls for a second is charged with every request
//! that came in that second, not with the one that happened to be in flight (the "coordinated omission"
//! that Gil Tene named; wrk2's constant throughput is the model).
//!
//! Every answer is checked: status, length, every byte of the body. What isn't right is counted by kind
//! and never as a request done.

mod connection;
mod engine;
mod pace;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use engine::run;
pub use pace::{Pace, Pacer, Until};

/// What is asked of whom, and what must come back.
#[derive(Debug, Clone)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// The whole request as it goes over the wire.
    pub request: Arc<[u8]>,
    /// Requests that follow on the same connection, each when the answer to the one before has come; all together are
    /// one request as far as anything is counted or timed.
    pub then: Vec<Arc<[u8]>>,
    /// The status that is right.
    pub status: u16,
    /// The body that is right.
    pub body: Arc<[u8]>,
}

impl Target {
    /// A keep-alive request whose right answer is 200 and `expect`.
    pub fn new(address: SocketAddr, method: &str, path: &str, body: &[u8], expect: Arc<[u8]>) -> Self {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n").into_bytes();
        if method != "GET" {
            let kind = "application/octet-stream";
            let head = format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
            request.extend_from_slice(head.as_bytes());
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body);
        Self { address, request: request.into(), then: Vec::new(), status: 200, body: expect }
    }

    /// One request after the other to each of the paths, all with the same body and the same right answer.
    pub fn sequence<'a>(
        address: SocketAddr,
        paths: impl IntoIterator<Item = &'a str>,
        body: &[u8],
        expect: &Arc<[u8]>,
    ) -> Option<Self> {
        let mut targets =
            paths.into_iter().map(|path| Self::new(address, "POST", path, body, expect.clone()));
        let mut first = targets.next()?;
        first.then = targets.map(|target| target.request).collect();
        Some(first)
    }

    /// The request at this place of the sequence.
    fn at(&self, place: usize) -> Option<&[u8]> {
        match place.checked_sub(1) {
            None => Some(&self.request),
            Some(after) => self.then.get(after).map(|request| &**request),
        }
    }
}

/// How much load, for how long.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Connections, all opened before the clock starts.
    pub connections: usize,
    /// When requests are sent.
    pub pace: Pace,
    /// When no more are.
    pub until: Until,
    /// A request without a whole answer after this long is an error, and its connection is closed.
    pub timeout: Duration,
}

/// A way for a request to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No connection to the server.
    Connect,
    /// The connection was reset, or sending failed.
    Reset,
    /// The server closed the connection before the answer was whole.
    Closed,
    /// No whole answer in time.
    Timeout,
    /// Another status than expected.
    Status(u16),
    /// A body of another length than expected.
    Length,
    /// A body of the right length with other bytes.
    Body,
    /// Not HTTP.
    Malformed,
    /// Bytes that no request asked for.
    Surplus,
    /// Due, but never sent: the load ended with all connections busy.
    Unsent,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            other => f.write_str(&format!("{other:?}").to_lowercase()),
        }
    }
}

/// Failed requests, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failures(BTreeMap<Failure, u64>);

impl Failures {
    /// Counts one.
    pub fn add(&mut self, kind: Failure) {
        *self.0.entry(kind).or_default() += 1;
    }
    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
    /// Those of one kind.
    pub fn of(&self, kind: Failure) -> u64 {
        self.0.get(&kind).copied().unwrap_or(0)
    }
    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            *self.0.entry(*kind).or_default() += count;
        }
    }
}

impl std::fmt::Display for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, (kind, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} x {kind}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Requests answered rightly.
    pub done: u64,
    /// Requests that failed.
    pub failures: Failures,
    /// Nanoseconds from when a request was due (closed loop: sent) to its whole, right answer.
    pub latency: Histogram<u64>,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// CPU that the generator itself used.
    pub client_cpu: Duration,
    /// Most requests that were due and not yet sent at one time.
    pub backlog_max: usize,
    /// Answers that said that they came from a warm, a forked, a cold instance.
    pub starts: Starts,
}

/// How the instances that answered had been started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in X-Spry-Start")]
pub struct Starts {
    pub warm: u64,
    pub forked: u64,
    pub cold: u64,
}

impl Outcome {
    /// Right answers per second.
    pub fn per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
    /// A quantile (0 to 1) of the latency, in microseconds.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
    /// The generator's CPU for each right answer, in microseconds.
    pub fn client_cpu_us(&self) -> f64 {
        self.client_cpu.as_secs_f64() * 1e6 / self.done.max(1) as f64
    }
}

/// Nanoseconds from 100 ns to 100 s, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 100_000_000_000, 3).expect("the bounds are valid")
}

/// Why there was no run at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A connection could not be opened before the clock started.
    #[error("connect to {address}: {source}")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// epoll failed.
    #[error("{operation}: {source}")]
    Poll {
        /// Which call.
        operation: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The user ended the run.
    #[error("interrupted")]
    Interrupted,
}
