//! `GET /system/secrets`, `PUT` and `DELETE /system/secret/NAME`. Values come in and never go out.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::body::{DRAIN_MAX, next};
use super::{Control, Refused, answer, blocking, json};
use crate::secrets::{SecretError, SecretName, VALUE_MAX, Value};

pub(super) async fn list(control: &Control) -> Result<Response<Full<Bytes>>, Refused> {
    let secrets = Arc::clone(&control.secrets);
    json(&blocking(move || secrets.list()).await??)
}

pub(super) async fn set<B>(body: B, control: &Control, name: &str) -> Result<Response<Full<Bytes>>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let name: SecretName = name.parse()?;
    let value = receive(body).await?;
    let secrets = Arc::clone(&control.secrets);
    blocking(move || secrets.set(&name, &value)).await??;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}

pub(super) async fn remove(name: &str, control: &Control) -> Result<Response<Full<Bytes>>, Refused> {
    let name: SecretName = name.parse()?;
    let secrets = Arc::clone(&control.secrets);
    blocking(move || secrets.remove(&name)).await??;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}

/// The value. Of one that is too long, the rest is read as well, so that its sender hears why before it meets a
/// closed door.
async fn receive<B>(body: B) -> Result<Value, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let mut body = pin!(body);
    // At its final size at once: growing would leave copies behind.
    let mut value = zeroize::Zeroizing::new(Vec::with_capacity(VALUE_MAX));
    let mut length = 0;
    while let Some(piece) = next(&mut body).await? {
        length += piece.len();
        if length <= VALUE_MAX {
            value.extend_from_slice(&piece);
        } else if length > DRAIN_MAX {
            break;
        }
    }
    if length > VALUE_MAX {
        return Err(SecretError::Length(length).into());
    }
    Ok(Value::new(std::mem::take(&mut *value)))
}
