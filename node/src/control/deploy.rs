//! `POST /system/function/NAME`: the upload goes to disk as it arrives, is staged, then handed to the engine.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};

use super::query::Query;
use super::{Asker, Control, Refused, blocking, json};
use crate::manifest::{ManifestError, Name};
use crate::progress::Progress;
use crate::store::{StoreError, Upload};

/// An upload of which nothing arrives for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// What is still read of an upload that is too long, so that its sender hears why before it meets a closed door.
pub(super) const DRAIN_MAX: usize = 64 << 20;
/// Bytes that are gathered before the disk is bothered.
const BATCH: usize = 256 * 1024;

pub(super) async fn deploy<B>(
    body: B,
    control: &Control,
    asker: &Asker<'_>,
    name: Option<&str>,
    query: &Query,
) -> Result<Response<Full<Bytes>>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let progress = match query.text("progress") {
        Some(name) => super::progress(control, name)?,
        None => Progress::silent(),
    };
    let _ends = Ends(progress.clone());
    let name = name.or_else(|| query.text("name")).map(str::to_owned);
    if let Some(name) = &name {
        name.parse::<Name>().map_err(|error| StoreError::Manifest(ManifestError::Name(error)))?;
    }
    let overrides = query.overrides()?;
    let upload = receive(body, control).await?;

    let store = Arc::clone(&control.store);
    let defaults = **control.defaults.load();
    let staged = blocking(move || store.stage(upload, name.as_deref(), &overrides, &defaults)).await??;
    asker.may_give(control, staged.manifest()).await?;

    let engine = Arc::clone(&control.engine);
    // In a task of its own: a client that leaves must not leave the deploy half done.
    let deployed = tokio::spawn(async move { engine.deploy(staged, progress).await }).await;
    json(&deployed.map_err(|_| Refused::Broken)?.map_err(Refused::Deploy)?)
}

/// However a deploy ends, whoever reads its progress is told.
pub(super) struct Ends(pub(super) Progress);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}

async fn receive<B>(body: B, control: &Control) -> Result<Upload, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let store = Arc::clone(&control.store);
    let mut upload = blocking(move || store.upload()).await??;
    let mut body = pin!(body);
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut gathered = 0;
    while let Some(piece) = next(&mut body).await? {
        gathered += piece.len();
        pieces.push(piece);
        if gathered < BATCH {
            continue;
        }
        gathered = 0;
        match write(upload, std::mem::take(&mut pieces)).await {
            Ok(same) => upload = same,
            Err(refused) => {
                let mut drained = 0;
                while drained < DRAIN_MAX
                    && let Ok(Some(piece)) = next(&mut body).await
                {
                    drained += piece.len();
                }
                return Err(refused);
            }
        }
    }
    write(upload, pieces).await
}

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

async fn write(mut upload: Upload, pieces: Vec<Bytes>) -> Result<Upload, Refused> {
    let written = blocking(move || -> Result<Upload, StoreError> {
        for piece in &pieces {
            upload.write(piece)?;
        }
        Ok(upload)
    });
    Ok(written.await??)
}
