//! The node's own pages: metrics, liveness, what methods there are.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;

use super::Refusal;
use super::service::Worker;
use crate::metrics;

impl Worker {
    /// Rendered beside the event loop: it reads files.
    pub(super) async fn metrics(&self) -> Response<Full<Bytes>> {
        let (node, calls) = (Arc::clone(&self.node), Arc::clone(&self.calls));
        match tokio::task::spawn_blocking(move || metrics::render(&node, &calls.counts())).await {
            Ok(page) => {
                let mut response = text(StatusCode::OK, page);
                let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be rendered\n".into()),
        }
    }
}

pub(super) fn only_reads(method: &Method) -> Result<(), Refusal> {
    if method == Method::GET || method == Method::HEAD {
        Ok(())
    } else {
        Err(Refusal::MethodNotAllowed("GET, HEAD"))
    }
}

/// Methods that lead somewhere. A function may be called with any other as well, but for `CONNECT`.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// `CONNECT` asks for a tunnel: what a function would answer, its client would never see (RFC 9110, section 9.3.6).
pub(super) fn no_tunnel(method: &Method) -> Result<(), Refusal> {
    if method == Method::CONNECT { Err(Refusal::MethodNotAllowed(METHODS)) } else { Ok(()) }
}

pub(super) fn options() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
    response
}

pub(super) fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
