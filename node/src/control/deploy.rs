//! `POST /system/function/NAME`: the upload goes to disk as it arrives, is staged, then handed to the engine.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Full};

use super::query::Query;
use super::{Control, Refused, blocking, json};
use crate::manifest::{ManifestError, Name};
use crate::store::{StoreError, Upload};

/// An upload of which nothing arrives for so long is given up.
const STALL: Duration = Duration::from_secs(60);
/// Bytes that are gathered before the disk is bothered.
const BATCH: usize = 256 * 1024;

pub(super) async fn deploy<B>(
    body: B,
    control: &Control,
    name: Option<&str>,
    query: &Query,
) -> Result<Response<Full<Bytes>>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let name = name.or_else(|| query.text("name")).map(str::to_owned);
    if let Some(name) = &name {
        name.parse::<Name>().map_err(|error| StoreError::Manifest(ManifestError::Name(error)))?;
    }
    let overrides = query.overrides()?;
    let upload = receive(body, control).await?;

    let store = Arc::clone(&control.store);
    let defaults = control.defaults;
    let staged = blocking(move || store.stage(upload, name.as_deref(), &overrides, &defaults)).await??;

    let engine = Arc::clone(&control.engine);
    // In a task of its own: a client that leaves must not leave the deploy half done.
    let deployed = tokio::spawn(async move { engine.deploy(staged).await }).await;
    json(&deployed.map_err(|_| Refused::Broken)?.map_err(Refused::Deploy)?)
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
    loop {
        let frame = tokio::time::timeout(STALL, body.frame()).await;
        let piece = match frame.map_err(|_| Refused::Stalled(STALL.as_secs()))? {
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(Refused::Body(error.to_string())),
            None => return write(upload, pieces).await,
        };
        gathered += piece.len();
        pieces.push(piece);
        if gathered >= BATCH {
            upload = write(upload, std::mem::take(&mut pieces)).await?;
            gathered = 0;
        }
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
