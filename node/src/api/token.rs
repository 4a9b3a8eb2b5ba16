//! Tokens as the control API shows them.

use serde::{Deserialize, Serialize};

use crate::access::Scope;

/// What a token is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenWanted {
    /// What its bearer may do.
    pub scopes: Vec<Scope>,
    /// With these functions and chains only; absent: with all, and with the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub functions: Option<Vec<String>>,
    /// How long it lives (`30d`); absent: until it is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// What it is for.
    pub note: String,
}

/// A token, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// What it is called by.
    pub id: String,
    /// What its bearer may do.
    pub scopes: Vec<Scope>,
    /// With these functions and chains only; `null`: with all, and with the node.
    pub functions: Option<Vec<String>>,
    /// What it is for.
    pub note: String,
    /// When it was made.
    pub created_unix_ms: u64,
    /// When it ends; `null`: when it is revoked.
    pub expires_unix_ms: Option<u64>,
    /// Whether it has ended.
    pub expired: bool,
}

/// A token that was made. Its text is never to be had again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMade {
    /// The text.
    pub token: String,
    /// The rest.
    #[serde(flatten)]
    pub about: TokenView,
}
