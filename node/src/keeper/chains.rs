//! A chain comes and a chain goes.
//!
//! Applying one makes a new version beside the old one: members of its own for every function in it, started and warm,
//! routes, a domain. Then the name is swapped; the old version ends with its last call. When a function
//! is deployed anew, the chains that it serves in are made anew, too, from what they were applied from.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Keeper, ToTender, tend};
use crate::activation::History;
use crate::api::{Applied, ApplyError, ChainView, DeployError, RemoveError, ZygoteState};
use crate::chain::plan::Plan;
use crate::chain::{Bucket, Chain, CompileError, Compiler, Domain};
use crate::function::{Counts, Entered, Function};
use crate::inbox::{Inbox, Readers};
use crate::manifest::{Isolation, Name};
use crate::store::{PlannedChain, StoreError, StoredChain};

/// Versions that nobody can call yet: if they aren't published, they end.
struct Unpublished(Vec<Arc<Chain>>);

impl Drop for Unpublished {
    fn drop(&mut self) {
        self.0.iter().for_each(|chain| chain.supersede());
    }
}

impl Keeper {
    /// Serves a planned chain from now on, and anew those that go through it. If anything fails, nothing has changed.
    pub(super) async fn apply_chain(self: &Rc<Self>, planned: PlannedChain) -> Result<Applied, ApplyError> {
        if self.closing.get() {
            return Err(ApplyError::ShuttingDown);
        }
        let turn = self.turns.of(planned.plan.name.as_str());
        let _turn = turn.lock().await;
        let _one_at_a_time = self.chain_changes.lock().await;
        let stored = StoredChain {
            name: planned.plan.name.to_string(),
            source: planned.source.clone(),
            applied_unix_ms: crate::activation::unix_ms(),
        };
        let replaced = self.node.chain_named(&stored.name).is_some();
        let mut built = Unpublished(Vec::with_capacity(1 + planned.dependents.len()));
        built.0.push(self.build_chain(planned.plan.clone(), stored, true).await?);
        for plan in &planned.dependents {
            let Some(old) = self.node.chain_named(plan.name.as_str()) else { continue };
            built.0.push(self.build_chain(plan.clone(), old.stored.clone(), true).await?);
        }
        let store = Arc::clone(&self.store);
        super::off_the_loop(move || store.commit_chain(&planned)).await?;
        let published: Vec<Arc<Chain>> = std::mem::take(&mut built.0);
        let dependents = published[1..].iter().map(|chain| chain.name().to_owned()).collect();
        let chain = crate::node::chain_view(&published[0], &*self.bus.transport);
        published.into_iter().for_each(|chain| self.publish_chain(chain));
        Ok(Applied { chain, replaced, dependents })
    }

    /// Serves a chain no more, and ends what it had.
    pub(super) async fn remove_chain(self: &Rc<Self>, name: &Name) -> Result<(), RemoveError> {
        let turn = self.turns.of(name.as_str());
        let _turn = turn.lock().await;
        let (store, leaving) = (Arc::clone(&self.store), name.clone());
        let _retired = super::off_the_loop(move || store.retire(&leaving)).await?;
        // A removal that fails (the disk is full) changes nothing.
        let (store, gone) = (Arc::clone(&self.store), name.clone());
        match super::off_the_loop(move || store.remove_chain(&gone)).await {
            Err(StoreError::NoSuchChain(name)) => return Err(RemoveError::NoSuchChain(name)),
            removed => removed?,
        }
        self.end_chain(name.as_str()).await;
        tracing::info!(chain = name.as_str(), "removed");
        Ok(())
    }

    /// Serves the chains that the store remembers. Their processes are started when they are called.
    pub(super) async fn restore_chains(self: &Rc<Self>) {
        let plans = match self.store.plans() {
            Ok(plans) => plans,
            Err(error) => return tracing::error!(%error, "the stored chains can't be read"),
        };
        for (stored, plan) in plans {
            let built = match plan {
                Ok(plan) => {
                    self.build_chain(plan, stored.clone(), false).await.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match built {
                Ok(chain) => self.publish_chain(chain),
                Err(problem) => {
                    tracing::error!(chain = stored.name, problem, "a stored chain can't be served");
                    self.node.set_broken(ChainView::broken(&stored, problem));
                }
            }
        }
    }

    /// Makes a version of a chain, with every member `warm` or not started yet.
    async fn build_chain(
        self: &Rc<Self>,
        plan: Plan,
        stored: StoredChain,
        warm: bool,
    ) -> Result<Arc<Chain>, ApplyError> {
        let bases = plan.functions.iter().map(|name| {
            // (Planned a moment ago: it has just been removed.)
            self.node.named(name.as_str()).ok_or_else(|| StoreError::ChainOvertaken(plan.name.to_string()))
        });
        let bases = bases.collect::<Result<Vec<_>, _>>()?;
        let node_bytes = Arc::clone(&self.node_bytes);
        let is_strict = bases.iter().any(|base| base.stored.manifest.isolation == Isolation::Request);
        let isolation = if is_strict { Isolation::Request } else { Isolation::Instance };
        let (name, payload_bytes) = (plan.name.as_str(), plan.payload_bytes);
        let readers = Readers::Instances(isolation);
        let inbox = Inbox::new(name, self.segment_name(), payload_bytes, node_bytes, readers);
        let inbox = inbox.map_err(|error| ApplyError::NoRoom(error.to_string()))?;
        let domain = Domain::new(inbox);
        let members = self.members(&bases, &domain)?;
        if warm && let Err(error) = self.warm(&members).await {
            members.iter().for_each(|member| member.supersede());
            return Err(error);
        }
        match self.assemble(plan, stored, domain, &members) {
            Ok(chain) => Ok(chain),
            Err(error) => {
                members.iter().for_each(|member| member.supersede());
                Err(error)
            }
        }
    }

    fn members(
        self: &Rc<Self>,
        bases: &[Arc<Function>],
        domain: &Arc<Domain>,
    ) -> Result<Vec<Arc<Function>>, ApplyError> {
        let mut members: Vec<Arc<Function>> = Vec::with_capacity(bases.len());
        for base in bases {
            match self.place_on_bus(base.stored.clone(), base, domain) {
                Ok(member) => members.push(member),
                Err(error) => {
                    members.iter().for_each(|member| member.supersede());
                    return Err(error);
                }
            }
        }
        Ok(members)
    }

    /// A function beside `base`, that serves in a chain.
    fn place_on_bus(
        self: &Rc<Self>,
        stored: crate::store::StoredFunction,
        base: &Arc<Function>,
        domain: &Arc<Domain>,
    ) -> Result<Arc<Function>, ApplyError> {
        let index = self.free_index().map_err(|error| ApplyError::NoRoom(error.to_string()))?;
        let (inbox, history) = (Arc::clone(domain.inbox()), Arc::clone(&base.history));
        let counts = Arc::new(Counts::default());
        let member = Function::new(index, stored, inbox, history, counts, Some(Arc::clone(domain)));
        self.bus.functions[usize::from(index.0)].store(Some(Arc::clone(&member)));
        tend::spawn(Rc::clone(self), Arc::clone(&member), None);
        Ok(member)
    }

    fn assemble(
        self: &Rc<Self>,
        plan: Plan,
        stored: StoredChain,
        domain: Arc<Domain>,
        members: &[Arc<Function>],
    ) -> Result<Arc<Chain>, ApplyError> {
        let mut compiler = Compiler::new(members, &*self.bus.transport, &self.free_routes);
        let no_room = |error: CompileError| ApplyError::NoRoom(error.to_string());
        let stages = compiler.stages(&plan.stages).map_err(no_room)?;
        let triggers = compiler.triggers(&plan.triggers).map_err(no_room)?;
        let routes = compiler.into_routes();
        let entered: Option<Vec<Entered>> = members.iter().map(Function::enter).collect();
        let entered = entered.ok_or(ApplyError::ShuttingDown)?;
        let before = self.node.chain_named(plan.name.as_str());
        let (history, counts) = match &before {
            Some(before) => (Arc::clone(&before.history), Arc::clone(&before.counts)),
            None => {
                let history = History::new(plan.name.as_str(), Arc::clone(self.node.recorder()));
                (Arc::new(Mutex::new(history)), Arc::new(Counts::default()))
            }
        };
        Ok(Arc::new(Chain {
            version: before.map_or(1, |before| before.version + 1),
            bucket: Mutex::new(Bucket::new(triggers.len())),
            plan,
            stored,
            domain,
            stages,
            triggers,
            history,
            counts,
            dropped_values: AtomicU64::new(0),
            started: AtomicUsize::new(0),
            members: entered,
            routes,
        }))
    }

    /// Brings each member to an instance.
    async fn warm(&self, members: &[Arc<Function>]) -> Result<(), ApplyError> {
        let mut waits = Vec::with_capacity(members.len());
        for member in members {
            let (ready, warmed) = oneshot::channel();
            let tender = self.tended.borrow().get(&member.index).cloned();
            if let Some(tender) = tender {
                let _ = tender.send(ToTender::WarmThen(1, ready));
            }
            waits.push(warmed);
        }
        for (member, warmed) in members.iter().zip(waits) {
            let _ = warmed.await;
            let failed = member.zygote_state() == ZygoteState::Failed || member.instances().next().is_none();
            if failed {
                let why = member.problem().unwrap_or_else(|| "its process does not come up".to_owned());
                return Err(ApplyError::Function {
                    function: member.name().to_owned(),
                    source: Box::new(DeployError::ZygoteDied(why)),
                });
            }
        }
        Ok(())
    }

    /// Serves this version from now on.
    fn publish_chain(&self, chain: Arc<Chain>) {
        let name = chain.name().to_owned();
        if let Some(old) = self.node.publish_chain(chain) {
            old.supersede();
        }
        tracing::info!(chain = name, "applied");
    }

    /// Serves a chain no more, and waits until its last call has ended. Other chains change meanwhile.
    async fn end_chain(&self, name: &str) {
        let unpublished = {
            let _not_while_it_is_made_anew = self.chain_changes.lock().await;
            self.node.unpublish_chain(name)
        };
        let Some(chain) = unpublished else { return };
        let tenders: Vec<_> = {
            let tended = self.tended.borrow();
            chain.members.iter().filter_map(|member| tended.get(&member.index).cloned()).collect()
        };
        chain.supersede();
        drop(chain);
        for tender in tenders {
            // Closed when its task has ended everything.
            tender.closed().await;
        }
    }

    /// A function has a new version: the chains that it serves in get it, too.
    pub(super) async fn refresh_chains(self: &Rc<Self>, function: &str) {
        let _one_at_a_time = self.chain_changes.lock().await;
        let stale = self.node.served_chains();
        for old in
            stale.iter().filter(|chain| chain.plan.functions.iter().any(|name| name.as_str() == function))
        {
            let built = self.build_chain(old.plan.clone(), old.stored.clone(), true).await;
            match built {
                Ok(chain) => self.publish_chain(chain),
                Err(error) => {
                    tracing::error!(chain = old.name(), %error, "it goes on with the old version of {function}");
                }
            }
        }
    }
}
