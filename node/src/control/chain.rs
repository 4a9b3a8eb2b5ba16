//! `PUT` and `DELETE /system/chain/NAME`.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::body::{TooLong, short};
use super::{Asker, Control, Refused, answer, blocking, json};
use crate::chain::spec::{ChainError, FILE_MAX};
use crate::manifest::Name;
use crate::store::StoreError;

pub(super) async fn apply<B>(
    body: B,
    control: &Control,
    asker: &Asker<'_>,
    name: &str,
) -> Result<Response<Full<Bytes>>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let source = receive(body).await?;
    let store = Arc::clone(&control.store);
    let planned = blocking(move || store.plan_chain(&source)).await??;
    if planned.plan.name.as_str() != name {
        return Err(Refused::OtherChain { path: name.into(), text: planned.plan.name.to_string() });
    }
    // Who may call a chain may call all that it leads to, so a token for it alone must not lead it elsewhere.
    for reached in planned.plan.functions.iter().chain(&planned.uses) {
        asker.may_deploy(control, reached.as_str()).map_err(|_| Refused::Beyond(reached.to_string()))?;
    }
    let engine = Arc::clone(&control.engine);
    // In a task of its own: a client that leaves must not leave the chain half applied.
    let applied = tokio::spawn(async move { engine.apply_chain(planned).await }).await;
    json(&applied.map_err(|_| Refused::Broken)?.map_err(Refused::Apply)?)
}

pub(super) async fn remove(name: &str, control: &Control) -> Result<Response<Full<Bytes>>, Refused> {
    let name: Name = name.parse().map_err(|_| Refused::NoSuchChain(name.into()))?;
    let engine = Arc::clone(&control.engine);
    // As above.
    let removed = tokio::spawn(async move { engine.remove_chain(&name).await }).await;
    removed.map_err(|_| Refused::Broken)?.map_err(Refused::Remove)?;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}

async fn receive<B>(body: B) -> Result<String, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let bad = |error| Refused::Store(StoreError::Chain(error));
    let text = short(body, FILE_MAX).await?.map_err(|TooLong(bytes)| bad(ChainError::TooLong { bytes }))?;
    String::from_utf8(text).map_err(|_| bad(ChainError::Toml("the text is not UTF-8".into())))
}
