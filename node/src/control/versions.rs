//! A function with its versions, and going back to one of them.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use super::deploy::Ends;
use super::query::Query;
use super::{Asker, Control, Refused, blocking, json};
use crate::api::VersionView;
use crate::manifest::{ManifestError, Name};
use crate::progress::Progress;
use crate::store::StoreError;
use crate::units::Size;

pub(super) async fn describe(name: &str, control: &Control) -> Result<Response<Full<Bytes>>, Refused> {
    let view = control.engine.function(name).await;
    let mut view = view.ok_or_else(|| Refused::NoSuchFunction(name.into()))?;
    let (store, of) = (Arc::clone(&control.store), name.to_owned());
    let kept = blocking(move || store.versions(&of)).await??;
    let shown = kept.into_iter().map(|stored| VersionView {
        version: stored.version,
        sha256: stored.sha256,
        size: Size::bytes(stored.bytes),
        deployed_unix_ms: stored.deployed_unix_ms,
        current: stored.version == view.version,
    });
    view.versions = shown.collect();
    json(&view)
}

/// `POST /system/function/NAME/rollback?to=VERSION`
pub(super) async fn roll_back(
    name: &str,
    query: &Query,
    control: &Control,
    asker: &Asker<'_>,
) -> Result<Response<Full<Bytes>>, Refused> {
    let progress = match query.text("progress") {
        Some(name) => super::progress(control, name)?,
        None => Progress::silent(),
    };
    let _ends = Ends(progress.clone());
    let name: Name = name.parse().map_err(|error| StoreError::Manifest(ManifestError::Name(error)))?;
    let (store, to) = (Arc::clone(&control.store), query.number("to")?);
    let recalled = blocking(move || store.recall(&name, to)).await??;
    asker.may_give(control, &recalled.function().manifest).await?;
    let engine = Arc::clone(&control.engine);
    // In a task of its own: a client that leaves must not leave it half done.
    let done = tokio::spawn(async move { engine.roll_back(recalled, progress).await });
    json(&done.await.map_err(|_| Refused::Broken)?.map_err(Refused::Deploy)?)
}
