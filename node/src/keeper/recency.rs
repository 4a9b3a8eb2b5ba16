//! When functions were used last, over restarts: it is noted now and then, and after a restart their zygotes come back in
//! that order, one at a time and only where memory is free, so that who calls meanwhile is served first.
//!
//! The time that spryd was away doesn't count: a zygote comes back if it would still be there, had spryd gone on from the
//! last use of any function.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use spry_sched::keepalive::{Layer, Phase};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::memory::idle_ns;
use super::{Keeper, ToTender, off_the_loop, tend};
use crate::api::ZygoteState;
use crate::store::StoredFunction;

/// How often it is noted who was used: one transaction for all, none where nobody was. A crash loses so much.
const NOTED_EVERY: Duration = Duration::from_secs(30);

impl Keeper {
    /// Notes now and then which functions are used, until the thread ends.
    pub async fn keep_uses(self: Rc<Self>) {
        loop {
            tokio::time::sleep(NOTED_EVERY).await;
            self.note_uses().await;
        }
    }

    /// Notes the functions that were used since the last time.
    pub(super) async fn note_uses(&self) {
        let uses: Vec<(String, u64)> = {
            let noted = self.noted_uses.borrow();
            let used =
                self.node.all().into_iter().map(|one| (one.name().to_owned(), one.served.last_unix_ms()));
            used.filter(|(name, at)| *at > noted.get(name).copied().unwrap_or(0)).collect()
        };
        if uses.is_empty() {
            return;
        }
        let (store, news) = (Arc::clone(&self.store), uses.clone());
        match off_the_loop(move || store.note_uses(&news)).await {
            Ok(()) => self.noted_uses.borrow_mut().extend(uses),
            // Told again with the next; nothing but an order is lost.
            Err(error) => tracing::debug!(%error, "it could not be noted which functions are used"),
        }
    }

    pub(super) fn restore_functions(self: &Rc<Self>) {
        let opened = self.store.opened();
        if *opened != crate::store::Opened::default() {
            tracing::warn!(?opened, "what an earlier crash left in the state folder was mended");
        }
        let mut stored = match self.store.functions() {
            Ok(stored) => stored,
            Err(error) => return tracing::error!(%error, "the stored functions can't be read"),
        };
        stored.sort_by_key(|function| std::cmp::Reverse(function.used_unix_ms));
        let newest_unix_ms = stored.first().map_or(0, |function| function.used_unix_ms);
        let uses = stored.iter().map(|one| (one.manifest.name.to_string(), one.used_unix_ms));
        *self.noted_uses.borrow_mut() = uses.collect::<HashMap<_, _>>();
        let back = stored.into_iter().filter_map(|stored| self.restore_one(stored, newest_unix_ms));
        let back: Vec<_> = back.collect();
        if !back.is_empty() {
            tokio::task::spawn_local(bring_back(back));
        }
    }

    /// Serves one function again; returns its tender, if its zygote is to come back ahead of a call.
    fn restore_one(
        self: &Rc<Self>,
        stored: StoredFunction,
        newest_unix_ms: u64,
    ) -> Option<UnboundedSender<ToTender>> {
        let (name, used_unix_ms) = (stored.manifest.name.to_string(), stored.used_unix_ms);
        let function = match self.make(stored, None) {
            Ok(function) => function,
            Err(error) => {
                tracing::error!(function = name, %error, "a stored function can't be served");
                return None;
            }
        };
        let missing = self.store.opened().missing.contains(&name);
        if missing {
            let problem = "its files are gone from the state folder; deploy it again";
            function.set_zygote(ZygoteState::Failed, Some(problem.into()));
        }
        let min = function.stored.manifest.scale.min as usize;
        self.node.publish(Arc::clone(&function));
        let tender = tend::spawn(Rc::clone(self), Arc::clone(&function), None);
        let _ = tender.send(ToTender::Warm(min));
        let idle_ns = idle_ns(used_unix_ms, newest_unix_ms);
        let is_recent =
            used_unix_ms != 0 && self.memory.window(&function, Layer::Zygote).phase(idle_ns) == Phase::Within;
        (is_recent && min == 0 && !missing).then_some(tender)
    }
}

/// One after the other.
async fn bring_back(tenders: Vec<UnboundedSender<ToTender>>) {
    for tender in tenders {
        let (done, there) = oneshot::channel();
        // A tender that has ended meanwhile needs no zygote.
        if tender.send(ToTender::BringBack(done)).is_ok() {
            let _ = there.await;
        }
    }
}
