//! What is sent to the control API: read piece by piece, with a bound on how long nothing may come.

use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;

use super::Refused;

/// A body of which nothing arrives for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// What is still read of one that is too long, so that its sender hears why before it meets a closed door.
pub(super) const DRAIN_MAX: usize = 64 << 20;

/// Of a text that is over its limit: its bytes, as far as they were counted.
pub(super) struct TooLong(pub(super) u64);

/// A short text, of at most `most` bytes. Of a longer one, the rest is read as well, so that its sender hears why before it
/// meets a closed door.
pub(super) async fn short<B>(body: B, most: u64) -> Result<Result<Vec<u8>, TooLong>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    let mut text = Vec::new();
    let mut bytes: u64 = 0;
    while let Some(piece) = next(&mut body).await? {
        bytes += piece.len() as u64;
        if bytes <= most {
            text.extend_from_slice(&piece);
        } else if bytes > DRAIN_MAX as u64 {
            break;
        }
    }
    Ok(if bytes > most { Err(TooLong(bytes)) } else { Ok(text) })
}

/// The next piece; `None` after the last.
pub(super) async fn next<B>(body: &mut Pin<&mut B>) -> Result<Option<Bytes>, Refused>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    match tokio::time::timeout(STALL, body.frame()).await {
        Err(_) => Err(Refused::Stalled(STALL.as_secs())),
        Ok(None) => Ok(None),
        Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
        Ok(Some(Err(error))) => Err(Refused::Body(error.to_string())),
    }
}
