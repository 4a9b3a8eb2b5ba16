//! Tokens: `spry_ID_SECRET`. The id names it, in lists and to revoke it; the secret is 256 random bits.
//!
//! Only the SHA-256 of the whole text is kept. That is enough for a secret that can't be guessed (unlike a password, for which it
//! would not be), and what is compared are hashes, in constant time.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How every token begins, so that people and secret scanners know one.
const PREFIX: &str = "spry_";
/// Digits of an id and of a secret.
const ID_LEN: usize = 12;
const SECRET_LEN: usize = 64;

/// What may be done. Each of these is asked for by itself; `admin` implies all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Call functions and chains.
    Invoke,
    /// Deploy and remove functions and chains, look at them, at their calls and their output
    Deploy,
    /// Everything, tokens included.
    Admin,
}

impl Scope {
    /// As in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }

    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Invoke => "call functions",
            Self::Deploy => "deploy or look at functions",
            Self::Admin => "administer the node",
        }
    }
}

/// What one token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes {
    invoke: bool,
    deploy: bool,
    admin: bool,
}

impl Scopes {
    /// Whether this is among them.
    pub fn allow(self, scope: Scope) -> bool {
        self.admin
            || match scope {
                Scope::Invoke => self.invoke,
                Scope::Deploy => self.deploy,
                Scope::Admin => false,
            }
    }

    /// As stored: words, separated by blanks.
    pub fn words(self) -> String {
        let all = [(self.invoke, Scope::Invoke), (self.deploy, Scope::Deploy), (self.admin, Scope::Admin)];
        let words = all.iter().filter(|(is, _)| *is).map(|(_, scope)| scope.as_str());
        words.collect::<Vec<_>>().join(" ")
    }

    /// Reads that back. Words of a later version mean nothing here.
    pub fn read(words: &str) -> Self {
        let has = |scope: Scope| words.split(' ').any(|word| word == scope.as_str());
        Self { invoke: has(Scope::Invoke), deploy: has(Scope::Deploy), admin: has(Scope::Admin) }
    }

    /// They, as a list.
    pub fn list(self) -> Vec<Scope> {
        [Scope::Invoke, Scope::Deploy, Scope::Admin].into_iter().filter(|scope| self.has(*scope)).collect()
    }

    fn has(self, scope: Scope) -> bool {
        match scope {
            Scope::Invoke => self.invoke,
            Scope::Deploy => self.deploy,
            Scope::Admin => self.admin,
        }
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut all = Self::default();
        for scope in scopes {
            match scope {
                Scope::Invoke => all.invoke = true,
                Scope::Deploy => all.deploy = true,
                Scope::Admin => all.admin = true,
            }
        }
        all
    }
}

/// A token as it lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// What it is called by.
    pub id: String,
    /// Of its text.
    pub digest: [u8; 32],
    /// What it may do.
    pub scopes: Scopes,
    /// With these functions and chains only; `None`: with all, and with the node.
    pub functions: Option<Vec<String>>,
    /// What it is for, in its maker's words.
    pub note: String,
    /// When it was made.
    pub created_unix_ms: u64,
    /// When it ends, if it does.
    pub expires_unix_ms: Option<u64>,
}

/// What a token is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// What it may do.
    pub scopes: Scopes,
    /// See [`StoredToken::functions`].
    pub functions: Option<Vec<String>>,
    /// See [`StoredToken::note`].
    pub note: String,
    /// See [`StoredToken::expires_unix_ms`].
    pub expires_unix_ms: Option<u64>,
}

/// A token's text. Shown once, never printed by accident.
pub struct TokenText(String);

impl std::fmt::Debug for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText(…)")
    }
}

impl TokenText {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl NewToken {
    /// Draws it.
    pub fn draw(self, now_unix_ms: u64) -> std::io::Result<(TokenText, StoredToken)> {
        let draw = || crate::sys::random_u64();
        let id = format!("{:016x}", draw()?)[..ID_LEN].to_owned();
        let secret = format!("{:016x}{:016x}{:016x}{:016x}", draw()?, draw()?, draw()?, draw()?);
        let text = format!("{PREFIX}{id}_{secret}");
        let stored = StoredToken {
            id,
            digest: digest(text.as_bytes()),
            scopes: self.scopes,
            functions: self.functions,
            note: self.note,
            created_unix_ms: now_unix_ms,
            expires_unix_ms: self.expires_unix_ms,
        };
        Ok((TokenText(text), stored))
    }
}

/// The token in an `Authorization` header.
pub(super) fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, given) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| given.trim_ascii())
}

/// The id in a token's text.
pub(super) fn id_of(token: &[u8]) -> Option<&str> {
    let rest = token.strip_prefix(PREFIX.as_bytes())?;
    let whole = rest.len() == ID_LEN + 1 + SECRET_LEN && rest[ID_LEN] == b'_';
    whole.then(|| std::str::from_utf8(&rest[..ID_LEN]).ok()).flatten()
}

/// Whether a header's value looks like a token of ours, known or not (revoked, or another node's).
pub(super) fn is_like_ours(header: &[u8]) -> bool {
    bearer(header).is_some_and(|token| token.starts_with(PREFIX.as_bytes()))
}

/// What is kept of a token.
pub(super) fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}
