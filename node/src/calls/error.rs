//! Why an asynchronous call was refused, and what that is over HTTP.

use http::StatusCode;

use super::target::TargetError;
use crate::gateway::call_id::CallId;
use crate::store::StoreError;

/// Why a call was not accepted, cancelled or found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallsError {
    /// Too many wait.
    #[error("{waiting} asynchronous calls wait already (`async.calls` of spryd.toml); try again later")]
    Full {
        /// How many.
        waiting: usize,
    },
    /// Their heads and bodies are too much.
    #[error(
        "the waiting asynchronous calls have {bytes} bytes (`async.bytes` of spryd.toml); try again later"
    )]
    TooMuch {
        /// How many bytes.
        bytes: u64,
    },
    /// It can't be put on disk.
    #[error("asynchronous calls can't be stored now ({0}); try again later")]
    Unwritable(String),
    /// The same key names another call. Which isn't said: whoever knows its id may read its answer and cancel it, and keys
    /// are guessed more easily.
    #[error("this Idempotency-Key was used for another request; use a new key for a new request")]
    KeyReused,
    /// It runs, and can't be stopped.
    #[error("call {0} is running and can't be cancelled any more")]
    Running(CallId),
    /// There is none, or it has ended.
    #[error("no call {0} is waiting")]
    NoSuchCall(CallId),
    /// There is no such dead letter.
    #[error("no call {0} is among the dead letters; `spry dead list` shows those that are")]
    NoSuchDead(CallId),
    /// The callback's URL is refused.
    #[error("X-Callback-Url: {0}")]
    Target(String),
    /// spryd is ending.
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl CallsError {
    /// The HTTP status, and the stable code of the error.
    pub fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Full { .. } | Self::TooMuch { .. } => (StatusCode::TOO_MANY_REQUESTS, "async_queue_full"),
            Self::Unwritable(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_failed"),
            Self::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused"),
            Self::Running(_) => (StatusCode::CONFLICT, "call_running"),
            Self::NoSuchCall(_) | Self::NoSuchDead(_) => (StatusCode::NOT_FOUND, "no_such_call"),
            Self::Target(_) => (StatusCode::BAD_REQUEST, "bad_callback"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        }
    }
}

impl From<rusqlite::Error> for CallsError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Unwritable(error.to_string())
    }
}

impl From<StoreError> for CallsError {
    fn from(error: StoreError) -> Self {
        Self::Unwritable(error.to_string())
    }
}

impl From<TargetError> for CallsError {
    fn from(error: TargetError) -> Self {
        Self::Target(error.to_string())
    }
}
