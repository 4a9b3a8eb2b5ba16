//! HTTP over the control socket.

use std::io::ErrorKind;
use std::path::PathBuf;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Failure;
use crate::api::{ErrorBody, ErrorDetail};

/// The daemon behind a socket. A connection per request: commands make one or two.
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// A request without a body; returns the answer's, if it is a good one.
    pub(super) async fn call(&self, method: Method, path: &str) -> Result<Bytes, Failure> {
        let request = Request::builder().method(method).uri(path).header("host", "spry");
        let request =
            request.body(Empty::<Bytes>::new()).map_err(|error| Failure::Usage(error.to_string()))?;
        good(self.send(request).await?).await
    }

    /// Sends any request, and returns the answer as it comes.
    pub(super) async fn send<B>(&self, request: Request<B>) -> Result<Response<Incoming>, Failure>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let broken = |error: hyper::Error| Failure::Node(self.broken(&error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let answer = sender.send_request(request).await;
        if answer.is_err() {
            driver.abort();
        }
        answer.map_err(broken)
    }

    fn broken(&self, error: &hyper::Error) -> String {
        format!("the daemon at {} did not answer: {error}; its log may say why", self.socket.display())
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        Failure::Node(match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => format!(
                "spryd is not running at {socket}: start it with `spryd` or `systemctl start spryd`, or name \
                 its socket with --control-socket"
            ),
            ErrorKind::PermissionDenied => {
                format!("you may not open {socket}: run this as the user that runs spryd (root, most often)")
            }
            _ => format!("connect to {socket}: {error}"),
        })
    }
}

/// The whole body of a good answer; the words of a bad one.
pub(super) async fn good(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let status = response.status();
    let body = response.into_body().collect().await;
    let body =
        body.map_err(|error| Failure::Node(format!("the daemon's answer broke off: {error}")))?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    Err(match detail(&body) {
        Some(detail) => failure(status, &detail),
        None => Failure::Node(format!("the daemon answered {status}: {}", String::from_utf8_lossy(&body))),
    })
}

/// The contract's error, if this is one.
pub(super) fn detail(body: &[u8]) -> Option<ErrorDetail> {
    serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error)
}

/// Whose fault it is, for the exit code.
pub(super) fn failure(status: StatusCode, detail: &ErrorDetail) -> Failure {
    let function = matches!(status.as_u16(), 500 | 502 | 504 | 507)
        && !matches!(detail.code.as_str(), "node_failed" | "store_failed" | "files_altered");
    let broken_code =
        matches!(detail.code.as_str(), "broken_code" | "packages_failed" | "init_timeout" | "init_died");
    let call = detail.call_id.as_ref().map(|id| format!(" (call {id})")).unwrap_or_default();
    let words = format!("{}{call}", detail.message.trim_end());
    if function || broken_code { Failure::Function(words) } else { Failure::Node(words) }
}

/// Reads what the API documents.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::Node(format!(
            "the daemon's answer can't be read ({error}); are spry and spryd of one version?"
        ))
    })
}
