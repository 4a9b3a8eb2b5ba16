//! `spry invoke`: one call, over the control socket.

use std::io::{self, Read, Write};

use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::client::{self, Client};
use super::{Failure, segment};
use crate::units::Period;

/// What `spry invoke` takes.
#[derive(Debug, Args)]
pub(super) struct Invoke {
    /// The function
    name: String,
    /// The request's body: the text itself, @FILE, or @- for stdin
    #[arg(short, long, value_name = "DATA", allow_hyphen_values = true)]
    data: Option<String>,
    /// A header of the request, as often as needed
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// The request's method [default: POST with data, GET without]
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<String>,
    /// What follows the function's name in the URL, with a query if need be
    #[arg(long, value_name = "/REST?QUERY", default_value = "")]
    path: String,
    /// Say the call's id and where its time went
    #[arg(short, long)]
    verbose: bool,
    /// Return as soon as the node has the call on disk, and print its id
    #[arg(long = "async")]
    later: bool,
    /// With --async: run it no sooner than this
    #[arg(long, value_name = "PERIOD", requires = "later")]
    delay: Option<Period>,
    /// With --async: POST the answer to this URL
    #[arg(long, value_name = "URL", requires = "later")]
    callback: Option<String>,
    /// With --async: the same key again is the same call (an idempotency key)
    #[arg(long, value_name = "KEY", requires = "later")]
    key: Option<String>,
}

pub(super) async fn invoke(client: &Client, wanted: Invoke) -> Result<(), Failure> {
    let (verbose, later) = (wanted.verbose, wanted.later);
    let response = client.send(request(wanted)?).await?;
    if verbose {
        let header = |name: &str| response.headers().get(name).map(HeaderValue::as_bytes).unwrap_or(b"-");
        let shown = |name: &str| String::from_utf8_lossy(header(name)).into_owned();
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "status  {}", response.status());
        let _ = writeln!(stderr, "call    {}", shown("x-call-id"));
        let _ = writeln!(stderr, "timing  {}", shown("server-timing"));
    }
    if later && response.status() == StatusCode::ACCEPTED {
        let id = response.headers().get("x-call-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        return super::print(&format!("{id}\n"));
    }
    if response.status().is_success() || response.status().is_redirection() {
        return pass_on(response).await;
    }
    refused(response).await
}

/// What came of asking for a result.
pub(super) enum Ended {
    /// It was printed.
    Shown,
    /// The call has not ended yet, in the daemon's words.
    Not(Failure),
}

/// What an asynchronous call answered: as if it had been called and waited for.
pub(super) async fn result(client: &Client, path: &str) -> Result<Ended, Failure> {
    let request = Request::builder().uri(path).header(HOST, "spry").body(Full::<Bytes>::default());
    let response = client.send(request.map_err(|error| Failure::Usage(error.to_string()))?).await?;
    let is_result = response.headers().contains_key("x-spry-call-state");
    if !is_result {
        let runs = response.status() == StatusCode::CONFLICT;
        return match client::good(response).await {
            Err(why) if runs => Ok(Ended::Not(why)),
            answer => answer.map(|_| Ended::Shown),
        };
    }
    if response.status().is_success() || response.status().is_redirection() {
        return pass_on(response).await.map(|()| Ended::Shown);
    }
    refused(response).await.map(|()| Ended::Shown)
}

fn request(wanted: Invoke) -> Result<Request<Full<Bytes>>, Failure> {
    let usage = |problem: String| Failure::Usage(problem);
    let has_data = wanted.data.is_some();
    let body = wanted.data.map(read_data).transpose()?.unwrap_or_default();
    let method = match wanted.method {
        Some(word) => {
            Method::from_bytes(word.as_bytes()).map_err(|_| usage(format!("-X {word:?} is no method")))?
        }
        None if has_data || wanted.later => Method::POST,
        None => Method::GET,
    };
    if !matches!(wanted.path.bytes().next(), None | Some(b'/' | b'?')) {
        return Err(usage(format!("--path {:?} must start with / or ?", wanted.path)));
    }
    let mut headers = HeaderMap::new();
    for header in &wanted.headers {
        let (name, value) = parse_header(header)?;
        headers.append(name, value);
    }
    if has_data && !headers.contains_key(CONTENT_TYPE) {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        let kind = if json { "application/json" } else { "application/octet-stream" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    let delay = wanted.delay.map(|delay| delay.to_string());
    let later = [("x-delay", delay), ("x-callback-url", wanted.callback), ("idempotency-key", wanted.key)];
    for (name, value) in later {
        if let Some(value) = value {
            let value =
                HeaderValue::from_str(&value).map_err(|_| usage(format!("{value:?} can't be sent")))?;
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if !headers.contains_key(HOST) {
        headers.insert(HOST, HeaderValue::from_static("spry"));
    }
    let door = if wanted.later { "async-function" } else { "function" };
    let target = format!("/{door}/{}{}", segment(&wanted.name)?, wanted.path);
    let mut request = Request::builder().method(method).uri(target).body(Full::new(body));
    if let Ok(request) = &mut request {
        *request.headers_mut() = headers;
    }
    request.map_err(|error| usage(format!("--path: {error}")))
}

fn read_data(data: String) -> Result<Bytes, Failure> {
    let Some(source) = data.strip_prefix('@') else { return Ok(data.into()) };
    let read = match source {
        "-" => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
        }
        path => std::fs::read(path),
    };
    read.map(Bytes::from).map_err(|error| Failure::Usage(format!("read {source}: {error}")))
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    let bad = || Failure::Usage(format!("-H {text:?} is no NAME:VALUE"));
    let (name, value) = text.split_once(':').ok_or_else(bad)?;
    Ok((name.trim().parse().map_err(|_| bad())?, value.trim().parse().map_err(|_| bad())?))
}

/// The body to stdout, as it comes.
async fn pass_on(response: Response<Incoming>) -> Result<(), Failure> {
    let mut body = response.into_body();
    let mut stdout = io::stdout().lock();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Node(format!("the answer broke off: {error}")))?;
        if let Some(piece) = frame.data_ref() {
            stdout.write_all(piece).map_err(Failure::output)?;
        }
    }
    stdout.flush().map_err(Failure::output)
}

/// An error of the node's goes to stderr. An error status that the function chose is its answer all the same:
/// the body to stdout, and the exit code says that it failed.
async fn refused(response: Response<Incoming>) -> Result<(), Failure> {
    let status = response.status();
    let call_id = response.headers().get("x-call-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| Failure::Node(format!("the answer broke off: {error}")))?.to_bytes();
    match client::detail(&body) {
        Some(detail) if detail.call_id.is_some() && detail.call_id == call_id => {
            Err(client::failure(status, &detail))
        }
        _ => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&body).and_then(|()| stdout.flush()).map_err(Failure::output)?;
            Err(Failure::Function(format!("the function answered {status}")))
        }
    }
}
