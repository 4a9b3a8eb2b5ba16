//! The smallest engine that is true to the contract: what is deployed and applied is stored and shown, nothing runs.
//!
//! Python code whose text has a tab in its first column "can't be loaded", so that a refused deploy can be seen.

use std::sync::Arc;
use std::time::Duration;

use spry_node::api::{
    ActivationView, Applied, ApplyError, Calls, ChainView, DeployError, Deployed, Engine, FunctionState,
    FunctionView, Instances, LogLine, LogPage, LogStream, MemberView, ProcessUsage, RemoveError, Reply,
    SchedulerView, StartKind, StatusView, Unavailable, UsageView, ZygoteState,
};
use spry_node::manifest::Name;
use spry_node::progress::Progress;
use spry_node::records::{Filter, StoredResult};
use spry_node::store::{Leaving, PlannedChain, Recalled, Staged, Store, StoredFunction};
use spry_node::units::Size;
use tokio::sync::watch;

/// The call that is remembered.
pub(crate) const CALL: &str = "0123456789abcdef0000000000000001";

/// An engine that keeps functions, and one call with its two lines.
pub(crate) struct Shelf {
    store: Arc<Store>,
    /// How many lines have been written; followers wait for it to grow.
    lines: watch::Sender<u64>,
}

impl Shelf {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, lines: watch::Sender::new(2) }
    }

    /// One more line of output.
    pub(crate) fn write_line(&self) {
        self.lines.send_modify(|count| *count += 1);
    }

    fn views(&self) -> Vec<FunctionView> {
        self.store.functions().expect("the store answers").iter().map(view).collect()
    }

    fn chain_views(&self) -> Vec<ChainView> {
        let plans = self.store.plans().expect("the store answers").into_iter();
        let views = plans.map(|(stored, plan)| match plan {
            Err(error) => ChainView::broken(&stored, error.to_string()),
            Ok(plan) => {
                let mut view = ChainView::new(&stored, &plan);
                view.functions = plan.functions.iter().map(|name| self.member(name)).collect();
                view
            }
        });
        views.collect()
    }

    fn member(&self, name: &Name) -> MemberView {
        let stored =
            self.store.function(name.as_str()).expect("the store answers").expect("it can't be removed");
        MemberView {
            name: name.to_string(),
            version: stored.version,
            instances: Instances { idle: 1, busy: 2, starting: 3 },
            zygote: ZygoteState::Ready,
            queued: 4,
            problem: None,
        }
    }
}

fn view(stored: &StoredFunction) -> FunctionView {
    let manifest = stored.manifest.clone();
    FunctionView {
        name: manifest.name.to_string(),
        version: stored.version,
        sha256: stored.sha256.clone(),
        runtime: manifest.runtime,
        handler: manifest.handler,
        isolation: manifest.isolation,
        limits: manifest.limits,
        scale: manifest.scale,
        env: manifest.env.into_keys().collect(),
        egress: manifest.network.egress,
        packages: manifest.packages,
        installed: None,
        secrets: manifest.secrets,
        state: FunctionState::Ready,
        problem: None,
        instances: Instances::default(),
        zygote: ZygoteState::None,
        frozen: None,
        start: None,
        rewound: None,
        queued: 0,
        calls: Calls::default(),
        deployed_unix_ms: stored.deployed_unix_ms,
        versions: Vec::new(),
    }
}

fn line(number: u64) -> LogLine {
    LogLine {
        number,
        at_unix_ms: 1_763_699_400_123,
        call_id: Some(CALL.into()),
        stream: if number.is_multiple_of(2) { LogStream::Stdout } else { LogStream::Stderr },
        text: format!("line {number} \u{1b}[31m"),
    }
}

fn call() -> ActivationView {
    ActivationView {
        call_id: CALL.into(),
        function: "hello".into(),
        version: 1,
        started_unix_ms: 1_763_699_400_123,
        start: Some(StartKind::Forked),
        queue_ms: 0.0,
        start_ms: 1.25,
        exec_ms: 0.5,
        status: 500,
        error: Some("function_failed".into()),
        cpu_ms: Some(0.25),
        memory_peak: None,
        steps: vec![],
        later: None,
        logs: vec![line(0), line(1)],
    }
}

fn now<'a, T: Send + 'a>(value: T) -> Reply<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Engine for Shelf {
    fn deploy(&self, staged: Staged, progress: Progress) -> Reply<'_, Result<Deployed, DeployError>> {
        Box::pin(async move {
            progress.say("starting its zygote …");
            let module = staged.manifest().handler.split(':').next().unwrap_or_default().to_owned();
            let text =
                std::fs::read_to_string(staged.code().join(format!("{module}.py"))).unwrap_or_default();
            if text.lines().any(|line| line.starts_with('\t')) {
                return Err(DeployError::Code("Traceback (most recent call last):\nTabError".into()));
            }
            let before = self.store.function(staged.manifest().name.as_str())?.map(|stored| stored.version);
            let stored = self.store.commit(staged)?;
            self.store.prune(&stored.manifest.name, &Default::default())?;
            let runtime_version = "no runtime".into();
            Ok(Deployed { function: view(&stored), runtime_version, zygote_ms: 0.0, replaced: before })
        })
    }
    fn roll_back(&self, recalled: Recalled, _: Progress) -> Reply<'_, Result<Deployed, DeployError>> {
        Box::pin(async move {
            let name = recalled.function().manifest.name.as_str();
            let replaced = self.store.function(name)?.map(|stored| stored.version);
            let stored = self.store.roll_back(&recalled)?;
            let runtime_version = "no runtime".into();
            Ok(Deployed { function: view(&stored), runtime_version, zygote_ms: 0.0, replaced })
        })
    }
    fn remove<'a>(&'a self, name: &'a Name) -> Reply<'a, Result<(), RemoveError>> {
        let known = self.store.function(name.as_str()).expect("the store answers").is_some();
        now(match known {
            true => self.store.remove(name).and_then(Leaving::clear).map_err(RemoveError::from),
            false => Err(RemoveError::NoSuchFunction(name.to_string())),
        })
    }
    fn apply_chain(&self, planned: PlannedChain) -> Reply<'_, Result<Applied, ApplyError>> {
        Box::pin(async move {
            let name = planned.plan.name.as_str();
            let replaced = self.chain_views().iter().any(|view| view.name == name);
            self.store.commit_chain(&planned)?;
            let chain = self.chain_views().into_iter().find(|view| view.name == name).expect("just applied");
            let dependents = planned.dependents.iter().map(|plan| plan.name.to_string()).collect();
            Ok(Applied { chain, replaced, dependents })
        })
    }
    fn remove_chain<'a>(&'a self, name: &'a Name) -> Reply<'a, Result<(), RemoveError>> {
        now(self.store.remove_chain(name).map_err(RemoveError::from))
    }
    fn chains(&self) -> Reply<'_, Vec<ChainView>> {
        now(self.chain_views())
    }
    fn chain<'a>(&'a self, name: &'a str) -> Reply<'a, Option<ChainView>> {
        now(self.chain_views().into_iter().find(|view| view.name == name))
    }
    fn functions(&self) -> Reply<'_, Vec<FunctionView>> {
        now(self.views())
    }
    fn function<'a>(&'a self, name: &'a str) -> Reply<'a, Option<FunctionView>> {
        now(self.views().into_iter().find(|view| view.name == name))
    }
    fn usage(&self) -> Reply<'_, Result<UsageView, Unavailable>> {
        let none = ProcessUsage::default();
        now(Ok(UsageView {
            at_unix_ms: 1,
            uptime_ms: 61_000,
            transport: "broker".into(),
            cpus: 1,
            spryd: none,
            bounds_ms: vec![1.0],
            all: Vec::new(),
        }))
    }

    fn status(&self) -> Reply<'_, StatusView> {
        now(StatusView {
            version: "0.1.0".into(),
            pid: std::process::id(),
            uptime_ms: 61_000,
            listen: "127.0.0.1:8080".into(),
            state_dir: self.store.state_dir().display().to_string(),
            transport: "broker".into(),
            tls: false,
            passed_over: vec![],
            workers: 1,
            cgroup: "none".into(),
            scheduler: SchedulerView::default(),
            functions: self.views().len() as u32,
            instances: Instances::default(),
            queued: 0,
            memory_promised: Size::mib(1536),
            memory_budget: Size::gib(2),
            keepalive: "ttl".into(),
            layers: vec![],
            layers_memory: Size::default(),
            calls: Calls::default(),
            records: Default::default(),
            later: Default::default(),
        })
    }
    fn activations(&self, filter: Filter, limit: usize) -> Reply<'_, Vec<ActivationView>> {
        let fits = limit > 0 && filter.function.is_none_or(|name| name == "hello");
        now(if fits { vec![ActivationView { logs: vec![], ..call() }] } else { vec![] })
    }
    fn activation<'a>(&'a self, call_id: &'a str) -> Reply<'a, Option<ActivationView>> {
        now((call_id == CALL).then(call))
    }
    fn result<'a>(&'a self, _: &'a str) -> Reply<'a, Option<StoredResult>> {
        now(None)
    }
    fn logs<'a>(
        &'a self,
        name: &'a str,
        since: Option<u64>,
        limit: usize,
        wait: Duration,
    ) -> Reply<'a, Option<LogPage>> {
        Box::pin(async move {
            if name != "hello" {
                return None;
            }
            let mut lines = self.lines.subscribe();
            let from = since.unwrap_or_else(|| lines.borrow().saturating_sub(limit as u64));
            let _ = tokio::time::timeout(wait, lines.wait_for(|count| *count > from)).await;
            let count = *lines.borrow();
            let lines: Vec<LogLine> = (from..count).take(limit).map(line).collect();
            let next = from + lines.len() as u64;
            Some(LogPage { lines, next, missed: 0 })
        })
    }
}
