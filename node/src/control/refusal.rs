//! Why a control request was not done, and the one place where that becomes a status and a code.

use http::StatusCode;

use crate::access::Denied;
use crate::api::{ApplyError, DeployError, ErrorBody, ErrorDetail, RemoveError};
use crate::calls::CallsError;
use crate::secrets::{SecretError, SecretNameError};
use crate::store::StoreError;
use crate::triggers::TriggerError;

/// Why a control request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The caller may not.
    #[error(transparent)]
    Denied(Denied),
    /// A chain would lead to what the token isn't for.
    #[error(
        "this token is for some functions and chains only, and \"{0}\" is none of them, so no chain to it can be \
         applied with it; `spry token create` makes one that may"
    )]
    Beyond(String),
    /// A version would be given a secret that the current one doesn't have.
    #[error(
        "this token is for some functions only and can't give \"{function}\" the secret \"{secret}\"; have a version that \
         lists it deployed with a token for the whole node first"
    )]
    NewSecret {
        /// Of which function.
        function: String,
        /// Which secret.
        secret: String,
    },
    /// A token can't be made like this.
    #[error("no such token can be made: {0}")]
    Token(String),
    /// No such token.
    #[error("there is no token \"{0}\"; `spry token list` shows those that there are")]
    NoSuchToken(String),
    /// No such path.
    #[error("nothing is at this path; docs/control-api.md lists what there is")]
    NoSuchPath,
    /// The path exists, the method doesn't fit.
    #[error("this path answers {0} only")]
    Method(&'static str),
    /// No such function.
    #[error("no function named \"{0}\" is deployed; `spry list` shows those that are")]
    NoSuchFunction(String),
    /// No such chain.
    #[error("no chain named \"{0}\" is applied; `spry chain list` shows those that are")]
    NoSuchChain(String),
    /// The path and the chain's text name different chains.
    #[error("the path names the chain \"{path}\", its text \"{text}\"")]
    OtherChain {
        /// In the path.
        path: String,
        /// In the text.
        text: String,
    },
    /// No such call, or it is too long ago.
    #[error("no call \"{0}\" is remembered; `spry activation list` shows those that are")]
    NoSuchActivation(String),
    /// An asynchronous call was not found or not changed.
    #[error(transparent)]
    Calls(#[from] CallsError),
    /// A trigger was not applied, changed or found.
    #[error(transparent)]
    Trigger(#[from] TriggerError),
    /// The call has not ended yet.
    #[error("call {0} has not ended yet; wait for it with `wait=30s`")]
    NotEnded(String),
    /// What the call answered isn't kept.
    #[error(
        "the result of call {0} is not kept: it was no asynchronous call, and activations.results is 0 or was then"
    )]
    NoResult(String),
    /// A query parameter can't be read.
    #[error("the parameter `{name}`: {problem}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The upload broke off.
    #[error("the upload could not be read: {0}")]
    Body(String),
    /// The upload stood still.
    #[error("the upload stood still for {0} s")]
    Stalled(u64),
    /// It could not be staged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be deployed.
    #[error(transparent)]
    Deploy(DeployError),
    /// It could not be applied.
    #[error(transparent)]
    Apply(ApplyError),
    /// It could not be removed.
    #[error(transparent)]
    Remove(RemoveError),
    /// No secret's name.
    #[error(transparent)]
    SecretName(#[from] SecretNameError),
    /// A secret could not be set or removed.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A bug: a task of the daemon panicked; its log says where.
    #[error("the daemon failed; its log says why")]
    Broken,
}

impl Refused {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.blame().0
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.blame().1
    }

    /// The contract's JSON.
    pub(super) fn body(&self) -> Vec<u8> {
        let error = ErrorDetail { code: self.code().into(), message: self.to_string(), call_id: None };
        serde_json::to_vec(&ErrorBody { error }).unwrap_or_default()
    }

    fn blame(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Denied(Denied::Unknown) => (StatusCode::UNAUTHORIZED, "unauthorised"),
            Self::Denied(Denied::Forbidden(_) | Denied::Stranger(_)) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::Beyond(_) | Self::NewSecret { .. } => (StatusCode::FORBIDDEN, "forbidden"),
            Self::Denied(Denied::TooMany { .. }) => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::Token(_) => (StatusCode::BAD_REQUEST, "bad_token"),
            Self::NoSuchToken(_) => (StatusCode::NOT_FOUND, "no_such_token"),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "no_such_path"),
            Self::Method(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NoSuchFunction(_) | Self::Remove(RemoveError::NoSuchFunction(_)) => {
                (StatusCode::NOT_FOUND, "no_such_function")
            }
            Self::NoSuchChain(_) | Self::Remove(RemoveError::NoSuchChain(_)) => {
                (StatusCode::NOT_FOUND, "no_such_chain")
            }
            Self::OtherChain { .. } => (StatusCode::BAD_REQUEST, "bad_chain"),
            Self::NoSuchActivation(_) => (StatusCode::NOT_FOUND, "no_such_call"),
            Self::Calls(error) => error.status(),
            Self::Trigger(error) => blame_of_trigger(error),
            Self::NotEnded(_) => (StatusCode::CONFLICT, "not_ended"),
            Self::NoResult(_) => (StatusCode::NOT_FOUND, "no_result"),
            Self::Parameter { .. } => (StatusCode::BAD_REQUEST, "bad_parameter"),
            Self::Body(_) => (StatusCode::BAD_REQUEST, "body_broken"),
            Self::Stalled(_) => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Self::Store(error)
            | Self::Deploy(DeployError::Store(error))
            | Self::Apply(ApplyError::Store(error))
            | Self::Remove(RemoveError::Store(error)) => blame_of_store(error),
            Self::Deploy(error) => blame_of_deploy(error),
            Self::Apply(ApplyError::Function { source, .. }) => blame_of_deploy(source),
            Self::Apply(ApplyError::NoRoom(_)) => (StatusCode::SERVICE_UNAVAILABLE, "node_full"),
            Self::Apply(ApplyError::ShuttingDown) => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            Self::SecretName(_) | Self::Secret(SecretError::Length(_)) => {
                (StatusCode::BAD_REQUEST, "bad_secret")
            }
            Self::Secret(SecretError::Missing(_)) => (StatusCode::NOT_FOUND, "no_such_secret"),
            Self::Secret(SecretError::InUse { .. }) => (StatusCode::CONFLICT, "in_use"),
            Self::Secret(SecretError::Store(error)) => blame_of_store(error),
            Self::Secret(_) => (StatusCode::INTERNAL_SERVER_ERROR, "store_failed"),
            Self::Broken => (StatusCode::INTERNAL_SERVER_ERROR, "node_failed"),
        }
    }
}

fn blame_of_trigger(error: &TriggerError) -> (StatusCode, &'static str) {
    match error {
        TriggerError::Spec(_) | TriggerError::OtherName { .. } => (StatusCode::BAD_REQUEST, "bad_trigger"),
        TriggerError::NoSuchCallee(_) | TriggerError::Folder { .. } => {
            (StatusCode::BAD_REQUEST, "bad_trigger")
        }
        TriggerError::NoSuchTrigger(_) => (StatusCode::NOT_FOUND, "no_such_trigger"),
        TriggerError::Calls(error) => error.status(),
    }
}

fn blame_of_deploy(error: &DeployError) -> (StatusCode, &'static str) {
    match error {
        DeployError::Code(_) => (StatusCode::BAD_REQUEST, "broken_code"),
        DeployError::InitTimeout(_) => (StatusCode::BAD_REQUEST, "init_timeout"),
        DeployError::ZygoteDied(_) => (StatusCode::BAD_REQUEST, "init_died"),
        DeployError::SecretMissing(_) => (StatusCode::BAD_REQUEST, "secret_missing"),
        DeployError::Packages(_) => (StatusCode::BAD_REQUEST, "packages_failed"),
        DeployError::Runtime { .. } => (StatusCode::SERVICE_UNAVAILABLE, "runtime_unusable"),
        DeployError::NoRoom(_) => (StatusCode::SERVICE_UNAVAILABLE, "node_full"),
        DeployError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        DeployError::Os { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "node_failed"),
        DeployError::Store(error) => blame_of_store(error),
    }
}

fn blame_of_store(error: &StoreError) -> (StatusCode, &'static str) {
    match error {
        StoreError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "upload_too_large"),
        StoreError::Archive(_) => (StatusCode::BAD_REQUEST, "bad_archive"),
        StoreError::Manifest(_) => (StatusCode::BAD_REQUEST, "bad_manifest"),
        StoreError::NoSuchFunction(_) => (StatusCode::NOT_FOUND, "no_such_function"),
        StoreError::Chain(_) | StoreError::Dependent { .. } => (StatusCode::BAD_REQUEST, "bad_chain"),
        StoreError::NoSuchChain(_) => (StatusCode::NOT_FOUND, "no_such_chain"),
        StoreError::NoSuchVersion { .. } => (StatusCode::NOT_FOUND, "no_such_version"),
        StoreError::IsCurrent { .. } => (StatusCode::CONFLICT, "is_current"),
        StoreError::Altered { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "files_altered"),
        StoreError::InUse { .. } => (StatusCode::CONFLICT, "in_use"),
        StoreError::NameIsChain(_) | StoreError::NameIsFunction(_) => (StatusCode::CONFLICT, "name_taken"),
        StoreError::Overtaken { .. } | StoreError::ChainOvertaken(_) => (StatusCode::CONFLICT, "overtaken"),
        StoreError::SecretRemoved { .. } => (StatusCode::BAD_REQUEST, "secret_missing"),
        StoreError::NoSlot => (StatusCode::SERVICE_UNAVAILABLE, "node_full"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "store_failed"),
    }
}
