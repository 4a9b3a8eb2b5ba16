//! The node as the control API sees it: the name table, and answers to "what is there".
//!
//! What changes the node goes to the keeper by message; what only looks is answered here, on the asking thread.

mod show;
mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use shm_bus::transport::{BusError, Kind};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::api::{
    ActivationView, Applied, ApplyError, Calls, ChainView, DeployError, Deployed, Engine, FunctionView,
    Instances, LayerView, LogLine, LogPage, PassedOver, RemoveError, Reply, StatusView, Unavailable,
    UsageView,
};
use crate::budget::Budget;
use crate::calls::policy::Policy;
use crate::calls::runner::Callees;
use crate::chain::Chain;
use crate::config::Config;
use crate::dispatch::Bus;
use crate::function::{Entered, Function};
use crate::gateway::call_id::CallId;
use crate::keeper::ToKeeper;
use crate::manifest::Name;
use crate::progress::Progress;
use crate::records::{Filter, Recorder, StoredResult};
use crate::store::{PlannedChain, Recalled, Staged};
use crate::units::Size;
use show::{activation, add, calls, instances, log_line, stored_line};
pub use show::{chain_view, scheduler, view};

/// The functions that are served now, by name.
type Names = BTreeMap<String, Arc<Function>>;

/// The chains that are served now, by name.
type Chains = BTreeMap<String, Arc<Chain>>;

/// What never changes while the node runs.
pub struct Fixed {
    /// The configuration that it started with.
    pub config: Config,
    /// The address that it really listens on.
    pub listen: std::net::SocketAddr,
    /// The better transports, and why they are not used.
    pub passed_over: Vec<(Kind, BusError)>,
    /// What limits processes, in words.
    pub cgroup: String,
    /// Keeps records of calls.
    pub recorder: Arc<Recorder>,
    /// Where CPU times come from, in words.
    pub signals: String,
}

/// The running node.
pub struct Node {
    fixed: Fixed,
    config: ArcSwap<Config>,
    started: Instant,
    names: ArcSwap<Names>,
    chains: ArcSwap<Chains>,
    /// Chains that are stored and can't be served.
    broken: Mutex<BTreeMap<String, ChainView>>,
    layers: Mutex<Vec<LayerView>>,
    bus: Arc<Bus>,
    budget: Arc<Budget>,
    keeper: UnboundedSender<ToKeeper>,
}

impl Node {
    /// A node that serves nothing yet.
    pub fn new(
        fixed: Fixed,
        bus: Arc<Bus>,
        budget: Arc<Budget>,
        keeper: UnboundedSender<ToKeeper>,
    ) -> Arc<Self> {
        let (names, chains) = (ArcSwap::default(), ArcSwap::default());
        let config = ArcSwap::from_pointee(fixed.config.clone());
        Arc::new(Self {
            fixed,
            config,
            started: Instant::now(),
            names,
            chains,
            broken: Mutex::default(),
            layers: Mutex::default(),
            bus,
            budget,
            keeper,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Its configuration from now on; see [`Config::with_live_of`].
    pub fn set_config(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// Keeps records of calls.
    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.fixed.recorder
    }

    /// Since its start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The bus.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// Uses the function of that name; its current version, whatever is being deployed.
    pub fn enter(&self, name: &str) -> Option<Entered> {
        loop {
            let names = self.names.load();
            if let Some(entered) = names.get(name)?.enter() {
                return Some(entered);
            }
            // It ended between the two steps: a newer version, or none, is in the table by now.
            std::hint::spin_loop();
        }
    }

    /// Says which package layers there are from now on.
    pub(crate) fn set_layers(&self, layers: Vec<LayerView>) {
        *self.layers.lock() = layers;
    }

    /// The package layers that there are, and those that can't be.
    pub fn layers(&self) -> Vec<LayerView> {
        self.layers.lock().clone()
    }

    /// The function of that name.
    pub fn named(&self, name: &str) -> Option<Arc<Function>> {
        self.names.load().get(name).cloned()
    }

    /// All functions.
    pub fn all(&self) -> Vec<Arc<Function>> {
        self.names.load().values().cloned().collect()
    }

    /// Serves this version under its name from now on; returns the one that served before.
    /// Only the keeper's thread changes the table.
    pub(crate) fn publish(&self, function: Arc<Function>) -> Option<Arc<Function>> {
        let mut names = Names::clone(&self.names.load());
        let before = names.insert(function.name().to_owned(), function);
        self.names.store(Arc::new(names));
        before
    }

    /// Serves that name no more.
    pub(crate) fn unpublish(&self, name: &str) -> Option<Arc<Function>> {
        let mut names = Names::clone(&self.names.load());
        let before = names.remove(name);
        self.names.store(Arc::new(names));
        before
    }

    /// The chain of that name.
    pub fn chain_named(&self, name: &str) -> Option<Arc<Chain>> {
        self.chains.load().get(name).cloned()
    }

    /// Whether there is a chain of that name, whether it serves or not.
    pub fn has_chain(&self, name: &str) -> bool {
        self.chain_named(name).is_some() || self.broken.lock().contains_key(name)
    }

    /// Shows a stored chain that can't be served.
    pub(crate) fn set_broken(&self, view: ChainView) {
        self.broken.lock().insert(view.name.clone(), view);
    }

    /// All chains that are served.
    pub fn served_chains(&self) -> Vec<Arc<Chain>> {
        self.chains.load().values().cloned().collect()
    }

    /// As [`Self::publish`], for chains.
    pub(crate) fn publish_chain(&self, chain: Arc<Chain>) -> Option<Arc<Chain>> {
        let mut chains = Chains::clone(&self.chains.load());
        self.broken.lock().remove(chain.name());
        let before = chains.insert(chain.name().to_owned(), chain);
        self.chains.store(Arc::new(chains));
        before
    }

    /// As [`Self::unpublish`], for chains.
    pub(crate) fn unpublish_chain(&self, name: &str) -> Option<Arc<Chain>> {
        let mut chains = Chains::clone(&self.chains.load());
        self.broken.lock().remove(name);
        let before = chains.remove(name);
        self.chains.store(Arc::new(chains));
        before
    }

    fn log_page(&self, name: &str, since: Option<u64>, limit: usize) -> Option<LogPage> {
        let function = self.named(name)?;
        let history = function.history.lock();
        let (from, skip) = match since {
            Some(from) => (from, 0),
            None => (0, history.lines_from(0).count().saturating_sub(limit)),
        };
        let lines: Vec<LogLine> = history.lines_from(from).skip(skip).take(limit).map(log_line).collect();
        let first = lines.first().map_or(history.next_line(), |line| line.number);
        let next = lines.last().map_or(history.next_line().max(from), |line| line.number + 1);
        let missed = since.map_or(0, |since| first.saturating_sub(since));
        Some(LogPage { lines, next, missed })
    }
}

/// Calls of a chain that run at once, when nothing says otherwise.
const CHAIN_IN_FLIGHT: u32 = 8;

impl Callees for Node {
    fn policy(&self, name: &str) -> Option<Policy> {
        let (mut policy, in_flight) = match self.named(name) {
            Some(function) => {
                let manifest = &function.stored.manifest;
                (manifest.asynchronous, manifest.scale.max)
            }
            None if self.has_chain(name) => (self.config().defaults.asynchronous, CHAIN_IN_FLIGHT),
            None => return None,
        };
        if policy.in_flight == 0 {
            policy.in_flight = in_flight;
        }
        Some(policy)
    }

    fn payload(&self, name: &str) -> Option<u64> {
        match self.named(name) {
            Some(function) => Some(function.stored.manifest.limits.payload.as_bytes()),
            None => self.chain_named(name).map(|chain| chain.plan.payload_bytes),
        }
    }
}

/// What was read, or nothing and a word in the log.
fn readable<T: Default>(found: Result<rusqlite::Result<T>, tokio::task::JoinError>) -> T {
    match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::error!(%error, "the records of calls can't be read");
            T::default()
        }
        Err(_) => T::default(),
    }
}

/// As in the configuration, in `spry status` and in the fork message.
pub fn transport_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Sockmap => "sockmap",
        Kind::Futex => "futex",
        Kind::Broker => "broker",
    }
}

impl Engine for Node {
    fn deploy(&self, staged: Staged, progress: Progress) -> Reply<'_, Result<Deployed, DeployError>> {
        let (done, answer) = oneshot::channel();
        let sent = self.keeper.send(ToKeeper::Deploy { staged: Box::new(staged), progress, done });
        Box::pin(async move {
            sent.map_err(|_| DeployError::ShuttingDown)?;
            answer.await.unwrap_or(Err(DeployError::ShuttingDown))
        })
    }

    fn roll_back(&self, recalled: Recalled, progress: Progress) -> Reply<'_, Result<Deployed, DeployError>> {
        let (done, answer) = oneshot::channel();
        let sent = self.keeper.send(ToKeeper::RollBack { recalled: Box::new(recalled), progress, done });
        Box::pin(async move {
            sent.map_err(|_| DeployError::ShuttingDown)?;
            answer.await.unwrap_or(Err(DeployError::ShuttingDown))
        })
    }

    fn remove<'a>(&'a self, name: &'a Name) -> Reply<'a, Result<(), RemoveError>> {
        let (done, answer) = oneshot::channel();
        let sent = self.keeper.send(ToKeeper::Remove { name: name.clone(), done });
        Box::pin(async move {
            let gone = || RemoveError::NoSuchFunction(name.to_string());
            sent.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        })
    }

    fn functions(&self) -> Reply<'_, Vec<FunctionView>> {
        let views = self.all().iter().map(|function| view(function)).collect();
        Box::pin(std::future::ready(views))
    }

    fn function<'a>(&'a self, name: &'a str) -> Reply<'a, Option<FunctionView>> {
        Box::pin(std::future::ready(self.named(name).map(|function| view(&function))))
    }

    fn apply_chain(&self, planned: PlannedChain) -> Reply<'_, Result<Applied, ApplyError>> {
        let (done, answer) = oneshot::channel();
        let sent = self.keeper.send(ToKeeper::ApplyChain { planned: Box::new(planned), done });
        Box::pin(async move {
            sent.map_err(|_| ApplyError::ShuttingDown)?;
            answer.await.unwrap_or(Err(ApplyError::ShuttingDown))
        })
    }

    fn remove_chain<'a>(&'a self, name: &'a Name) -> Reply<'a, Result<(), RemoveError>> {
        let (done, answer) = oneshot::channel();
        let sent = self.keeper.send(ToKeeper::RemoveChain { name: name.clone(), done });
        Box::pin(async move {
            let gone = || RemoveError::NoSuchChain(name.to_string());
            sent.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        })
    }

    fn chains(&self) -> Reply<'_, Vec<ChainView>> {
        let served = self.served_chains();
        let mut views: Vec<_> = served.iter().map(|chain| chain_view(chain, &*self.bus.transport)).collect();
        views.extend(self.broken.lock().values().cloned());
        views.sort_by(|one, other| one.name.cmp(&other.name));
        Box::pin(std::future::ready(views))
    }

    fn chain<'a>(&'a self, name: &'a str) -> Reply<'a, Option<ChainView>> {
        let served = self.chain_named(name).map(|chain| chain_view(&chain, &*self.bus.transport));
        let view = served.or_else(|| self.broken.lock().get(name).cloned());
        Box::pin(std::future::ready(view))
    }

    fn status(&self) -> Reply<'_, StatusView> {
        let all = self.all();
        let mut sum = Instances::default();
        let mut total = Calls::default();
        for function in &all {
            let one = instances(function);
            sum.idle += one.idle;
            sum.busy += one.busy;
            sum.starting += one.starting;
            add(&mut total, calls(&function.counts));
        }
        for chain in self.served_chains() {
            let view = chain_view(&chain, &*self.bus.transport);
            add(&mut total, view.calls);
            for shown in view.functions {
                sum.idle += shown.instances.idle;
                sum.busy += shown.instances.busy;
                sum.starting += shown.instances.starting;
            }
        }
        let view = StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: self.uptime().as_millis() as u64,
            listen: self.fixed.listen.to_string(),
            state_dir: self.fixed.config.state_dir.display().to_string(),
            transport: transport_name(self.bus.transport.kind()).to_owned(),
            passed_over: self
                .fixed
                .passed_over
                .iter()
                .map(|(kind, why)| PassedOver {
                    name: transport_name(*kind).to_owned(),
                    why: why.to_string(),
                })
                .collect(),
            tls: self.fixed.config.tls.is_some(),
            workers: self.fixed.config.workers as u32,
            cgroup: self.fixed.cgroup.clone(),
            scheduler: scheduler(&self.bus, &self.fixed.signals),
            functions: all.len() as u32,
            instances: sum,
            queued: self.bus.queued() as u64,
            memory_promised: Size::bytes(self.budget.promised_bytes()),
            memory_budget: Size::bytes(self.budget.limit_bytes()),
            keepalive: self.fixed.config.keepalive.name().to_owned(),
            layers: self.layers(),
            layers_memory: self.fixed.config.layers_memory(),
            calls: total,
            records: self.fixed.recorder.counts(),
            later: Default::default(),
        };
        Box::pin(std::future::ready(view))
    }

    fn usage(&self) -> Reply<'_, Result<UsageView, Unavailable>> {
        let (functions, chains) = (self.all(), self.served_chains());
        let (transport, uptime) = (Arc::clone(&self.bus.transport), self.uptime());
        Box::pin(async move {
            // It reads files: beside the event loop.
            let look = move || usage::usage(&functions, &chains, &*transport, uptime);
            tokio::task::spawn_blocking(look).await.map_err(|_| Unavailable)
        })
    }

    fn activations(&self, filter: Filter, limit: usize) -> Reply<'_, Vec<ActivationView>> {
        let recorder = Arc::clone(&self.fixed.recorder);
        Box::pin(async move {
            let found = tokio::task::spawn_blocking(move || recorder.list(&filter, limit)).await;
            readable(found).iter().map(activation).collect()
        })
    }

    fn activation<'a>(&'a self, call_id: &'a str) -> Reply<'a, Option<ActivationView>> {
        let recorder = Arc::clone(&self.fixed.recorder);
        Box::pin(async move {
            let id = CallId::parse(call_id)?;
            let found = tokio::task::spawn_blocking(move || recorder.call(id)).await;
            let (records, lines) = readable(found);
            // The last attempt, with what all of them wrote.
            let mut view = activation(records.last()?);
            let numbered = lines.iter().zip(0..);
            view.logs = numbered.map(|(line, number)| stored_line(line, number)).collect();
            Some(view)
        })
    }

    fn result<'a>(&'a self, call_id: &'a str) -> Reply<'a, Option<StoredResult>> {
        let recorder = Arc::clone(&self.fixed.recorder);
        Box::pin(async move {
            let id = CallId::parse(call_id)?;
            readable(tokio::task::spawn_blocking(move || recorder.answer(id)).await)
        })
    }

    fn logs<'a>(
        &'a self,
        name: &'a str,
        since: Option<u64>,
        limit: usize,
        wait: Duration,
    ) -> Reply<'a, Option<LogPage>> {
        Box::pin(async move {
            let until = tokio::time::Instant::now() + wait;
            let news = self.named(name)?.history.lock().news();
            loop {
                // Before the look: a line that comes after it is not missed.
                let more = news.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                let page = self.log_page(name, since, limit)?;
                let waited = page.lines.is_empty() && tokio::time::timeout_at(until, more).await.is_ok();
                if !waited {
                    return Some(page);
                }
            }
        })
    }
}
