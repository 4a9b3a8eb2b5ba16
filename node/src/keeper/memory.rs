//! Who may have memory, and who gives theirs up: the node's budget, and the keep-alive policy of all functions.
//!
//! The policy (`spry_sched::keepalive`) decides; this asks it and does what it says. It knows functions by their place
//! on the bus, time by what has passed since spryd started, and memory by what was measured: a process's
//! proportional share (`Pss`) where that can be read, its limit elsewhere. The budget is in limits.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shm_bus::ids::FunctionIndex;
use spry_sched::FunctionId;
use spry_sched::keepalive::{Arrivals, Cost, KeepAlive, Kind, Layer, Profile, Window};

use super::{Keeper, ToTender};
use crate::api::ZygoteState;
use crate::budget::{Budget, Promise, Shortage};
use crate::function::{Function, Uses};
use crate::instance::{Doom, Instance};

/// How long somebody who needs memory waits for those to end who were pushed out for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// So often it is looked meanwhile who else has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The node's memory and its policy.
pub(super) struct Memory {
    pub(super) budget: Arc<Budget>,
    policy: RefCell<Box<dyn KeepAlive>>,
    /// What the policy has been told of each function, but for its package layer.
    profiles: RefCell<HashMap<FunctionIndex, Profile>>,
    packages: RefCell<Packages>,
    origin: Instant,
}

/// The package layer that a function would begin from, by its number, and what that saves and takes.
pub(super) type Packages = HashMap<FunctionIndex, (u32, Cost)>;

impl Memory {
    pub(super) fn new(budget: Arc<Budget>, kind: Kind) -> Self {
        Self {
            budget,
            policy: RefCell::new(kind.policy()),
            profiles: RefCell::default(),
            packages: RefCell::default(),
            origin: Instant::now(),
        }
    }

    /// The policy's time.
    pub(super) fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    pub(super) fn learn(&self, function: &Function, profile: Profile) {
        self.profiles.borrow_mut().insert(function.index, profile);
        self.teach(function.index);
    }

    pub(super) fn forget(&self, function: &Function) {
        self.profiles.borrow_mut().remove(&function.index);
        self.packages.borrow_mut().remove(&function.index);
        self.policy.borrow_mut().forget(id(function.index));
    }

    /// Tells the policy which layers there are for whom.
    pub(super) fn set_packages(&self, packages: Packages) {
        let before = self.packages.replace(packages);
        let changed: HashSet<FunctionIndex> = {
            let now = self.packages.borrow();
            let all = before.keys().chain(now.keys());
            all.filter(|index| before.get(index) != now.get(index)).copied().collect()
        };
        changed.into_iter().for_each(|index| self.teach(index));
    }

    fn teach(&self, index: FunctionIndex) {
        let Some(mut profile) = self.profiles.borrow().get(&index).copied() else { return };
        if let Some((number, cost)) = self.packages.borrow().get(&index) {
            profile.package = Some(*number);
            profile.costs[Layer::Package as usize] = *cost;
        }
        self.policy.borrow_mut().learn(id(index), profile);
    }

    /// Tells the policy what a function has served.
    pub(super) fn arrived(&self, function: &Function, uses: &Uses) {
        let (mut policy, now_ns, id) = (self.policy.borrow_mut(), self.now_ns(), id(function.index));
        let mut left = uses.count;
        if uses.is_first && left > 0 {
            policy.arrived(id, Arrivals { count: 1, gap_ns: None }, now_ns);
            left -= 1;
        }
        for gap_ms in uses.gaps_ms.iter().take(left as usize) {
            policy.arrived(id, Arrivals { count: 1, gap_ns: Some(gap_ms.saturating_mul(1_000_000)) }, now_ns);
            left -= 1;
        }
        if left > 0 {
            policy.arrived(id, Arrivals { count: left, gap_ns: Some(0) }, now_ns);
        }
    }

    /// What is lost with something of this layer.
    fn worth(&self, function: &Function, layer: Layer, used_unix_ms: u64) -> f64 {
        let now_ns = self.now_ns();
        let used_ns = now_ns.saturating_sub(idle_ns(used_unix_ms, crate::activation::unix_ms()));
        self.policy.borrow().worth(id(function.index), layer, used_ns, now_ns)
    }

    pub(super) fn window(&self, function: &Function, layer: Layer) -> Window {
        self.policy.borrow().window(id(function.index), layer, self.now_ns())
    }
}

fn id(index: FunctionIndex) -> FunctionId {
    FunctionId(u32::from(index.0))
}

/// Nanoseconds since then.
pub(super) fn idle_ns(used_unix_ms: u64, now_unix_ms: u64) -> u64 {
    now_unix_ms.saturating_sub(used_unix_ms).saturating_mul(1_000_000)
}

/// What a process holds by itself: what it shares with others counts in parts.
pub(super) fn held_bytes(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

enum Victim {
    Instance(Arc<Function>, Arc<Instance>),
    Zygote(Arc<Function>),
    /// A package layer that no process shares, by its number.
    Layer(u32),
}

impl Keeper {
    /// Promises memory to a process of this function. If there isn't enough, those that the policy holds least
    /// worth are pushed out, and waited for. `insist`: wait even if nobody could be, since somebody may end.
    pub(super) async fn room(
        self: &Rc<Self>,
        bytes: u64,
        function: FunctionIndex,
        insist: bool,
    ) -> Result<Promise, Shortage> {
        let until = tokio::time::Instant::now() + PATIENCE;
        let mut returned = self.memory.budget.returned();
        let mut freed_bytes = 0;
        // When no more than this is promised, those have gone that were pushed out.
        let mut gone_bytes = u64::MAX;
        loop {
            returned.mark_unchanged();
            let short = match self.memory.budget.promise(bytes) {
                Ok(promise) => return Ok(promise),
                Err(short) => short,
            };
            if bytes > short.budget_bytes {
                return Err(short); // whoever ends
            }
            let promised_bytes = self.memory.budget.promised_bytes();
            if promised_bytes <= gone_bytes {
                // Not for the first time, perhaps: a zygote can go once its instances have.
                let freed_now_bytes = self.free(bytes - short.free_bytes, function);
                freed_bytes += freed_now_bytes;
                if freed_bytes == 0 && !insist {
                    return Err(short);
                }
                if freed_now_bytes > 0 {
                    gone_bytes = promised_bytes.saturating_sub(freed_now_bytes);
                }
            }
            let look_again = until.min(tokio::time::Instant::now() + LOOK_AGAIN);
            let is_same = tokio::time::timeout_at(look_again, returned.changed()).await.is_err();
            if is_same && look_again == until {
                return Err(short);
            }
        }
    }

    /// Has so much come back from what is idle, or as much as there is. Returns how much will.
    fn free(&self, missing_bytes: u64, keep: FunctionIndex) -> u64 {
        let of_layer_bytes = self.layers.give_way();
        let freed_bytes = of_layer_bytes + self.push_out(missing_bytes.saturating_sub(of_layer_bytes), keep);
        if freed_bytes > 0 {
            tracing::info!(missing_bytes, freed_bytes, "memory is short: idle processes were pushed out");
        }
        freed_bytes
    }

    /// That to the function of these to which it is worth most.
    fn worth_of_layer(&self, functions: &[FunctionIndex]) -> Option<f64> {
        let functions = functions.iter().filter_map(|at| self.bus.functions[usize::from(at.0)].load_full());
        let worth = |function: Arc<Function>| {
            let used_ms = function.served.last_unix_ms();
            self.memory.worth(&function, Layer::Package, used_ms)
        };
        functions.map(worth).max_by(f64::total_cmp)
    }

    /// Ends what is idle, least worth first, until so much will be free. Returns how much will. `keep` is left alone, and the
    /// layer that it would begin from.
    fn push_out(&self, missing_bytes: u64, keep: FunctionIndex) -> u64 {
        let mut candidates = self.candidates(keep);
        candidates.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut freed_bytes = 0;
        for (_, victim) in candidates {
            if freed_bytes >= missing_bytes {
                break;
            }
            let (function, layer) = match victim {
                Victim::Instance(function, instance) => {
                    if instance.doom().is_some() || !self.bus.transport.retire(instance.peer) {
                        continue; // it is at work, or on its way out already
                    }
                    instance.kill(Doom::Retired);
                    (function, Layer::Instance)
                }
                Victim::Zygote(function) => {
                    let tender = self.tended.borrow().get(&function.index).cloned();
                    if tender.is_none_or(|tender| tender.send(ToTender::Evict).is_err()) {
                        continue;
                    }
                    (function, Layer::Zygote)
                }
                Victim::Layer(number) => {
                    freed_bytes += self.push_out_layer(number);
                    continue;
                }
            };
            self.memory.policy.borrow_mut().evicted(id(function.index), layer);
            freed_bytes += function.stored.manifest.limits.memory.as_bytes();
        }
        freed_bytes
    }

    fn push_out_layer(&self, number: u32) -> u64 {
        let Some((bytes, functions)) = self.layers.push_out(number) else { return 0 };
        for index in functions {
            self.memory.policy.borrow_mut().evicted(id(index), Layer::Package);
        }
        bytes
    }

    /// What is idle, with its worth. Functions keep their `scale.min`.
    fn candidates(&self, keep: FunctionIndex) -> Vec<(f64, Victim)> {
        let mut found = Vec::new();
        let indices: Vec<FunctionIndex> = self.tended.borrow().keys().copied().collect();
        for index in indices.into_iter().filter(|index| *index != keep) {
            let Some(function) = self.bus.functions[usize::from(index.0)].load_full() else { continue };
            let min = function.stored.manifest.scale.min as usize;
            let mut instances: Vec<_> = function.instances().collect();
            instances.sort_by_key(|instance| instance.used_unix_ms());
            let spare = instances.len().saturating_sub(min);
            for instance in instances.iter().take(spare) {
                let worth = self.memory.worth(&function, Layer::Instance, instance.used_unix_ms());
                found.push((worth, Victim::Instance(Arc::clone(&function), Arc::clone(instance))));
            }
            let alone = instances.is_empty() && min == 0 && function.starting() == 0 && function.is_unused();
            if alone && function.zygote_state() == ZygoteState::Ready {
                let worth = self.memory.worth(&function, Layer::Zygote, function.served.last_unix_ms());
                found.push((worth, Victim::Zygote(function)));
            }
        }
        for (number, functions) in self.layers.idle() {
            if !functions.contains(&keep) {
                let worth = self.worth_of_layer(&functions).unwrap_or(f64::NEG_INFINITY);
                found.push((worth, Victim::Layer(number)));
            }
        }
        found
    }
}
