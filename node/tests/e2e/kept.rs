//! A client's connection, kept from call to call while spryd is stopped and started.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::client::{Connection, Response};

/// A connection between two calls.
#[derive(Default)]
pub(crate) struct Kept(Option<(Connection, Instant)>);

impl Kept {
    /// It, or a new one: after a pause longer than this, which a busy machine can make, a spryd that stops may have closed it.
    const PAUSE_MAX: Duration = Duration::from_millis(100);

    pub(crate) fn take(&mut self, address: SocketAddr) -> Connection {
        let kept = self.0.take().filter(|(_, since)| since.elapsed() < Self::PAUSE_MAX);
        kept.map_or_else(|| Connection::open(address), |(connection, _)| connection)
    }

    /// Keeps it, unless the response says that it is to be closed.
    pub(crate) fn keep(&mut self, connection: Connection, response: &Response) {
        let goes_on = response.header("connection") != Some("close");
        self.0 = goes_on.then(|| (connection, Instant::now()));
    }
}
