//! A request's body while it comes in, piece by piece.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use hyper::body::{Frame, Incoming};
use tokio::time::Instant;

use super::Refusal;

/// Between two pieces.
const IDLE: Duration = Duration::from_secs(30);
/// For all of them.
const TOTAL: Duration = Duration::from_secs(300);
/// How long the next piece is looked for before the thread sleeps until it comes. A client that sends at full
/// speed has it here by then; waking the thread takes about as long, and some of that is the sender's time.
const LOOK: Duration = Duration::from_micros(50);

/// A body that may not be whole yet.
pub(super) struct Body {
    incoming: Incoming,
    /// When it must be whole.
    last: Instant,
    /// No piece so far was looked for in vain. The first that is ends the looking: a slow client costs one [`LOOK`].
    brisk: bool,
}

type Piece = Option<Result<Frame<Bytes>, hyper::Error>>;

impl Body {
    pub(super) fn new(incoming: Incoming) -> Self {
        Self { incoming, last: Instant::now() + TOTAL, brisk: true }
    }

    /// The next piece, or trailers; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Frame<Bytes>>, Refusal> {
        let piece = match self.look().await {
            Some(piece) => piece,
            None => {
                let patience = self.last.min(Instant::now() + IDLE);
                let piece = poll_fn(|context| Pin::new(&mut self.incoming).poll_frame(context));
                tokio::time::timeout_at(patience, piece).await.map_err(|_| Refusal::BodyTimeout(IDLE))?
            }
        };
        piece.transpose().map_err(|error| Refusal::BodyBroken(error.to_string()))
    }

    /// The next piece, if it is there or comes while it is looked for. Others are served meanwhile.
    async fn look(&mut self) -> Option<Piece> {
        let mut until = None;
        loop {
            let piece =
                poll_fn(|context| Poll::Ready(Pin::new(&mut self.incoming).poll_frame(context))).await;
            if let Poll::Ready(piece) = piece {
                return Some(piece);
            }
            self.brisk = self.brisk && Instant::now() < *until.get_or_insert_with(|| Instant::now() + LOOK);
            if !self.brisk {
                return None;
            }
            tokio::task::yield_now().await;
        }
    }
}
