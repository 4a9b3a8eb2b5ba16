//! A node's memory in simulated time: layers come and go as a policy says.
//!
//! It applies windows and worths as spryd's keeper does: layers go when their window is over, are made ahead
//! when it opens, and go early, least worth first, when memory is short. One instance stands for all that serve a
//! function at the same time; what serves can't be pushed out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use spry_sched::FunctionId;
use spry_sched::keepalive::{Arrivals, Cost, KeepAlive, Layer, Phase, Profile};

use super::layers::Layers;
use super::trace::{BATCH_NS, Trace};

/// What became of a trace.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Calls.
    pub calls: u64,
    /// Of these, those that waited for a zygote.
    pub cold: u64,
    /// Those that waited for an instance only.
    pub forked: u64,
    /// Zygotes and instances that were made ahead.
    pub prewarmed: u64,
    /// What was pushed out because memory was short.
    pub evicted: u64,
    /// Waiting for all of it, in seconds.
    pub waited_s: f64,
    /// Package layers that were made.
    pub layers: u64,
    /// Memory times time, in gigabyte-hours.
    pub memory_gb_h: f64,
    /// By function: calls and cold ones.
    pub by_function: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Default)]
struct State {
    zygote: bool,
    /// Memory that the zygote holds: what it began from says how much.
    zygote_bytes: u64,
    instance: bool,
    /// End of the last call so far.
    used_ns: Option<u64>,
    /// Counts uses: a look that was planned before the last one is void.
    version: u64,
    /// Pushed out since the last use: the open window alone doesn't bring it back.
    evicted: bool,
    /// It is not there because its window has not opened.
    awaited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A window may have opened or closed.
    Look { function: usize, version: u64 },
    /// Calls, by their place in the function's list.
    Call { function: usize, batch: usize },
}

struct Machine<'a> {
    trace: &'a Trace,
    policy: &'a mut dyn KeepAlive,
    /// If functions' imports are told apart.
    layers: Option<Layers>,
    budget_bytes: u64,
    states: Vec<State>,
    /// Package layers that are there, and who used them last when.
    packages: HashMap<u32, (usize, u64)>,
    bytes: u64,
    counted_until_ns: u64,
    agenda: BinaryHeap<Reverse<(u64, Happening)>>,
    outcome: Outcome,
}

/// All memory that a trace's functions would take if all were there.
pub fn footprint_bytes(trace: &Trace) -> u64 {
    let own: u64 = trace.functions.iter().map(|f| f.profile.costs[1].bytes + f.profile.costs[2].bytes).sum();
    let mut packages = HashMap::new();
    for function in &trace.functions {
        packages.extend(function.profile.package.map(|package| (package, function.profile.costs[0].bytes)));
    }
    own + packages.values().sum::<u64>()
}

/// Runs a trace under a policy on a node with so much memory.
pub fn run(trace: &Trace, policy: &mut dyn KeepAlive, budget_bytes: u64) -> Outcome {
    run_with(trace, policy, None, budget_bytes)
}

/// The same; `layers` says what zygotes take, in place of the trace's packages.
pub fn run_with(
    trace: &Trace,
    policy: &mut dyn KeepAlive,
    layers: Option<Layers>,
    budget_bytes: u64,
) -> Outcome {
    let mut machine = Machine {
        trace,
        policy,
        layers,
        budget_bytes,
        states: vec![State::default(); trace.functions.len()],
        packages: HashMap::new(),
        bytes: 0,
        counted_until_ns: 0,
        agenda: BinaryHeap::new(),
        outcome: Outcome { by_function: vec![(0, 0); trace.functions.len()], ..Outcome::default() },
    };
    machine.run();
    machine.outcome.layers = machine.layers.map_or(0, |layers| layers.made);
    machine.outcome
}

impl Machine<'_> {
    fn run(&mut self) {
        for (function, spec) in self.trace.functions.iter().enumerate() {
            self.policy.learn(id(function), self.profile(function));
            if let Some(first) = spec.batches.first() {
                self.agenda.push(Reverse((first.at_ns, Happening::Call { function, batch: 0 })));
            }
        }
        while let Some(Reverse((now_ns, happening))) = self.agenda.pop() {
            if now_ns >= self.trace.span_ns {
                break;
            }
            self.count_memory(now_ns);
            self.plan_layers(now_ns);
            match happening {
                Happening::Call { function, batch } => self.call(function, batch, now_ns),
                Happening::Look { function, version } if self.states[function].version == version => {
                    self.look(function, now_ns);
                }
                Happening::Look { .. } => {}
            }
        }
        self.count_memory(self.trace.span_ns);
    }

    fn count_memory(&mut self, now_ns: u64) {
        let hours = (now_ns - self.counted_until_ns) as f64 / 3.6e12;
        self.outcome.memory_gb_h += self.bytes as f64 / 1e9 * hours;
        self.counted_until_ns = now_ns;
    }

    fn profile(&self, function: usize) -> Profile {
        let mut profile = self.trace.functions[function].profile;
        if let Some(layers) = &self.layers {
            let package = layers.package(function);
            profile.package = package.map(|(number, _)| number);
            profile.costs[Layer::Package as usize] = package.map_or_else(Cost::default, |(_, cost)| cost);
            profile.costs[Layer::Zygote as usize] = layers.zygote(function);
        }
        profile
    }

    fn plan_layers(&mut self, now_ns: u64) {
        let Some(layers) = &mut self.layers else { return };
        let (freed, wanted) = layers.plan(now_ns);
        self.bytes -= freed;
        if freed == 0 && wanted.is_empty() {
            return;
        }
        for contents in wanted {
            let bytes = layers.bytes(&contents);
            if self.bytes + bytes <= self.budget_bytes {
                layers.make(contents);
                self.bytes += bytes;
            }
        }
        // What a zygote takes may be another now.
        (0..self.trace.functions.len()).for_each(|function| self.learn(function));
    }

    fn learn(&mut self, function: usize) {
        self.policy.learn(id(function), self.profile(function));
    }

    /// That of the function of those that are to begin from it to which it is worth most.
    fn worth_of_layer(&self, functions: &[usize], now_ns: u64) -> Option<f64> {
        let worth = |function: &usize| {
            let used_ns = self.states[*function].used_ns?.min(now_ns);
            Some(self.policy.worth(id(*function), Layer::Package, used_ns, now_ns))
        };
        functions.iter().filter_map(worth).max_by(f64::total_cmp)
    }

    fn call(&mut self, function: usize, batch: usize, now_ns: u64) {
        let spec = &self.trace.functions[function];
        let calls = spec.batches[batch];
        if let Some(next) = spec.batches.get(batch + 1) {
            self.agenda.push(Reverse((next.at_ns, Happening::Call { function, batch: batch + 1 })));
        }
        let gap_ns = self.states[function].used_ns.map(|used_ns| now_ns.saturating_sub(used_ns));
        self.policy.arrived(id(function), Arrivals { count: calls.count, gap_ns }, now_ns);
        let (had_zygote, had_instance) = (self.states[function].zygote, self.states[function].instance);
        let before_ns = self.states[function].used_ns.unwrap_or(0);
        // In use from here on: what it needs next is not taken from itself.
        // (The calls of one record come one after the other, all through its time.)
        let spread_ns = BATCH_NS - BATCH_NS / calls.count.max(1);
        let ends_ns = (now_ns + spread_ns + spec.exec_ns).max(before_ns);
        self.states[function].used_ns = Some(ends_ns);
        let waited_ns = self.make(function, now_ns, true);
        self.outcome.calls += calls.count;
        self.outcome.by_function[function].0 += calls.count;
        self.outcome.waited_s += waited_ns as f64 / 1e9;
        if !had_instance && !had_zygote {
            self.outcome.cold += 1;
            self.outcome.by_function[function].1 += 1;
        } else if !had_instance {
            self.outcome.forked += 1;
        }
        let state = &mut self.states[function];
        (state.evicted, state.awaited) = (false, false);
        state.version += 1;
        self.agenda.push(Reverse((ends_ns, Happening::Look { function, version: state.version })));
    }

    /// Makes what isn't there; returns how long that takes. `needed`: it serves even if there is no room to keep it.
    fn make(&mut self, function: usize, now_ns: u64, needed: bool) -> u64 {
        let profile = self.profile(function);
        let mut took_ns = 0;
        if !self.states[function].zygote {
            if let Some(package) = profile.package.filter(|_| self.layers.is_none()) {
                let cost = profile.cost(Layer::Package);
                if !self.packages.contains_key(&package) {
                    took_ns += cost.start_ns;
                    if self.make_room(cost.bytes, function, now_ns) {
                        self.packages.insert(package, (function, now_ns));
                        self.bytes += cost.bytes;
                    }
                }
            }
            let cost = profile.cost(Layer::Zygote);
            took_ns += cost.start_ns;
            if !self.make_room(cost.bytes, function, now_ns) {
                return if needed { took_ns + profile.cost(Layer::Instance).start_ns } else { 0 };
            }
            // (Making room may have cost it the layer that it was going to begin from.)
            let bytes = self.profile(function).cost(Layer::Zygote).bytes;
            (self.states[function].zygote, self.states[function].zygote_bytes) = (true, bytes);
            self.bytes += bytes;
            if let Some(layers) = &mut self.layers {
                layers.begun(function, now_ns);
            }
        }
        if let Some(place) = profile.package.and_then(|package| self.packages.get_mut(&package)) {
            *place = (function, now_ns);
        }
        if !self.states[function].instance {
            let cost = profile.cost(Layer::Instance);
            took_ns += cost.start_ns;
            if self.make_room(cost.bytes, function, now_ns) {
                self.states[function].instance = true;
                self.bytes += cost.bytes;
            }
        }
        took_ns
    }

    /// A window may have opened or closed.
    fn look(&mut self, function: usize, now_ns: u64) {
        let Some(used_ns) = self.states[function].used_ns else { return };
        let idle_ns = now_ns.saturating_sub(used_ns);
        let mut next_ns: Option<u64> = None;
        let mut ahead = false;
        for layer in [Layer::Instance, Layer::Zygote] {
            let window = self.policy.window(id(function), layer, now_ns);
            match window.phase(idle_ns) {
                Phase::Within => ahead |= self.states[function].awaited,
                Phase::Before => {
                    self.drop(function, layer);
                    self.states[function].awaited = true;
                }
                Phase::After => self.drop(function, layer),
            }
            next_ns = [next_ns, window.next_change_ns(idle_ns)].into_iter().flatten().min();
        }
        if ahead && !self.states[function].evicted {
            self.states[function].awaited = false;
            self.outcome.prewarmed += 1;
            self.make(function, now_ns, false);
        }
        self.look_at_package(function, now_ns, &mut next_ns);
        if let Some(next_ns) = next_ns {
            let version = self.states[function].version;
            let at_ns = used_ns.saturating_add(next_ns).max(now_ns + 1);
            self.agenda.push(Reverse((at_ns, Happening::Look { function, version })));
        }
    }

    /// The package layer goes when the last who used it says so.
    fn look_at_package(&mut self, function: usize, now_ns: u64, next_ns: &mut Option<u64>) {
        if self.layers.is_some() {
            return; // the planner says which there are
        }
        let Some(package) = self.profile(function).package else { return };
        let Some((by, _)) = self.packages.get(&package).copied() else { return };
        if by != function {
            return;
        }
        let idle_ns = now_ns.saturating_sub(self.states[function].used_ns.unwrap_or(0));
        let window = self.policy.window(id(function), Layer::Package, now_ns);
        if window.phase(idle_ns) == Phase::After {
            self.packages.remove(&package);
            self.bytes -= self.profile(function).cost(Layer::Package).bytes;
        } else {
            *next_ns = [*next_ns, window.next_change_ns(idle_ns)].into_iter().flatten().min();
        }
    }

    fn drop(&mut self, function: usize, layer: Layer) {
        let instance_bytes = self.profile(function).cost(Layer::Instance).bytes;
        let state = &mut self.states[function];
        if layer == Layer::Instance {
            self.bytes -= if std::mem::take(&mut state.instance) { instance_bytes } else { 0 };
        } else if std::mem::take(&mut state.zygote) {
            self.bytes -= std::mem::take(&mut state.zygote_bytes);
            self.bytes -= self.layers.as_mut().map_or(0, |layers| layers.ended(function));
        }
    }

    /// Pushes out what is worth least until there is room. `keep` is not touched.
    fn make_room(&mut self, bytes: u64, keep: usize, now_ns: u64) -> bool {
        while self.bytes + bytes > self.budget_bytes {
            let mut least: Option<(f64, Victim)> = None;
            let mut consider = |worth: f64, victim| {
                if least.as_ref().is_none_or(|(least, _)| worth < *least) {
                    least = Some((worth, victim));
                }
            };
            for (function, state) in self.states.iter().enumerate() {
                let used_ns = state.used_ns.unwrap_or(0);
                if function == keep || used_ns > now_ns {
                    continue;
                }
                let layer = match (state.instance, state.zygote) {
                    (true, _) => Layer::Instance,
                    (false, true) => Layer::Zygote,
                    (false, false) => continue,
                };
                let worth = self.policy.worth(id(function), layer, used_ns, now_ns);
                consider(worth, Victim::Own(function, layer));
            }
            let wanted = self.profile(keep).package;
            for (number, functions) in self.layers.iter().flat_map(Layers::idle) {
                if Some(number) != wanted {
                    let worth = self.worth_of_layer(functions, now_ns).unwrap_or(f64::NEG_INFINITY);
                    consider(worth, Victim::Layer(number, functions.to_vec()));
                }
            }
            for (package, (function, used_ns)) in &self.packages {
                if Some(*package) != wanted {
                    let worth = self.policy.worth(id(*function), Layer::Package, *used_ns, now_ns);
                    consider(worth, Victim::Package(*package));
                }
            }
            let Some((_, victim)) = least else { return false };
            self.outcome.evicted += 1;
            match victim {
                Victim::Own(function, layer) => {
                    self.policy.evicted(id(function), layer);
                    self.drop(function, layer);
                    self.states[function].evicted = true;
                }
                Victim::Layer(number, functions) => {
                    self.bytes -= self.layers.as_mut().map_or(0, |layers| layers.push_out(number, now_ns));
                    functions.iter().for_each(|function| self.policy.evicted(id(*function), Layer::Package));
                    functions.iter().for_each(|function| self.learn(*function));
                }
                Victim::Package(package) => {
                    if let Some((function, _)) = self.packages.remove(&package) {
                        self.policy.evicted(id(function), Layer::Package);
                        self.bytes -= self.profile(function).cost(Layer::Package).bytes;
                    }
                }
            }
        }
        true
    }
}

#[derive(Clone, Debug)]
enum Victim {
    Own(usize, Layer),
    Layer(u32, Vec<usize>),
    Package(u32),
}

fn id(function: usize) -> FunctionId {
    FunctionId(function as u32)
}

#[cfg(test)]
mod tests {
    use spry_sched::keepalive::{Kind, SECOND_NS};

    use super::super::layers::Sharing;
    use super::super::trace::{self, Batch};
    use super::*;

    const MINUTE_NS: u64 = 60 * SECOND_NS;

    /// One function that is called at these minutes.
    fn called_at(minutes: &[u64]) -> Trace {
        let mut trace = trace::make(1, 1.0, 10 * MINUTE_NS, 1);
        trace.functions[0].exec_ns = 0;
        trace.functions[0].profile.package = None;
        trace.functions[0].batches =
            minutes.iter().map(|minute| Batch { at_ns: minute * MINUTE_NS, count: 1 }).collect();
        trace
    }

    #[test]
    fn ttl_is_warm_within_its_time_and_memory_is_counted() {
        let trace = called_at(&[0, 5, 20, 60]);
        let mut policy = Kind::Ttl.policy();
        let outcome = run(&trace, &mut *policy, u64::MAX);
        // After 5 minutes warm; after 15 the zygote is still there; after 40 nothing is.
        assert_eq!((outcome.calls, outcome.cold, outcome.forked), (4, 2, 1));
        let costs = trace.functions[0].profile.costs;
        let gb_h = |bytes: u64, minutes: f64| bytes as f64 / 1e9 * minutes / 60.0;
        let expected = gb_h(costs[1].bytes, 40.0 + 20.0) + gb_h(costs[2].bytes, 15.0 + 10.0 + 10.0);
        assert!((outcome.memory_gb_h - expected).abs() < 1e-9, "{} {expected}", outcome.memory_gb_h);
    }

    #[test]
    fn the_histogram_makes_a_timers_function_ahead() {
        let every_half_hour: Vec<u64> = (0..48).map(|n| n * 30).collect();
        let trace = called_at(&every_half_hour);
        let mut policy = Kind::Histogram.policy();
        let outcome = run(&trace, &mut *policy, u64::MAX);
        assert!(outcome.cold <= 11, "{}", outcome.cold);
        assert!(outcome.prewarmed >= 35, "{}", outcome.prewarmed);
        let mut ttl = Kind::Ttl.policy();
        let plain = run(&trace, &mut *ttl, u64::MAX);
        assert_eq!(plain.cold, 48);
        assert!(outcome.memory_gb_h < plain.memory_gb_h);
    }

    #[test]
    fn memory_is_never_more_than_there_is() {
        let trace = trace::make(60, 1.0, 10 * MINUTE_NS, 2);
        let all = footprint_bytes(&trace);
        for kind in Kind::ALL {
            let mut policy = kind.policy();
            let budget = all / 10;
            let layers = Layers::new(&trace, Sharing::Distributions, budget / 10, 2);
            let with_layers = run_with(&trace, &mut *kind.policy(), Some(layers), budget);
            assert!(with_layers.layers > 0, "{kind:?}");
            for outcome in [run(&trace, &mut *policy, budget), with_layers] {
                assert!(outcome.memory_gb_h <= budget as f64 / 1e9 * 24.0, "{kind:?}");
                assert!(outcome.evicted > 0, "{kind:?}");
                assert!(outcome.cold + outcome.forked <= outcome.calls, "{kind:?}");
            }
        }
    }

    #[test]
    fn with_room_for_all_greedy_dual_starts_each_function_once() {
        let trace = trace::make(60, 1.0, 10 * MINUTE_NS, 2);
        let mut policy = Kind::GreedyDual.policy();
        let outcome = run(&trace, &mut *policy, u64::MAX);
        let called = trace.functions.iter().filter(|function| !function.batches.is_empty()).count() as u64;
        assert_eq!((outcome.cold, outcome.forked), (called, 0));
    }
}
