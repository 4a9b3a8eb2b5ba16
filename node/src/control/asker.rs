//! Who asks, where what they ask for leads further than its path says: to the functions of a chain, to a version's secrets.
//!
//! What the path says is looked at before anything else is ([`super::handle`]).

use std::sync::Arc;

use http::HeaderMap;

use super::{Control, Refused, blocking};
use crate::access::{Caller, Denied, Need, Scope};
use crate::manifest::Manifest;

/// Who asks.
pub(super) struct Asker<'a> {
    pub(super) caller: Caller,
    pub(super) headers: &'a HeaderMap,
}

impl Asker<'_> {
    /// Whether they may deploy this, too.
    pub(super) fn may_deploy(&self, control: &Control, name: &str) -> Result<(), Denied> {
        let need = Need { scope: Scope::Deploy, name: Some(name) };
        control.access.check(self.caller, self.headers, need)
    }

    /// Whether they may have this version deployed: with a token for some functions only, a function gets no secret that its
    /// current version doesn't list.
    pub(super) async fn may_give(&self, control: &Control, manifest: &Manifest) -> Result<(), Refused> {
        if manifest.secrets.is_empty() || !control.access.is_for_some(self.caller, self.headers) {
            return Ok(());
        }
        let (store, function) = (Arc::clone(&control.store), manifest.name.to_string());
        let current = blocking(move || store.function(&function)).await??;
        let has = current.map(|current| current.manifest.secrets).unwrap_or_default();
        match manifest.secrets.iter().find(|secret| !has.contains(secret)) {
            None => Ok(()),
            Some(secret) => Err(Refused::NewSecret {
                function: manifest.name.to_string(),
                secret: secret.as_str().to_owned(),
            }),
        }
    }
}
