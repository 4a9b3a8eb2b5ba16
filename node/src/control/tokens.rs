//! `/system/tokens`: made, listed and revoked. A token's text is in the answer to its making and nowhere else.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::body::{TooLong, short};
use super::{Control, Refused, answer, blocking, json};
use crate::access::{NewToken, StoredToken};
use crate::activation::unix_ms;
use crate::api::{TokenMade, TokenView, TokenWanted};
use crate::manifest::Name;
use crate::units::Period;

/// Bytes of a request at most.
const REQUEST_MAX: u64 = 64 * 1024;
/// Bytes of a note at most.
const NOTE_MAX: usize = 200;
/// Tokens at most: all are in memory.
const TOKENS_MAX: usize = 10_000;

pub(super) async fn list(control: &Control) -> Result<Response<Full<Bytes>>, Refused> {
    let store = Arc::clone(&control.store);
    let tokens = blocking(move || store.tokens()).await??;
    json(&tokens.iter().map(view).collect::<Vec<_>>())
}

pub(super) async fn create<B>(body: B, control: &Control) -> Result<Response<Full<Bytes>>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let too_long = |TooLong(_)| Refused::Token(format!("its description is over {REQUEST_MAX} bytes"));
    let text = short(body, REQUEST_MAX).await?.map_err(too_long)?;
    let wanted: TokenWanted =
        serde_json::from_slice(&text).map_err(|error| Refused::Token(error.to_string()))?;
    let (text, stored) = check(wanted)?.draw(unix_ms()).map_err(|_| Refused::Broken)?;
    let shown = view(&stored);
    change(control, move |store| {
        if store.tokens()?.len() >= TOKENS_MAX {
            return Err(Refused::Token(format!("there are {TOKENS_MAX} already: revoke some")));
        }
        Ok(store.add_token(&stored)?)
    })
    .await?;
    json(&TokenMade { token: text.reveal().to_owned(), about: shown })
}

pub(super) async fn revoke(id: &str, control: &Control) -> Result<Response<Full<Bytes>>, Refused> {
    let wanted = id.to_owned();
    if change(control, move |store| Ok(store.revoke_token(&wanted)?)).await? {
        Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
    } else {
        Err(Refused::NoSuchToken(id.into()))
    }
}

/// Changes what is stored, and then what counts. One change at a time, so that what counts is what is stored last.
async fn change<T: Send + 'static>(
    control: &Control,
    work: impl FnOnce(&crate::store::Store) -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let (store, access) = (Arc::clone(&control.store), Arc::clone(&control.access));
    let changes = Arc::clone(&control.token_changes);
    blocking(move || {
        let _one_at_a_time = changes.lock();
        let done = work(&store)?;
        access.set_tokens(&store.tokens()?);
        Ok(done)
    })
    .await?
}

fn check(wanted: TokenWanted) -> Result<NewToken, Refused> {
    let TokenWanted { scopes, functions, expires, note } = wanted;
    let bad = |what: String| Err(Refused::Token(what));
    if scopes.is_empty() {
        return bad("it must have a scope: invoke, deploy or admin".into());
    }
    if note.len() > NOTE_MAX || note.chars().any(char::is_control) {
        return bad(format!("its note must be one line of at most {NOTE_MAX} bytes"));
    }
    let functions = match functions {
        None => None,
        Some(names) => {
            let checked: Result<BTreeSet<Name>, _> = names.into_iter().map(Name::try_from).collect();
            match checked {
                Ok(names) if names.is_empty() => return bad("its list of functions is empty".into()),
                Ok(names) => Some(names.into_iter().map(String::from).collect()),
                Err(error) => return bad(error.to_string()),
            }
        }
    };
    let expires_unix_ms = match expires.map(|text| text.parse::<Period>()) {
        None => None,
        Some(Err(error)) => return bad(format!("expires: {error}")),
        Some(Ok(period)) if period.as_millis() == 0 => {
            return bad("expires: a token that lives for no time opens nothing".into());
        }
        Some(Ok(period)) => Some(unix_ms().saturating_add(period.as_millis()).min(i64::MAX as u64)),
    };
    Ok(NewToken { scopes: scopes.into_iter().collect(), functions, note, expires_unix_ms })
}

fn view(token: &StoredToken) -> TokenView {
    TokenView {
        id: token.id.clone(),
        scopes: token.scopes.list(),
        functions: token.functions.clone(),
        note: token.note.clone(),
        created_unix_ms: token.created_unix_ms,
        expires_unix_ms: token.expires_unix_ms,
        expired: token.expires_unix_ms.is_some_and(|end| end <= unix_ms()),
    }
}
