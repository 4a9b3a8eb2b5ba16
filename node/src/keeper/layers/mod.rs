//! Package layers: what functions import is imported once, and their zygotes begin from there.
//!
//! The first zygote of a version starts by itself and says what it has imported ([`known`]). From what is known of all versions
//! follows which layers there should be (`spry_sched::layers`); they are made one after the other, beside everything else, and
//! let go of when they are in no plan any more. Later zygotes begin from the one that saves them most.
//!
//! A layer is a hint: a start that fails on one is tried again without, and nobody waits for one to be made. Its memory is
//! promised like any process's, until the last process is gone that shares it.

mod known;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spry_sched::layers::Measured;
use tokio::sync::Notify;

use super::{Keeper, memory, off_the_loop};
use crate::api::{LayerView, ZygoteStart};
use crate::config::{self, Config};
use crate::function::Function;
use crate::store::StoredFunction;
use crate::units::Size;
use crate::zygote::{Layer, LayerSpec, StartError, Zygote, ZygoteSpec};
use known::{Ground, GroundKey, Known, NamedPlan, Version, VersionKey};

/// Changes within this time are looked at together.
const SETTLE: Duration = Duration::from_millis(300);
/// Once layers had to go because memory was short, none is made for this long.
const SHORT_FOR: Duration = Duration::from_secs(60);
/// Of its functions' largest memory limit: importing takes its part, and what is written down is there twice.
const MEMORY_FACTOR: u64 = 2;
/// A layer that couldn't be begun from so often isn't made again.
const FAILURES_MAX: u32 = 2;

/// See the module.
pub(super) struct Layers {
    known: RefCell<Known>,
    grounds: RefCell<HashMap<GroundKey, Ground>>,
    built: RefCell<Vec<Built>>,
    refused: RefCell<HashMap<(GroundKey, Vec<String>), String>>,
    failures: RefCell<HashMap<(GroundKey, Vec<String>), u32>>,
    changed: Notify,
    not_before: Cell<Option<Instant>>,
    /// What is promised to the layer that is being made.
    making_bytes: Cell<u64>,
    /// Rung to have it given up.
    stop: Notify,
    next: Cell<u64>,
    /// Bytes of all layers at most; 0: there are none.
    budget_bytes: u64,
    /// Whom layers are made as, where functions have users of their own.
    uid_gid: Option<(u32, u32)>,
    path: PathBuf,
}

struct Built {
    ground: GroundKey,
    /// What it was to import, sorted: its name in plans.
    planned: Vec<String>,
    layer: Arc<Layer>,
    restore_ns: Cell<u64>,
}

impl Built {
    /// Whether it holds nothing that this version wouldn't import.
    fn is_part_of(&self, key: &VersionKey, version: &Version) -> bool {
        self.ground == *key.ground()
            && !version.alone
            && extra(self.layer.imports().modules.as_slice(), &version.modules).is_empty()
    }

    fn measured(&self) -> Measured {
        Measured {
            start_ns: self.layer.took().as_nanos() as u64,
            restore_ns: self.restore_ns.get(),
            bytes: self.layer.bytes(),
        }
    }
}

/// What is among the first, and not among the others.
fn extra<'a>(modules: &'a [String], others: &[String]) -> Vec<&'a str> {
    let others: HashSet<&str> = others.iter().map(String::as_str).collect();
    modules.iter().map(String::as_str).filter(|name| !others.contains(name)).collect()
}

impl Layers {
    pub(super) fn new(config: &Config, has_users: bool) -> Self {
        let uid = config.uid_base + config::raw::UID_COUNT + 1;
        let path = config.state_dir.join("imports.json");
        let budget_bytes = config.layers_memory().as_bytes();
        Self {
            known: RefCell::new(if budget_bytes > 0 { Known::read(&path) } else { Known::default() }),
            grounds: RefCell::default(),
            built: RefCell::default(),
            refused: RefCell::default(),
            failures: RefCell::default(),
            changed: Notify::new(),
            not_before: Cell::new(None),
            making_bytes: Cell::new(0),
            stop: Notify::new(),
            next: Cell::new(0),
            budget_bytes,
            uid_gid: has_users.then_some((uid, uid)),
            path,
        }
    }

    /// Who this is, if it may have a layer.
    fn key(&self, stored: &StoredFunction, spec: &ZygoteSpec) -> Option<(VersionKey, Ground)> {
        if self.budget_bytes == 0 {
            return None;
        }
        let (key, ground) = Ground::of(spec)?;
        Some((VersionKey::of(stored, &key), ground))
    }

    /// A version has started so: by itself when `said` is what it said then.
    fn started(&self, key: VersionKey, ground: Ground, said: Option<Version>) {
        let (mut known, now) = (self.known.borrow_mut(), Instant::now());
        self.grounds.borrow_mut().insert(key.ground().clone(), ground);
        match said {
            Some(version) => known.learn(key, version, now),
            None => known.started(&key, now),
        }
        self.changed.notify_one();
    }

    /// The layer that saves this version most.
    fn choose(&self, key: &VersionKey) -> Option<Arc<Layer>> {
        let (known, built) = (self.known.borrow(), self.built.borrow());
        let version = known.get(key)?;
        let usable = built.iter().filter(|built| built.is_part_of(key, version));
        usable.max_by_key(|built| built.layer.took()).map(|built| Arc::clone(&built.layer))
    }

    /// A version has begun from it.
    fn restored(&self, layer: &Arc<Layer>, took: Duration) {
        let built = self.built.borrow();
        if let Some(built) = built.iter().find(|built| Arc::ptr_eq(&built.layer, layer)) {
            built.restore_ns.set(took.as_nanos() as u64);
        }
    }

    /// A start on it failed that did well without.
    fn failed(&self, layer: &Arc<Layer>, key: &VersionKey, error: &StartError) {
        let StartError::Layer { why } = error else {
            // The function's own doing, so far as can be told: it stays the only one.
            return self.known.borrow_mut().leave_alone(key);
        };
        let mut built = self.built.borrow_mut();
        let Some(at) = built.iter().position(|built| Arc::ptr_eq(&built.layer, layer)) else { return };
        let Built { ground, planned, .. } = built.swap_remove(at);
        let mut failures = self.failures.borrow_mut();
        let count = failures.entry((ground.clone(), planned.clone())).or_default();
        *count += 1;
        if *count >= FAILURES_MAX {
            self.refused.borrow_mut().insert((ground, planned), why.clone());
        }
    }

    /// Memory is short: lets go of layers that no process shares, and of the one that is being made. Returns how much
    /// will come back.
    pub(super) fn give_way(&self) -> u64 {
        self.not_before.set(Some(Instant::now() + SHORT_FOR));
        let mut bytes = self.making_bytes.get();
        if bytes > 0 {
            self.stop.notify_one();
        }
        self.built.borrow_mut().retain(|built| {
            let is_shared = Arc::strong_count(&built.layer) > 1;
            bytes += if is_shared { 0 } else { built.layer.bytes() };
            is_shared
        });
        bytes
    }

    /// Whether layers have given way of late.
    fn is_short(&self) -> bool {
        self.not_before.get().is_some_and(|at| at > Instant::now())
    }

    /// Lets go of all. The node ends.
    pub(super) fn close(&self) {
        self.built.borrow_mut().clear();
        self.changed.notify_one();
    }

    /// What has to be made next; what isn't wanted any more goes.
    fn next(&self) -> Option<NamedPlan> {
        let grounds: HashSet<GroundKey> = self.grounds.borrow().keys().cloned().collect();
        let there: Vec<_> = {
            let built = self.built.borrow();
            built.iter().map(|one| (one.ground.clone(), one.planned.clone(), one.measured())).collect()
        };
        let planned = self.known.borrow().plan(&grounds, &there, self.budget_bytes, Instant::now());
        let is =
            |built: &Built, plan: &NamedPlan| built.ground == plan.ground && built.planned == plan.modules;
        let mut built = self.built.borrow_mut();
        built.retain(|built| planned.iter().any(|plan| is(built, plan)));
        let refused = self.refused.borrow();
        planned.into_iter().find(|plan| {
            let is_refused = refused.contains_key(&(plan.ground.clone(), plan.modules.clone()));
            !is_refused && !built.iter().any(|built| is(built, plan))
        })
    }
}

impl Keeper {
    /// Starts a function's zygote: from a layer, if there is one for it.
    pub(super) async fn start_process(
        &self,
        function: &Function,
        spec: &ZygoteSpec,
    ) -> Result<Zygote, StartError> {
        let Some((key, ground)) = self.layers.key(&function.stored, spec) else {
            let begun = Instant::now();
            let zygote = Zygote::start(&self.executor, spec).await?;
            function.set_start(ZygoteStart::alone(begun.elapsed(), None));
            return Ok(zygote);
        };
        // What runs before its system calls are filtered must be spry's: its instances couldn't be rewound.
        let chosen = self.layers.choose(&key).filter(|_| spec.rewind.is_err());
        let mut failed = None;
        if let Some(layer) = &chosen {
            let begun = Instant::now();
            match Zygote::start_on(&self.executor, spec, layer).await {
                Ok(zygote) => {
                    let took = begun.elapsed();
                    self.layers.restored(layer, zygote.restored_after().unwrap_or(took));
                    let alone_ns = self.layers.known.borrow().get(&key).map(|version| version.start_ns);
                    function.set_start(ZygoteStart {
                        took_ms: took.as_secs_f64() * 1e3,
                        layer_modules: Some(layer.imports().modules.len() as u32),
                        alone_ms: alone_ns.map(|ns| ns as f64 / 1e6),
                        problem: None,
                    });
                    self.layers.started(key, ground, None);
                    return Ok(zygote);
                }
                Err(error) => failed = Some((layer, error)),
            }
        }
        let begun = Instant::now();
        let zygote = Zygote::start(&self.executor, spec).await?;
        let took = begun.elapsed();
        let problem = failed.as_ref().map(|(_, error)| error.to_string());
        if let Some((layer, error)) = failed {
            tracing::warn!(function = function.name(), %error, "a zygote couldn't begin from its layer, and did by itself");
            self.layers.failed(layer, &key, &error);
        }
        function.set_start(ZygoteStart::alone(took, problem));
        let limit_bytes = spec.limits.memory_bytes;
        let version = Version::new(
            zygote.imports().modules.clone(),
            took,
            memory::held_bytes(zygote.pid()).unwrap_or(limit_bytes),
            limit_bytes,
        );
        self.layers.started(key, ground, Some(version));
        Ok(zygote)
    }

    /// A function is gone: what was made for it may go.
    pub(super) fn layers_changed(&self) {
        self.layers.changed.notify_one();
    }

    /// Makes the layers that there should be, until the node ends.
    pub(super) async fn tend_layers(self: Rc<Self>) {
        if self.layers.budget_bytes == 0 {
            return;
        }
        while !self.closing.get() {
            self.layers.changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            self.forget_imports();
            while !self.closing.get() && self.make_layer().await {}
            self.show_layers();
            let (text, path) = (self.layers.known.borrow().text(), self.layers.path.clone());
            let written = off_the_loop(move || write_down(&path, &text)).await;
            if let Err(error) = written {
                tracing::warn!(%error, "what functions import isn't remembered over a restart");
            }
        }
    }

    /// Forgets what no function on the bus imports.
    fn forget_imports(&self) {
        let functions = self.functions_on_the_bus();
        let mut known = self.layers.known.borrow_mut();
        known.retain(|key| functions.iter().any(|function| key.is_of(&function.stored)));
        let mut grounds = self.layers.grounds.borrow_mut();
        grounds.retain(|ground, _| known.has_ground(ground));
        self.layers.refused.borrow_mut().retain(|(ground, _), _| grounds.contains_key(ground));
        self.layers.failures.borrow_mut().retain(|(ground, _), _| grounds.contains_key(ground));
    }

    fn functions_on_the_bus(&self) -> Vec<Arc<Function>> {
        self.bus.functions.iter().filter_map(|entry| entry.load_full()).collect()
    }

    /// Makes one layer. False: there is nothing to make, or no memory.
    async fn make_layer(&self) -> bool {
        let Some(plan) = self.layers.next() else { return false };
        if self.layers.is_short() {
            return false;
        }
        let ground = self.layers.grounds.borrow().get(&plan.ground).cloned();
        let Some(ground) = ground else { return false };
        let limit_bytes = {
            let known = self.layers.known.borrow();
            let versions = plan.versions.iter().filter_map(|key| known.get(key));
            versions.map(|version| version.limit_bytes).max().unwrap_or(0)
        };
        let memory_bytes = limit_bytes.saturating_mul(MEMORY_FACTOR);
        let promise = match self.memory.budget.promise(memory_bytes) {
            Ok(promise) => promise,
            Err(short) => {
                tracing::debug!(%short, "no layer is made now");
                return false;
            }
        };
        let number = self.layers.next.replace(self.layers.next.get() + 1);
        let spec = LayerSpec {
            name: format!("_layer-{number}"),
            interpreter: ground.interpreter,
            packages: ground.packages,
            env: ground.env,
            uid_gid: self.layers.uid_gid,
            memory_bytes,
            modules: plan.modules.clone(),
        };
        self.layers.making_bytes.set(memory_bytes);
        let made = Layer::make(&self.executor, spec, promise, &self.layers.stop).await;
        self.layers.making_bytes.set(0);
        if self.closing.get() || (made.is_err() && self.layers.is_short()) {
            return false;
        }
        let problem = match made {
            Ok(layer) => self.keep_layer(&plan, layer).err(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            tracing::info!(problem, "there is no layer of what some functions import");
            self.layers.refused.borrow_mut().insert((plan.ground, plan.modules), problem);
        }
        true
    }

    /// Takes a layer into use; an error when it is of use to nobody.
    fn keep_layer(&self, plan: &NamedPlan, layer: Layer) -> Result<(), String> {
        let known = self.layers.known.borrow();
        let built = Built {
            ground: plan.ground.clone(),
            planned: plan.modules.clone(),
            layer: Arc::new(layer),
            restore_ns: Cell::new(0),
        };
        let versions = || plan.versions.iter().filter_map(|key| Some((key, known.get(key)?)));
        if !versions().any(|(key, version)| built.is_part_of(key, version)) {
            let modules = built.layer.imports().modules.as_slice();
            let brought = versions().next().map(|(_, version)| extra(modules, &version.modules));
            let mut brought = brought.unwrap_or_default();
            brought.truncate(5);
            return Err(format!("importing brings more than the functions import: {}", brought.join(", ")));
        }
        tracing::info!(
            modules = built.layer.imports().modules.len(),
            bytes = built.layer.bytes(),
            took_ms = built.layer.took().as_millis() as u64,
            "a package layer was made"
        );
        drop(known);
        self.layers.built.borrow_mut().push(built);
        Ok(())
    }

    /// Has `spry status` and the metrics say which layers there are.
    fn show_layers(&self) {
        let functions = self.functions_on_the_bus();
        let known = self.layers.known.borrow();
        let named = |uses: &dyn Fn(&VersionKey, &Version) -> bool| -> (Vec<String>, Vec<String>) {
            let users = functions.iter().filter(|function| {
                known.iter().any(|(key, version)| key.is_of(&function.stored) && uses(key, version))
            });
            let mut names: Vec<String> = users.clone().map(|function| function.name().to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            let packages = users.map(|function| &function.stored.manifest.packages).next();
            let packages = packages.map(|packages| packages.iter().map(ToString::to_string).collect());
            (names, packages.unwrap_or_default())
        };
        let mut views: Vec<LayerView> = Vec::new();
        for built in self.layers.built.borrow().iter() {
            let uses = |key: &VersionKey, version: &Version| built.is_part_of(key, version);
            let (functions, packages) = named(&uses);
            views.push(LayerView {
                packages,
                functions,
                modules: built.layer.imports().modules.len() as u32,
                memory: Size::bytes(built.layer.bytes()),
                took_ms: built.layer.took().as_secs_f64() * 1e3,
                problem: None,
            });
        }
        for ((ground, modules), problem) in self.layers.refused.borrow().iter() {
            let uses = |key: &VersionKey, version: &Version| {
                key.ground() == ground && extra(modules, &version.modules).is_empty()
            };
            let (functions, packages) = named(&uses);
            views.push(LayerView {
                packages,
                functions,
                modules: modules.len() as u32,
                memory: Size::default(),
                took_ms: 0.0,
                problem: Some(problem.clone()),
            });
        }
        views.sort_by(|one, other| one.functions.cmp(&other.functions));
        self.node.set_layers(views);
    }
}

/// Whole, or as it was.
fn write_down(path: &std::path::Path, text: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
