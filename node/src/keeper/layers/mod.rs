//! Package layers: what functions import is imported once, and their zygotes begin from there.
//!
//! The first zygote of a version starts by itself and says what it has imported ([`known`]). From what is known of all versions
//! follows which layers there should be (`spry_sched::layers`); they are made one after the other, beside everything else, and
//! let go of when they are in no plan any more. Later zygotes begin from the one that saves them most.
//!
//! A layer is a hint: a start that fails on one is tried again without, and nobody waits for one to be made. Its memory is
//! promised like any process's, until the last process is gone that shares it.

mod fit;
mod key;
mod known;
mod make;
mod numbers;
mod show;
mod start;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shm_bus::ids::FunctionIndex;
use spry_sched::keepalive::Cost;
use spry_sched::layers::Measured;
use tokio::sync::Notify;

use crate::config::{self, Config};
use crate::store::StoredFunction;
use crate::zygote::{Layer, StartError, ZygoteSpec};
use fit::Found;
use key::{Ground, GroundKey, LayerKey, VersionKey};
use known::{Known, NamedPlan, Version};

/// Changes within this time are looked at together.
const SETTLE: Duration = Duration::from_millis(300);
/// Once one that was being made had to go because memory was short, none is made for this long.
const SHORT_FOR: Duration = Duration::from_secs(60);
/// One that was pushed out isn't made again for this long: what was worth less then would be pushed out for it in turn.
const PUSHED_OUT_FOR: Duration = Duration::from_secs(3600);
/// Of its functions' largest memory limit: importing takes its part, and what is written down is there twice.
const MEMORY_FACTOR: u64 = 2;
/// A layer that couldn't be begun from so often isn't made again.
const FAILURES_MAX: u32 = 2;
/// Layers of which is remembered what they turned out to be.
const FOUND_MAX: usize = 512;

/// See the module.
pub(super) struct Layers {
    known: RefCell<Known>,
    grounds: RefCell<HashMap<GroundKey, Ground>>,
    built: RefCell<Vec<Built>>,
    /// What was found when they were made; also of those that have gone, so that plans don't forget whom these didn't suit, nor
    /// how little they saved.
    found: RefCell<HashMap<LayerKey, Found>>,
    refused: RefCell<HashMap<LayerKey, String>>,
    failures: RefCell<HashMap<LayerKey, u32>>,
    /// Until when those aren't made again that were pushed out.
    pushed_out: RefCell<HashMap<LayerKey, Instant>>,
    changed: Notify,
    not_before: Cell<Option<Instant>>,
    making: RefCell<Option<Making>>,
    next: Cell<u32>,
    /// Bytes of all layers at most; 0: there are none.
    budget_bytes: u64,
    /// Whom layers are made as, where functions have users of their own.
    uid_gid: Option<(u32, u32)>,
    path: PathBuf,
}

/// The layer that is being made.
struct Making {
    /// What is promised to it.
    bytes: u64,
    /// Rung to have it given up, and nothing that is made later.
    stop: Rc<Notify>,
}

struct Built {
    /// Its name in plans.
    key: LayerKey,
    /// What it is called by the keep-alive policy.
    number: u32,
    found: Found,
    layer: Arc<Layer>,
    restore_ns: Cell<u64>,
    /// Who would begin from it.
    functions: RefCell<Vec<FunctionIndex>>,
}

impl Built {
    /// Whether this version would have come as far by itself.
    fn suits(&self, key: &VersionKey, version: &Version, known: &Known) -> bool {
        fit::unfit(&self.key, &self.found, key, version, &known.provided).is_none()
    }

    /// What it saves a zygote, for all of its memory. (In the processor's time, which is how long it takes when nobody else runs; other
    /// processes' costs are as long as they took.)
    fn cost(&self) -> Cost {
        let Measured { start_ns, restore_ns, bytes, .. } = self.measured();
        Cost { start_ns: start_ns.saturating_sub(restore_ns), bytes }
    }

    fn measured(&self) -> Measured {
        Measured {
            is_there: true,
            start_ns: self.layer.cpu_time().as_nanos() as u64,
            restore_ns: self.restore_ns.get(),
            bytes: self.layer.bytes(),
        }
    }
}

/// What is among the first, and not among the others; both are sorted.
fn extra<'a>(modules: &'a [String], others: &[String]) -> Vec<&'a str> {
    let mut others = others.iter().peekable();
    let is_extra = |name: &&'a str| {
        while others.next_if(|other| other.as_str() < *name).is_some() {}
        others.peek().is_none_or(|other| other.as_str() != *name)
    };
    modules.iter().map(String::as_str).filter(is_extra).collect()
}

/// The layer that saves a version most.
fn best<'a>(built: &'a [Built], key: &VersionKey, version: &Version, known: &Known) -> Option<&'a Built> {
    let usable = built.iter().filter(|built| built.suits(key, version, known));
    usable.max_by_key(|built| built.layer.took())
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
            found: RefCell::default(),
            refused: RefCell::default(),
            failures: RefCell::default(),
            pushed_out: RefCell::default(),
            changed: Notify::new(),
            not_before: Cell::new(None),
            making: RefCell::default(),
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
        Some((VersionKey::of(stored, &key, key::distributions(spec)), ground))
    }

    /// A version has started so: by itself when `said` is what it said then.
    fn started(&self, key: VersionKey, ground: Ground, said: Option<Version>) {
        let (mut known, now) = (self.known.borrow_mut(), Instant::now());
        self.grounds.borrow_mut().insert(key.ground.clone(), ground);
        match said {
            Some(version) => known.learn(key, version, now),
            None => known.started(&key, now),
        }
        self.changed.notify_one();
    }

    /// The layer that saves this version most.
    fn choose(&self, key: &VersionKey) -> Option<Arc<Layer>> {
        let (known, built) = (self.known.borrow(), self.built.borrow());
        best(&built, key, known.get(key)?, &known).map(|built| Arc::clone(&built.layer))
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
        let Built { key, .. } = built.swap_remove(at);
        let mut failures = self.failures.borrow_mut();
        let count = failures.entry(key.clone()).or_default();
        *count += 1;
        if *count >= FAILURES_MAX {
            self.refused.borrow_mut().insert(key, why.clone());
        }
    }

    /// A layer is being made from now on, with this much memory. What is returned rings when it is to be given up.
    fn begin(&self, bytes: u64) -> Rc<Notify> {
        let stop = Rc::<Notify>::default();
        *self.making.borrow_mut() = Some(Making { bytes, stop: Rc::clone(&stop) });
        stop
    }

    /// Memory is short: gives up the layer that is being made. Returns how much will come back.
    pub(super) fn give_way(&self) -> u64 {
        let making = self.making.borrow();
        let Some(making) = &*making else { return 0 };
        self.not_before.set(Some(Instant::now() + SHORT_FOR));
        making.stop.notify_one();
        making.bytes
    }

    /// Those that no process shares, by their numbers, with the functions that would begin from them.
    pub(super) fn idle(&self) -> Vec<(u32, Vec<FunctionIndex>)> {
        let built = self.built.borrow();
        let idle = built.iter().filter(|built| Arc::strong_count(&built.layer) == 1);
        idle.map(|built| (built.number, built.functions.borrow().clone())).collect()
    }

    /// Lets go of one of these, since memory is short. Returns what comes back, and who would have begun from it.
    pub(super) fn push_out(&self, number: u32) -> Option<(u64, Vec<FunctionIndex>)> {
        let mut built = self.built.borrow_mut();
        let is_it = |built: &Built| built.number == number && Arc::strong_count(&built.layer) == 1;
        let at = built.iter().position(is_it)?;
        let Built { key, layer, functions, .. } = built.swap_remove(at);
        self.pushed_out.borrow_mut().insert(key, Instant::now() + PUSHED_OUT_FOR);
        self.changed.notify_one();
        Some((layer.bytes(), functions.take()))
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
        for built in self.built.borrow().iter() {
            if let Some(found) = self.found.borrow_mut().get_mut(&built.key) {
                found.measured = Some(built.measured());
            }
        }
        let (known, refused, found) = (self.known.borrow(), self.refused.borrow(), self.found.borrow());
        let measured = |(key, found): (&LayerKey, &Found)| {
            let is_there = self.built.borrow().iter().any(|built| built.key == *key);
            Some((key.clone(), Measured { is_there, ..found.measured? }))
        };
        let measured: Vec<(LayerKey, Measured)> = found.iter().filter_map(measured).collect();
        let suits = |layer: &LayerKey, key: &VersionKey, version: &Version| {
            let found = found.get(layer);
            !refused.contains_key(layer)
                && found.is_none_or(|found| fit::unfit(layer, found, key, version, &known.provided).is_none())
        };
        let planned = known.plan(&grounds, &measured, self.budget_bytes, Instant::now(), suits);
        let mut built = self.built.borrow_mut();
        built.retain(|built| planned.iter().any(|plan| built.key == plan.key));
        let mut pushed_out = self.pushed_out.borrow_mut();
        pushed_out.retain(|_, until| *until > Instant::now());
        let is_to_be_made =
            |key: &LayerKey| !built.iter().any(|built| built.key == *key) && !pushed_out.contains_key(key);
        planned.into_iter().find(|plan| is_to_be_made(&plan.key))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::known::TOOK;
    use super::*;
    use crate::config::raw::RawConfig;

    /// Takes the ring, if there is one.
    fn is_rung(stop: &Notify) -> bool {
        std::pin::pin!(stop.notified()).enable()
    }

    #[test]
    fn the_layer_that_is_being_made_gives_way_and_no_other() {
        let config = Config::try_from(RawConfig::default()).expect("the defaults are good");
        let layers = Layers::new(&config, false);
        let first = layers.begin(7);
        // (It has just been made, and nobody listens any more.)
        assert_eq!(layers.give_way(), 7);
        layers.making.take();
        let second = layers.begin(5);
        assert!(!is_rung(&second), "the ring was for the one before");
        assert!(is_rung(&first));
        assert_eq!(layers.give_way(), 5);
        assert!(is_rung(&second));
        layers.making.take();
        assert_eq!(layers.give_way(), 0);
    }

    #[test]
    fn what_was_pushed_out_is_not_made_again_until_its_time_has_come() {
        let config = Config::try_from(RawConfig::default()).expect("the defaults are good");
        let layers = Layers::new(&config, false);
        let key = VersionKey {
            code: "code".to_owned(),
            handler: "f:main".to_owned(),
            ground: GroundKey("python".to_owned()),
            packages: vec![],
        };
        let modules = ["decimal", "os"].map(str::to_owned).to_vec();
        let version = Version::new(modules, TOOK, 30 << 20, 128 << 20, Some(vec![]));
        let interpreter = PathBuf::from("/usr/bin/python3");
        layers.started(key, Ground { interpreter, whole: None, env: BTreeMap::new() }, Some(version));
        let planned = layers.next().expect("a layer");
        layers.pushed_out.borrow_mut().insert(planned.key.clone(), Instant::now() + PUSHED_OUT_FOR);
        assert_eq!(layers.next(), None);
        layers.pushed_out.borrow_mut().insert(planned.key.clone(), Instant::now());
        assert_eq!(layers.next(), Some(planned));
    }
}
