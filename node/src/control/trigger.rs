//! Triggers over the control API.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::body::{TooLong, short};
use super::{Control, Refused, answer, json};
use crate::triggers::spec::{FILE_MAX, SpecError};
use crate::triggers::{TriggerError, Triggers};

type Answer = Result<Response<Full<Bytes>>, Refused>;

fn triggers(control: &Control) -> Result<Arc<Triggers>, Refused> {
    control.triggers.get().cloned().ok_or(Refused::NoSuchPath)
}

pub(super) fn list(control: &Control) -> Answer {
    json(&triggers(control)?.list())
}

pub(super) fn get(name: &str, control: &Control) -> Answer {
    let found = triggers(control)?.get(name);
    json(&found.ok_or_else(|| TriggerError::NoSuchTrigger(name.into()))?)
}

pub(super) async fn apply<B>(body: B, control: &Control, name: &str) -> Answer
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let triggers = triggers(control)?;
    let bad = |error| Refused::Trigger(TriggerError::Spec(error));
    let text =
        short(body, FILE_MAX as u64).await?.map_err(|TooLong(bytes)| bad(SpecError::TooLong { bytes }))?;
    let text = String::from_utf8(text).map_err(|_| bad(SpecError::Toml("the text is not UTF-8".into())))?;
    let (changed, named) = (Arc::clone(&triggers), name.to_owned());
    let replaced = whole(async move { changed.apply(&named, text).await }).await?;
    json(&serde_json::json!({ "trigger": triggers.get(name), "replaced": replaced }))
}

pub(super) async fn remove(name: &str, control: &Control) -> Answer {
    let (triggers, name) = (triggers(control)?, name.to_owned());
    whole(async move { triggers.remove(&name).await }).await?;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}

pub(super) async fn pause(name: &str, paused: bool, control: &Control) -> Answer {
    let (triggers, name) = (triggers(control)?, name.to_owned());
    whole(async move { triggers.pause(&name, paused).await }).await?;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}

/// A change, in a task of its own: a client that leaves must not leave it half done.
async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, TriggerError>> + Send + 'static,
) -> Result<T, Refused> {
    Ok(tokio::spawn(change).await.map_err(|_| Refused::Broken)??)
}
