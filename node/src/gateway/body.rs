//! A request's body while it comes in, piece by piece.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::watch;
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
pub(super) struct Body<B> {
    incoming: B,
    /// When it must be whole.
    last: Instant,
    /// No piece so far was looked for in vain. The first that is ends the looking: a slow client costs one [`LOOK`].
    brisk: bool,
    /// Becomes true when nothing is waited for any more: spryd is about to end.
    cut: watch::Receiver<bool>,
}

type Piece<E> = Option<Result<Frame<Bytes>, E>>;

impl<B> Body<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    pub(super) fn new(incoming: B, cut: watch::Receiver<bool>) -> Self {
        Self { incoming, last: Instant::now() + TOTAL, brisk: true, cut }
    }

    /// Whether it is known that nothing follows.
    pub(super) fn is_end(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// The next piece, or trailers; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Frame<Bytes>>, Refusal> {
        let piece = match self.look().await {
            Some(piece) => piece,
            None => {
                let patience = self.last.min(Instant::now() + IDLE);
                let piece = poll_fn(|context| Pin::new(&mut self.incoming).poll_frame(context));
                tokio::select! {
                    piece = tokio::time::timeout_at(patience, piece) => {
                        piece.map_err(|_| Refusal::BodyTimeout(IDLE))?
                    }
                    _ = self.cut.wait_for(|cut| *cut) => return Err(Refusal::ShuttingDown),
                }
            }
        };
        piece.transpose().map_err(|error| Refusal::BodyBroken(error.to_string()))
    }

    /// The next piece, if it is there or comes while it is looked for. Others are served meanwhile.
    async fn look(&mut self) -> Option<Piece<B::Error>> {
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
