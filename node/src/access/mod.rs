//! Who may do what: callers over HTTP by bearer tokens, processes of this machine by who they are.
//!
//! ```text
//! control socket   the kernel says who connects ([`peer`]): root, spryd's own user, and whom `[control]` names, may do everything
//! HTTP             a token ([`token`]) says what its bearer may do; no token: call the functions that ask for none
//! ```
//!
//! Tokens are in the store, as hashes; what is looked up for each request is a copy in memory that is replaced whole.
//! The token in `api-token` ([`crate::control::token`]) is there from the first start on and may do everything: it is what
//! others are made with. `docs/control-api.md` tells it to users.

mod limiter;
pub mod peer;
pub mod token;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::header::{AUTHORIZATION, HeaderMap};
use subtle::ConstantTimeEq;

use crate::activation::unix_ms;
use crate::config::{ControlAccess, Rate};
use crate::control::token::ApiToken;
use limiter::{Limiter, Who};
pub use token::{NewToken, Scope, Scopes, StoredToken, TokenText};

/// Where a request came in, and from whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The control socket, by somebody who may do everything.
    Local,
    /// The control socket, by somebody who may not.
    Stranger {
        /// Their user id.
        uid: u32,
    },
    /// The HTTP listener.
    Remote(IpAddr),
}

/// What is wanted of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need<'a> {
    /// To do this.
    pub scope: Scope,
    /// With this function or chain; `None`: with the node.
    pub name: Option<&'a str>,
}

/// Why a caller may not do what they ask for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No token, or one that isn't known (any more).
    #[error("this needs a token: send one as `Authorization: Bearer TOKEN` (see docs/control-api.md)")]
    Unknown,
    /// The token may not do this.
    #[error("this token may not {} here; `spry token create` makes one that may", .0.verb())]
    Forbidden(Scope),
    /// On the control socket: somebody else.
    #[error(
        "user {0} may not use the control socket: run this as the user that runs spryd, or see control.owner \
         and control.group in docs/configuration.md"
    )]
    Stranger(u32),
    /// Too many requests.
    #[error("too many requests from this caller; try again in {after_s} s")]
    TooMany {
        /// Whole seconds, at least 1.
        after_s: u32,
    },
}

/// What the bearer of a token may do.
#[derive(Debug)]
struct Grant {
    digest: [u8; 32],
    scopes: Scopes,
    functions: Option<Vec<String>>,
    expires_unix_ms: Option<u64>,
}

/// Shared by all threads.
#[derive(Debug)]
pub struct Access {
    bootstrap: ApiToken,
    grants: ArcSwap<HashMap<String, Grant>>,
    limiter: ArcSwapOption<Limiter>,
    control: ArcSwap<ControlAccess>,
}

/// Who shows a token.
enum Bearer<'a> {
    Bootstrap,
    Token(&'a str, &'a Grant),
}

impl Access {
    /// With the first token, those that are stored, and a rate limit.
    pub fn new(bootstrap: ApiToken, tokens: &[StoredToken], rate: Option<Rate>) -> Self {
        let (grants, control) = (ArcSwap::default(), ArcSwap::default());
        let access = Self { bootstrap, grants, limiter: ArcSwapOption::empty(), control };
        access.set_tokens(tokens);
        access.set_rate(rate);
        access
    }

    /// From now on these tokens count, and no others.
    pub fn set_tokens(&self, tokens: &[StoredToken]) {
        let grants = tokens.iter().map(|token| {
            let grant = Grant {
                digest: token.digest,
                scopes: token.scopes,
                functions: token.functions.clone(),
                expires_unix_ms: token.expires_unix_ms,
            };
            (token.id.clone(), grant)
        });
        self.grants.store(Arc::new(grants.collect()));
    }

    /// From now on this rate counts. What callers had left is forgotten.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.limiter.store(rate.map(|rate| Arc::new(Limiter::new(rate, Instant::now()))));
    }

    /// From now on these may use the control socket.
    pub fn set_control(&self, control: ControlAccess) {
        self.control.store(Arc::new(control));
    }

    /// Who connected to the control socket, and whether they may use it.
    pub fn at_socket(&self, stream: &UnixStream) -> Caller {
        match peer::Peer::of(stream) {
            Ok(peer) => peer.caller(**self.control.load(), nix::unistd::geteuid().as_raw()),
            Err(error) => {
                tracing::warn!(%error, "who is at the control socket can't be found out");
                Caller::Stranger { uid: u32::MAX }
            }
        }
    }

    /// Whether the caller may do this.
    pub fn check(&self, caller: Caller, headers: &HeaderMap, need: Need<'_>) -> Result<(), Denied> {
        match caller {
            Caller::Local => return Ok(()),
            Caller::Stranger { uid } => return Err(Denied::Stranger(uid)),
            Caller::Remote(_) => {}
        }
        let grants = self.grants.load();
        match self.bearer(&grants, headers).ok_or(Denied::Unknown)? {
            Bearer::Bootstrap => Ok(()),
            Bearer::Token(_, grant) => {
                let within = match (&grant.functions, need.name) {
                    (None, _) => true,
                    (Some(names), Some(name)) => names.iter().any(|known| known == name),
                    (Some(_), None) => false,
                };
                let may = within && grant.scopes.allow(need.scope);
                if may { Ok(()) } else { Err(Denied::Forbidden(need.scope)) }
            }
        }
    }

    /// Whether the caller shows a token that is for some functions and chains only.
    pub fn is_for_some(&self, caller: Caller, headers: &HeaderMap) -> bool {
        let grants = self.grants.load();
        let restricted = |bearer| matches!(bearer, Bearer::Token(_, grant) if grant.functions.is_some());
        matches!(caller, Caller::Remote(_)) && self.bearer(&grants, headers).is_some_and(restricted)
    }

    /// Counts a request of this caller: by their token if they show one that is known, else by their address.
    pub fn admit(&self, caller: Caller, headers: &HeaderMap) -> Result<(), Denied> {
        let Caller::Remote(address) = caller else { return Ok(()) };
        let limiter = self.limiter.load();
        let Some(limiter) = limiter.as_ref() else { return Ok(()) };
        let grants = self.grants.load();
        let who = match self.bearer(&grants, headers) {
            Some(Bearer::Bootstrap) => Who::Token(""),
            Some(Bearer::Token(id, _)) => Who::Token(id),
            None => Who::Address(address),
        };
        limiter.take(who, Instant::now()).map_err(|wait| Denied::TooMany { after_s: whole_seconds(wait) })
    }

    /// Takes a token of ours out of a request: what goes to a function is its author's to read.
    pub fn conceal(&self, headers: &mut HeaderMap) {
        if headers.contains_key(AUTHORIZATION) {
            let ours = self.bearer(&self.grants.load(), headers).is_some()
                || headers.get_all(AUTHORIZATION).iter().any(|value| token::is_like_ours(value.as_bytes()));
            if ours {
                headers.remove(AUTHORIZATION);
            }
        }
    }

    fn bearer<'a>(&self, grants: &'a HashMap<String, Grant>, headers: &HeaderMap) -> Option<Bearer<'a>> {
        let given = token::bearer(headers.get(AUTHORIZATION)?.as_bytes())?;
        let Some(id) = token::id_of(given) else {
            return self.bootstrap.is(given).then_some(Bearer::Bootstrap);
        };
        let (id, grant) = grants.get_key_value(id)?;
        let is_it: bool = token::digest(given).ct_eq(&grant.digest).into();
        let lives = grant.expires_unix_ms.is_none_or(|end| unix_ms() < end);
        (is_it && lives).then_some(Bearer::Token(id, grant))
    }
}

fn whole_seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests;
