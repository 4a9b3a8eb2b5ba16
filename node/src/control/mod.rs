//! The control API: what lies below `/system/`, on the control socket and on the HTTP listener alike.
//!
//! [`handle`] authenticates, routes, reads parameters and shapes answers; what is done is the [`Engine`]'s and the
//! [`Store`]'s; who may is [`crate::access`]'s. `docs/control-api.md` has the routes; a test holds it to [`ROUTES`].

mod asker;
mod body;
mod chain;
mod deploy;
pub(crate) mod later;
mod query;
mod refusal;
mod secret;
pub mod token;
mod tokens;
mod trigger;
mod versions;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use crate::access::{Access, Caller, Denied, Need, Scope};
use crate::api::Engine;
use crate::calls::Calls;
use crate::doctor;
use crate::manifest::{Defaults, Name};
use crate::progress::{self, Board, Progress};
use crate::secrets::Secrets;
use crate::store::Store;
use crate::triggers::Triggers;
use asker::Asker;
use query::Query;
pub use refusal::Refused;

/// Every route, as documented.
pub const ROUTES: [(&str, &str); 35] = [
    ("GET", "/system/status"),
    ("GET", "/system/doctor"),
    ("GET", "/system/usage"),
    ("GET", "/system/functions"),
    ("POST", "/system/functions"),
    ("GET", "/system/function/NAME"),
    ("POST", "/system/function/NAME"),
    ("DELETE", "/system/function/NAME"),
    ("GET", "/system/function/NAME/logs"),
    ("POST", "/system/function/NAME/rollback"),
    ("GET", "/system/chains"),
    ("GET", "/system/chain/NAME"),
    ("PUT", "/system/chain/NAME"),
    ("DELETE", "/system/chain/NAME"),
    ("GET", "/system/activations"),
    ("GET", "/system/activation/ID"),
    ("GET", "/system/activation/ID/logs"),
    ("GET", "/system/activation/ID/result"),
    ("GET", "/system/dead"),
    ("POST", "/system/dead/ID"),
    ("DELETE", "/system/dead/ID"),
    ("GET", "/system/triggers"),
    ("GET", "/system/trigger/NAME"),
    ("PUT", "/system/trigger/NAME"),
    ("DELETE", "/system/trigger/NAME"),
    ("POST", "/system/trigger/NAME/pause"),
    ("POST", "/system/trigger/NAME/resume"),
    ("GET", "/system/version"),
    ("GET", "/system/progress/NAME"),
    ("GET", "/system/secrets"),
    ("PUT", "/system/secret/NAME"),
    ("DELETE", "/system/secret/NAME"),
    ("GET", "/system/tokens"),
    ("POST", "/system/tokens"),
    ("DELETE", "/system/token/ID"),
];

/// Lines or activations that one answer has when the caller doesn't say.
const LIMIT_DEFAULT: usize = 100;
/// Lines or activations that one answer has at most.
const LIMIT_MAX: usize = 10_000;
/// How long a caller may wait for log lines.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What the control API works on. Shared by all threads.
#[derive(Clone)]
pub struct Control {
    engine: Arc<dyn Engine>,
    store: Arc<Store>,
    secrets: Arc<Secrets>,
    access: Arc<Access>,
    /// Held while tokens change.
    token_changes: Arc<parking_lot::Mutex<()>>,
    defaults: Arc<ArcSwap<Defaults>>,
    progress: Arc<Board>,
    doctor: doctor::Options,
    calls: Option<Arc<Calls>>,
    triggers: Arc<OnceLock<Arc<Triggers>>>,
}

impl Control {
    /// Puts the parts together. `defaults`: what manifests get that don't say.
    pub fn new(
        engine: Arc<dyn Engine>,
        store: Arc<Store>,
        secrets: Arc<Secrets>,
        access: Arc<Access>,
        defaults: Defaults,
        doctor: doctor::Options,
    ) -> Self {
        let defaults = Arc::new(ArcSwap::from_pointee(defaults));
        Self {
            engine,
            store,
            secrets,
            access,
            token_changes: Arc::default(),
            defaults,
            progress: Arc::default(),
            doctor,
            calls: None,
            triggers: Arc::default(),
        }
    }

    /// The same with asynchronous calls; without, their routes are not there.
    pub fn with_calls(self, calls: Arc<Calls>) -> Self {
        Self { calls: Some(calls), ..self }
    }

    /// The same with triggers, as soon as there are any.
    pub fn with_triggers(self, triggers: Arc<OnceLock<Arc<Triggers>>>) -> Self {
        Self { triggers, ..self }
    }

    /// Who may do what.
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// What manifests get that don't say, from now on.
    pub fn set_defaults(&self, defaults: Defaults) {
        self.defaults.store(Arc::new(defaults));
    }
}

/// True for paths that [`handle`] answers.
pub fn is_control_path(path: &str) -> bool {
    path == "/system" || path.starts_with("/system/")
}

/// Answers one request below `/system/`. Never fails: what goes wrong becomes the contract's JSON.
pub async fn handle<B>(request: Request<B>, control: &Control, caller: Caller) -> Response<Full<Bytes>>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let answer = match control.access.check(caller, request.headers(), need(request.uri().path())) {
        Ok(()) => route(request, control, caller).await,
        Err(denied) => Err(Refused::Denied(denied)),
    };
    answer.unwrap_or_else(|refused| refusal_of(&refused))
}

/// What a caller must be allowed to do for a path. What isn't named here is the node's, and so is what comes to be
/// added.
fn need(path: &str) -> Need<'_> {
    let mut parts = path.split('/').skip(2);
    match (parts.next(), parts.next()) {
        (Some("tokens" | "token"), _) => Need { scope: Scope::Admin, name: None },
        (Some("function" | "chain" | "progress"), name) => Need { scope: Scope::Deploy, name },
        _ => Need { scope: Scope::Deploy, name: None },
    }
}

async fn route<B>(
    request: Request<B>,
    control: &Control,
    caller: Caller,
) -> Result<Response<Full<Bytes>>, Refused>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let path: Vec<&str> = parts.uri.path().split('/').skip(2).collect();
    let reads = parts.method == Method::GET || parts.method == Method::HEAD;
    let writes = parts.method == Method::POST || parts.method == Method::PUT;
    let engine = &control.engine;
    let asker = Asker { caller, headers: &parts.headers };
    match path.as_slice() {
        ["version"] if reads => json(&serde_json::json!({ "version": env!("CARGO_PKG_VERSION") })),
        ["status"] if reads => {
            let mut view = engine.status().await;
            view.later = control.calls.as_ref().map(|calls| calls.counts()).unwrap_or_default();
            json(&view)
        }
        ["usage"] if reads => json(&engine.usage().await.map_err(|_| Refused::Broken)?),
        ["doctor"] if reads => {
            let options = control.doctor.clone();
            json(&blocking(move || doctor::examine(&options)).await?)
        }
        ["functions"] if reads => json(&engine.functions().await),
        ["functions"] if writes => deploy::deploy(body, control, &asker, None, &query).await,
        ["function", name] if reads => versions::describe(name, control).await,
        ["function", name] if writes => deploy::deploy(body, control, &asker, Some(name), &query).await,
        ["function", name] if parts.method == Method::DELETE => remove(name, control).await,
        ["function", name, "rollback"] if writes => versions::roll_back(name, &query, control, &asker).await,
        ["function", name, "logs"] if reads => {
            let wait = query.period("wait")?.unwrap_or_default().min(WAIT_MAX);
            let limit = limit(&query)?;
            let page = engine.logs(name, query.number("since")?, limit, wait).await;
            json(&page.ok_or_else(|| Refused::NoSuchFunction((*name).into()))?)
        }
        ["chains"] if reads => json(&engine.chains().await),
        ["chain", name] if reads => match engine.chain(name).await {
            Some(view) => json(&view),
            None => Err(Refused::NoSuchChain((*name).into())),
        },
        ["chain", name] if writes => chain::apply(body, control, &asker, name).await,
        ["chain", name] if parts.method == Method::DELETE => chain::remove(name, control).await,
        ["tokens"] if reads => tokens::list(control).await,
        ["tokens"] if writes => tokens::create(body, control).await,
        ["token", id] if parts.method == Method::DELETE => tokens::revoke(id, control).await,
        ["activations"] if reads => json(&engine.activations(later::filter(&query)?, limit(&query)?).await),
        ["activation", id] if reads => later::activation(id, &query, control).await,
        ["activation", id, "result"] if reads => later::result(id, &query, control).await,
        ["triggers"] if reads => trigger::list(control),
        ["trigger", name] if reads => trigger::get(name, control),
        ["trigger", name] if writes => trigger::apply(body, control, name).await,
        ["trigger", name] if parts.method == Method::DELETE => trigger::remove(name, control).await,
        ["trigger", name, "pause"] if writes => trigger::pause(name, true, control).await,
        ["trigger", name, "resume"] if writes => trigger::pause(name, false, control).await,
        ["dead"] if reads => later::dead(&query, control).await,
        ["dead", id] if writes => later::revive(id, control).await,
        ["dead", id] if parts.method == Method::DELETE => later::drop_dead(id, control).await,
        ["activation", id, "logs"] if reads => json(&activation(id, control).await?.logs),
        ["secrets"] if reads => secret::list(control).await,
        ["secret", name] if writes => secret::set(body, control, name).await,
        ["secret", name] if parts.method == Method::DELETE => secret::remove(name, control).await,
        ["progress", name] if reads => {
            let wait = query.period("wait")?.unwrap_or_default().min(WAIT_MAX);
            let progress = progress(control, name)?;
            json(&progress.read(query.number("since")?.unwrap_or(0), wait).await)
        }
        [
            "version" | "status" | "doctor" | "usage" | "activations" | "chains" | "dead" | "triggers"
            | "secrets",
        ]
        | ["function", _, "logs"]
        | ["progress", _]
        | ["activation", _]
        | ["activation", _, "logs" | "result"] => Err(Refused::Method("GET")),
        ["trigger", _, "pause" | "resume"] => Err(Refused::Method("POST, PUT")),
        ["function", _, "rollback"] => Err(Refused::Method("POST, PUT")),
        ["dead", _] => Err(Refused::Method("POST, PUT, DELETE")),
        ["functions" | "tokens"] => Err(Refused::Method("GET, POST, PUT")),
        ["token", _] => Err(Refused::Method("DELETE")),
        ["secret", _] => Err(Refused::Method("POST, PUT, DELETE")),
        ["function" | "chain" | "trigger", _] => Err(Refused::Method("GET, POST, PUT, DELETE")),
        _ => Err(Refused::NoSuchPath),
    }
}

fn progress(control: &Control, name: &str) -> Result<Progress, Refused> {
    match progress::is_name(name) {
        true => Ok(control.progress.named(name)),
        false => Err(Refused::Parameter {
            name: "progress",
            problem: "its name has 8 to 64 letters, digits and hyphens".into(),
        }),
    }
}

async fn remove(name: &str, control: &Control) -> Result<Response<Full<Bytes>>, Refused> {
    let name: Name = name.parse().map_err(|_| Refused::NoSuchFunction(name.into()))?;
    let engine = Arc::clone(&control.engine);
    // In a task of its own: a client that leaves must not leave the removal half done.
    let removed = tokio::spawn(async move { engine.remove(&name).await }).await;
    removed.map_err(|_| Refused::Broken)?.map_err(Refused::Remove)?;
    Ok(answer(StatusCode::NO_CONTENT, Bytes::new()))
}

async fn activation(id: &str, control: &Control) -> Result<crate::api::ActivationView, Refused> {
    control.engine.activation(id).await.ok_or_else(|| Refused::NoSuchActivation(id.into()))
}

fn limit(query: &Query) -> Result<usize, Refused> {
    let limit = query.number("limit")?;
    Ok(limit.map_or(LIMIT_DEFAULT, |limit| usize::try_from(limit).unwrap_or(LIMIT_MAX).min(LIMIT_MAX)))
}

/// Runs what blocks (on the disk, on probes) beside the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refused::Broken)
}

fn json<T: Serialize>(value: &T) -> Result<Response<Full<Bytes>>, Refused> {
    let body = serde_json::to_vec(value).map_err(|_| Refused::Broken)?;
    Ok(answer(StatusCode::OK, body.into()))
}

fn answer(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

fn refusal_of(refused: &Refused) -> Response<Full<Bytes>> {
    let mut response = answer(refused.status(), refused.body().into());
    let headers = response.headers_mut();
    match refused {
        Refused::Denied(Denied::Unknown) => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"spry\""));
        }
        Refused::Method(allowed) => {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        _ => {}
    }
    if refused.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
