//! `POST /system/function/NAME`: the upload goes to disk as it arrives, is staged, then handed to the engine.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use super::body::{DRAIN_MAX, next};
use super::query::Query;
use super::{Asker, Control, Refused, blocking, json};
use crate::manifest::{ManifestError, Name};
use crate::progress::Progress;
use crate::store::{StoreError, Upload};

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

async fn write(mut upload: Upload, pieces: Vec<Bytes>) -> Result<Upload, Refused> {
    let written = blocking(move || -> Result<Upload, StoreError> {
        for piece in &pieces {
            upload.write(piece)?;
        }
        Ok(upload)
    });
    Ok(written.await??)
}
