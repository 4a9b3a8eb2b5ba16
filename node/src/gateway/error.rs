//! Every way a request can fail, and the one place where blame becomes an HTTP status.
//!
//! The body is the contract's JSON, `{"error":{"code","message","call_id"}}`. Codes are stable; messages are
//! for people. Whose fault it is decides the status: the client (4xx), the function (500, 502, 504, 507),
//! overload (429, 503 with `Retry-After`).

use std::time::Duration;

use http::StatusCode;
use shm_bus::transport::FaultKind;

use super::call_id::CallId;
use crate::access::Denied;
use crate::calls::CallsError;
use crate::calls::launch::Again;
use crate::units::Size;

/// Why an invocation has no result. Produced where it happens, shown to the client by [`Refusal::status`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No function of that name is deployed.
    #[error("no function named \"{0}\" is deployed; `spry list` shows those that are")]
    NoSuchFunction(String),
    /// No such path.
    #[error("nothing is at this path; functions are at /function/NAME")]
    NoSuchPath,
    /// The path exists, the method doesn't fit.
    #[error("this path answers {0} only")]
    MethodNotAllowed(&'static str),
    /// The caller may not.
    #[error(transparent)]
    Denied(Denied),
    /// An HTTP/1 request that doesn't say whom it is for, or says it twice.
    #[error("the header Host {0}; HTTP/1.1 needs exactly one (RFC 9112, section 3.2)")]
    BadHost(&'static str),
    /// The body is coded in a way that isn't undone here.
    #[error(
        "the header Transfer-Encoding isn't \"chunked\", once, which is all that is understood here (RFC 9112, section 6.1)"
    )]
    UnknownCoding,
    /// The body is longer than the function's `limits.payload`.
    #[error("the request's body is over this function's payload limit of {limit_bytes} bytes")]
    PayloadTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// Headers, path and query together don't fit into a frame.
    #[error("the request's head is too large: {0}")]
    HeadTooLarge(spry_wire::frame::FrameError),
    /// The client's body ended early or was malformed.
    #[error("the request's body could not be read: {0}")]
    BodyBroken(String),
    /// The client sent too slowly.
    #[error("the request's body did not arrive within {0:?}")]
    BodyTimeout(Duration),
    /// The function's queue is full.
    #[error("this function's queue is full ({limit} waiting); try again later")]
    QueueFull {
        /// How many may wait.
        limit: usize,
    },
    /// The node as a whole holds too much.
    #[error("the node is at its limit of {what}; try again later")]
    NodeFull {
        /// Of what.
        what: &'static str,
    },
    /// No instance got free in time.
    #[error("no instance got free within {0:?}; try again later")]
    QueueTimeout(Duration),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// The function raised or returned an error.
    #[error("{message}")]
    FunctionFailed {
        /// Its own words, first line.
        message: String,
    },
    /// The function's answer is not a response.
    #[error("the function's answer can't be used: {0}")]
    BadAnswer(String),
    /// The process exited while it held the request.
    #[error("the function's process exited with code {code} before it answered")]
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// The process was ended by a signal while it held the request.
    #[error("the function's process was killed by signal {signal} before it answered")]
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// The process broke the bus protocol and was ended.
    #[error("the function's process broke the bus protocol ({}) and was ended", fault_words(*.0))]
    ProtocolBroken(FaultKind),
    /// No process could be started.
    #[error("no instance could be started: {0}")]
    StartFailed(String),
    /// Its time ran out.
    #[error("the function did not answer within its limit of {0:?}")]
    TimedOut(Duration),
    /// A chain's time ran out.
    #[error("the chain did not end within its limit of {0:?}")]
    ChainTimedOut(Duration),
    /// A step of a chain failed.
    #[error("step \"{step}\": {refusal}")]
    Step {
        /// Which.
        step: String,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// A value in a chain isn't what its next stage needs.
    #[error("a value in this chain can't be used: {0}")]
    BadValue(String),
    /// A value in a chain is over the chain's `payload`.
    #[error("a value in this chain has {len} bytes, over its payload limit of {limit_bytes} bytes")]
    ValueTooLarge {
        /// Its length.
        len: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// Nobody waits for the result any more.
    #[error("the call was cancelled")]
    Cancelled,
    /// An asynchronous call was not accepted, cancelled or found.
    #[error(transparent)]
    Calls(#[from] CallsError),
    /// A header of an asynchronous call can't be read.
    #[error("{name}: {problem}")]
    Header {
        /// Which.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Its memory ran out.
    #[error(
        "the function used more than its memory limit of {limit} and was ended (`limits.memory` of its spry.toml)"
    )]
    OutOfMemory {
        /// The limit.
        limit: Size,
    },
}

fn fault_words(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Closed => "it closed its bus socket",
        FaultKind::Malformed => "it sent something that is not one descriptor",
        FaultKind::NotItsInvocation => "it answered an invocation that it did not hold",
        FaultKind::Flood => "it emitted more values than it may",
    }
}

impl Refusal {
    /// The HTTP status, and the stable code of the error.
    pub fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoSuchFunction(_) => (StatusCode::NOT_FOUND, "no_such_function"),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "no_such_path"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Denied(Denied::Unknown) => (StatusCode::UNAUTHORIZED, "unauthorised"),
            Self::Denied(Denied::Forbidden(_) | Denied::Stranger(_)) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::Denied(Denied::TooMany { .. }) => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::BadHost(_) => (StatusCode::BAD_REQUEST, "bad_host"),
            Self::UnknownCoding => (StatusCode::NOT_IMPLEMENTED, "unknown_coding"),
            Self::PayloadTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Self::HeadTooLarge(_) => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::BodyBroken(_) => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::BodyTimeout(_) => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Self::NodeFull { .. } => (StatusCode::SERVICE_UNAVAILABLE, "node_full"),
            Self::QueueTimeout(_) => (StatusCode::SERVICE_UNAVAILABLE, "queue_timeout"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::FunctionFailed { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "function_failed"),
            Self::BadAnswer(_) => (StatusCode::BAD_GATEWAY, "bad_answer"),
            Self::Exited { .. } => (StatusCode::BAD_GATEWAY, "process_exited"),
            Self::Killed { .. } => (StatusCode::BAD_GATEWAY, "process_killed"),
            Self::ProtocolBroken(_) => (StatusCode::BAD_GATEWAY, "protocol_broken"),
            Self::StartFailed(_) => (StatusCode::SERVICE_UNAVAILABLE, "start_failed"),
            Self::Step { refusal, .. } => refusal.status(),
            Self::BadValue(_) => (StatusCode::INTERNAL_SERVER_ERROR, "bad_value"),
            Self::ValueTooLarge { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "value_too_large"),
            Self::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "cancelled"),
            Self::ChainTimedOut(_) => (StatusCode::GATEWAY_TIMEOUT, "timed_out"),
            Self::TimedOut(_) => (StatusCode::GATEWAY_TIMEOUT, "timed_out"),
            Self::OutOfMemory { .. } => (StatusCode::INSUFFICIENT_STORAGE, "out_of_memory"),
            Self::Header { .. } => (StatusCode::BAD_REQUEST, "bad_header"),
            Self::Calls(error) => error.status(),
        }
    }

    /// Whether an asynchronous call that met this should be tried again.
    pub fn again(&self) -> Again {
        use Refusal::{
            BadHost, BodyBroken, BodyTimeout, Cancelled, HeadTooLarge, Header, MethodNotAllowed, NoSuchPath,
            NodeFull, PayloadTooLarge, QueueFull, QueueTimeout, ShuttingDown, Step, UnknownCoding,
        };
        match self {
            QueueFull { .. } | NodeFull { .. } | QueueTimeout(_) | ShuttingDown | Cancelled => Again::Free,
            PayloadTooLarge { .. } | HeadTooLarge(_) | NoSuchPath | MethodNotAllowed(_) => Again::Never,
            BadHost(_) | UnknownCoding | BodyBroken(_) | BodyTimeout(_) | Header { .. } => Again::Never,
            Step { refusal, .. } => refusal.again(),
            // A function that isn't there may be deployed again.
            _ => Again::Counted,
        }
    }

    /// Whether a process is to blame that had begun: another attempt may fare better.
    pub fn is_the_processes(&self) -> bool {
        use Refusal::{BadAnswer, Exited, FunctionFailed, Killed, OutOfMemory, ProtocolBroken};
        matches!(
            self,
            FunctionFailed { .. }
                | BadAnswer(_)
                | Exited { .. }
                | Killed { .. }
                | ProtocolBroken(_)
                | OutOfMemory { .. }
        )
    }

    /// Seconds after which the client may try again, for overload.
    pub fn retry_after_s(&self) -> Option<u32> {
        if let Self::Denied(Denied::TooMany { after_s }) = self {
            return Some(*after_s);
        }
        match self.status().0 {
            _ if matches!(self, Self::Calls(CallsError::Unwritable(_))) => Some(5),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Some(1),
            _ => None,
        }
    }

    /// The contract's JSON body.
    pub fn body(&self, call_id: CallId) -> Vec<u8> {
        let (_, code) = self.status();
        let mut error = serde_json::json!({
            "error": { "code": code, "message": self.to_string(), "call_id": call_id.as_str() }
        });
        if let Self::Step { step, .. } = self {
            error["error"]["step"] = step.as_str().into();
        }
        error.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_says_when_to_come_back_and_nothing_else_does() {
        assert_eq!(Refusal::QueueFull { limit: 4 }.retry_after_s(), Some(1));
        assert_eq!(Refusal::NodeFull { what: "memory" }.retry_after_s(), Some(1));
        assert_eq!(Refusal::TimedOut(Duration::from_secs(1)).retry_after_s(), None);
        assert_eq!(Refusal::NoSuchPath.retry_after_s(), None);
    }

    #[test]
    fn the_body_is_json_whatever_the_function_says() {
        let refusal = Refusal::FunctionFailed { message: "a \"quote\"\nand a \u{1} control".into() };
        let call_id = CallId::new(7, 9);
        let body: serde_json::Value = serde_json::from_slice(&refusal.body(call_id)).expect("valid JSON");
        assert_eq!(body["error"]["code"], "function_failed");
        assert_eq!(body["error"]["message"], "a \"quote\"\nand a \u{1} control");
        assert_eq!(body["error"]["call_id"], call_id.as_str());
    }
}
