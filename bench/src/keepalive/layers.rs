//! Package layers in simulated time: what functions import, what a layer of it saves, and which there are.
//!
//! Which there are says `spry_sched::layers`, the planner that a node uses, fed as a node feeds it: it knows of a function once that has started by
//! itself, counts starts by the hour, and a layer's worth is measured once it is there. What is imported is made from a seed: some
//! [`DISTRIBUTIONS`] of which few are in most functions (rank and frequency after Zipf), in one of two versions, each with its time and memory.
//!
//! The rest is this project's own measurement (docs/decisions/0014): an interpreter starts in [`START_MS`], a zygote begins from a
//! layer in [`RESTORE_MS`], and saves [`SHARED`] of the layer's memory: the remainder it writes to, or shared with others anyway.

use std::collections::{BTreeMap, BTreeSet};

use spry_sched::FunctionId;
use spry_sched::keepalive::Cost;
use spry_sched::layers::{self, Contents, Measured, Wanted};

use super::trace::Trace;
use crate::random::SplitMix64;

/// What there is to be imported; each in two versions.
const DISTRIBUTIONS: usize = 40;
/// Of so many a function imports at most.
const IMPORTED_MAX: usize = 5;
/// Functions whose version of a distribution is the newer one.
const NEWER: f64 = 0.7;
/// Importing one, in milliseconds: from, to, log-uniform.
const IMPORT_MS: (f64, f64) = (5.0, 250.0);
/// Memory of what is imported in a millisecond: NumPy's 17 MiB in 80 ms.
const BYTES_PER_MS: f64 = 0.22e6;
const START_MS: f64 = 20.0;
const RESTORE_MS: f64 = 19.0;
const SHARED: f64 = 0.28;
/// Plans are made so far apart.
const PLANNED_EVERY_NS: u64 = 600 * 1_000_000_000;
/// As a node has it.
const PUSHED_OUT_FOR_NS: u64 = 3_600_000_000_000;
/// As a node counts them.
const STARTS_PER_HOUR_MIN: f64 = 0.05;
const FADES_HOURS: f64 = 24.0;

/// Who may share a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: there are none.
    None,
    /// Functions with the same distributions.
    SameSet,
    /// Functions that have its distributions.
    Distributions,
}

impl Sharing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::SameSet, Self::Distributions];

    /// What a case is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no layers",
            Self::SameSet => "layers of whole sets",
            Self::Distributions => "layers of distributions",
        }
    }
}

#[derive(Clone, Debug)]
struct Distribution {
    modules: Vec<u32>,
    import_ns: u64,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct Function {
    /// What its own code takes.
    own: Cost,
    /// Sorted. `None`: not Python.
    imports: Option<Vec<u32>>,
    /// Who may share a layer has the same.
    ground: u32,
    /// Starts by the hour, as of when.
    starts: (f64, u64),
    /// It has started by itself.
    is_known: bool,
    /// What its zygote began from, if it is there and did.
    began: Option<Contents>,
}

#[derive(Clone, Debug)]
struct Built {
    /// What policies call it.
    number: u32,
    measured: Measured,
    is_planned: bool,
    users: u32,
    /// Who would begin from it.
    functions: Vec<usize>,
}

impl Built {
    /// What it saves a zygote, for all of its memory.
    fn cost(&self) -> Cost {
        let Measured { start_ns, restore_ns, bytes, .. } = self.measured;
        Cost { start_ns: start_ns.saturating_sub(restore_ns), bytes }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Layers {
    sharing: Sharing,
    budget_bytes: u64,
    distributions: Vec<Distribution>,
    functions: Vec<Function>,
    built: BTreeMap<Contents, Built>,
    /// What is known of those that have gone.
    known: BTreeMap<Contents, Measured>,
    /// Until when those aren't made again that were pushed out.
    pushed_out: BTreeMap<Contents, u64>,
    planned_ns: u64,
    is_changed: bool,
    /// How many were made.
    pub made: u64,
}

impl Layers {
    /// For a trace's functions; all layers take at most so much memory.
    pub fn new(trace: &Trace, sharing: Sharing, budget_bytes: u64, seed: u64) -> Self {
        let mut random = SplitMix64::new(seed ^ 0x6c61_7965_7273);
        let distributions: Vec<Distribution> = (0..2 * DISTRIBUTIONS as u32)
            .map(|number| {
                let (low, high) = IMPORT_MS;
                let ms = (low.ln() + random.unit() * (high.ln() - low.ln())).exp();
                // A module takes from a half to two milliseconds: a plan's estimate by their number is as wrong as a node's.
                let modules = (ms * (0.5 + 1.5 * random.unit())).ceil() as u32;
                Distribution {
                    modules: (0..modules).map(|module| number * 1000 + module).collect(),
                    import_ns: (ms * 1e6) as u64,
                    bytes: (ms * BYTES_PER_MS) as u64,
                }
            })
            .collect();
        let functions = trace.functions.iter().map(|function| {
            let imports = function.profile.package.map(|_| imports(&mut random));
            let own = function.profile.costs[1];
            Function { own, imports, ground: 0, starts: (0.0, 0), is_known: false, began: None }
        });
        let mut layers = Self {
            sharing,
            budget_bytes: if sharing == Sharing::None { 0 } else { budget_bytes },
            functions: functions.collect(),
            distributions,
            built: BTreeMap::new(),
            known: BTreeMap::new(),
            pushed_out: BTreeMap::new(),
            planned_ns: 0,
            is_changed: false,
            made: 0,
        };
        layers.set_grounds();
        layers
    }

    fn set_grounds(&mut self) {
        let mut sets: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        for function in &mut self.functions {
            let (next, imports) = (sets.len() as u32, function.imports.clone().unwrap_or_default());
            let set = *sets.entry(imports).or_insert(next);
            function.ground = if self.sharing == Sharing::SameSet { set } else { 0 };
        }
    }

    /// What a function's zygote takes by itself.
    pub fn alone(&self, function: usize) -> Cost {
        let Function { own, imports, .. } = &self.functions[function];
        let Some(imports) = imports else { return *own };
        let imported = self.imported(imports);
        Cost {
            start_ns: own.start_ns + imported.start_ns + (START_MS * 1e6) as u64,
            bytes: own.bytes + imported.bytes,
        }
    }

    fn imported(&self, numbers: &[u32]) -> Cost {
        let all = numbers.iter().map(|number| &self.distributions[*number as usize]);
        all.fold(Cost::default(), |sum, one| Cost {
            start_ns: sum.start_ns + one.import_ns,
            bytes: sum.bytes + one.bytes,
        })
    }

    /// What it takes now.
    pub fn zygote(&self, function: usize) -> Cost {
        let alone = self.alone(function);
        let Some((_, built)) = self.best(function) else { return alone };
        Cost {
            start_ns: (alone.start_ns + built.measured.restore_ns).saturating_sub(built.measured.start_ns),
            bytes: alone.bytes - (built.measured.bytes as f64 * SHARED) as u64,
        }
    }

    /// The layer that it would begin from, and what that saves.
    pub fn package(&self, function: usize) -> Option<(u32, Cost)> {
        self.best(function).map(|(_, built)| (built.number, built.cost()))
    }

    /// What could go, with whom it is for: layers that nobody shares at the moment.
    pub fn idle(&self) -> impl Iterator<Item = (u32, &[usize])> {
        let idle = self.built.values().filter(|built| built.is_planned && built.users == 0);
        idle.map(|built| (built.number, &*built.functions))
    }

    /// Notes whom each is for: which there are has changed, or who is known.
    fn assign(&mut self) {
        let mut functions: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for function in 0..self.functions.len() {
            if let Some((number, _)) = self.package(function) {
                functions.entry(number).or_default().push(function);
            }
        }
        for built in self.built.values_mut() {
            built.functions = functions.remove(&built.number).unwrap_or_default();
        }
    }

    /// Lets go of one of these, since memory is short. Returns the bytes that come back.
    pub fn push_out(&mut self, number: u32, now_ns: u64) -> u64 {
        for (contents, built) in self.built.iter_mut().filter(|(_, built)| built.number == number) {
            built.is_planned = false;
            self.pushed_out.insert(contents.clone(), now_ns + PUSHED_OUT_FOR_NS);
        }
        self.assign();
        self.collect()
    }

    /// The layer that saves it most.
    fn best(&self, function: usize) -> Option<(&Contents, &Built)> {
        if self.built.is_empty() || !self.functions[function].is_known {
            return None;
        }
        let (ground, imports) = (self.functions[function].ground, self.functions[function].imports.as_ref()?);
        let fits =
            |contents: &Contents| contents.ground == ground && layers::is_part(&contents.packages, imports);
        let there = self.built.iter().filter(|(contents, built)| built.is_planned && fits(contents));
        there.max_by_key(|(_, built)| built.measured.start_ns)
    }

    fn wanted(&self, function: usize) -> Option<Wanted> {
        let one = &self.functions[function];
        let packages = one.imports.clone()?;
        let of = |number: &u32| self.distributions[*number as usize].modules.clone();
        // Sorted as the distributions are.
        let modules: Vec<u32> = packages.iter().flat_map(of).collect();
        let ground = one.ground;
        let Cost { start_ns, bytes } = self.alone(function);
        let function = FunctionId(function as u32);
        Some(Wanted { function, ground, modules, packages, start_ns, bytes, starts_per_hour: 0.0 })
    }

    /// A zygote was made, from the best layer that there is.
    pub fn begun(&mut self, function: usize, now_ns: u64) {
        let best = self.best(function).map(|(contents, _)| contents.clone());
        if let Some(built) = best.as_ref().and_then(|contents| self.built.get_mut(contents)) {
            built.users += 1;
        }
        let one = &mut self.functions[function];
        one.starts = (faded(one.starts, now_ns) + 1.0 / FADES_HOURS, now_ns);
        let was_known = std::mem::replace(&mut one.is_known, true);
        one.began = best;
        self.is_changed = true;
        if !was_known {
            self.assign();
        }
    }

    /// It is gone; returns the bytes that come back of layers.
    pub fn ended(&mut self, function: usize) -> u64 {
        if let Some(contents) = self.functions[function].began.take()
            && let Some(built) = self.built.get_mut(&contents)
        {
            built.users -= 1;
        }
        self.collect()
    }

    fn collect(&mut self) -> u64 {
        let mut bytes = 0;
        self.built.retain(|_, built| {
            let stays = built.is_planned || built.users > 0;
            bytes += if stays { 0 } else { built.measured.bytes };
            stays
        });
        bytes
    }

    /// Lets go of what isn't wanted any more, if it is time to look. What comes back are the bytes that are free then, and what
    /// is to be made.
    pub fn plan(&mut self, now_ns: u64) -> (u64, Vec<Contents>) {
        if !self.is_changed || now_ns < self.planned_ns + PLANNED_EVERY_NS || self.budget_bytes == 0 {
            return (0, Vec::new());
        }
        (self.is_changed, self.planned_ns) = (false, now_ns);
        // Those that import the same are one.
        let mut alike: BTreeMap<Vec<u32>, Wanted> = BTreeMap::new();
        for (number, function) in self.functions.iter().enumerate().filter(|(_, function)| function.is_known)
        {
            let Some(imports) = &function.imports else { continue };
            let starts = faded(function.starts, now_ns).max(STARTS_PER_HOUR_MIN);
            if let Some(same) = alike.get_mut(imports) {
                let (start_ns, bytes) = (self.alone(number).start_ns, self.alone(number).bytes);
                (same.start_ns, same.bytes) = (same.start_ns.min(start_ns), same.bytes.max(bytes));
                same.starts_per_hour += starts;
            } else if let Some(wanted) = self.wanted(number) {
                alike.insert(imports.clone(), Wanted { starts_per_hour: starts, ..wanted });
            }
        }
        let wanted: Vec<Wanted> = alike.into_values().collect();
        let measured = |contents: &Contents| {
            let is_there = self.built.get(contents).is_some_and(|built| built.is_planned);
            self.known.get(contents).map(|known| Measured { is_there, ..*known })
        };
        let planned = layers::plan(&wanted, self.budget_bytes, measured, |_, _| true);
        let planned: BTreeSet<Contents> = planned.into_iter().map(|planned| planned.contents).collect();
        self.built.iter_mut().for_each(|(contents, built)| built.is_planned = planned.contains(contents));
        let freed = self.collect();
        self.assign();
        self.pushed_out.retain(|_, until_ns| *until_ns > now_ns);
        let is_to_be_made = |contents: &Contents| {
            !self.built.contains_key(contents) && !self.pushed_out.contains_key(contents)
        };
        (freed, planned.into_iter().filter(is_to_be_made).collect())
    }

    /// Memory that it takes.
    pub fn bytes(&self, contents: &Contents) -> u64 {
        self.cost(contents).bytes
    }

    fn cost(&self, contents: &Contents) -> Cost {
        let first = |number: &u32| self.distributions[*number as usize].modules.first();
        let is_in = |number: &&u32| {
            first(number).is_some_and(|module| contents.modules.binary_search(module).is_ok())
        };
        let imported: Vec<u32> = contents.packages.iter().filter(is_in).copied().collect();
        self.imported(&imported)
    }

    /// Makes it.
    pub fn make(&mut self, contents: Contents) {
        let Cost { start_ns, bytes } = self.cost(&contents);
        self.made += 1;
        let measured = Measured {
            is_there: true,
            start_ns: start_ns + (START_MS * 1e6) as u64,
            restore_ns: (RESTORE_MS * 1e6) as u64,
            bytes,
        };
        self.known.insert(contents.clone(), measured);
        let number = self.made as u32;
        self.built
            .insert(contents, Built { number, measured, is_planned: true, users: 0, functions: Vec::new() });
        self.assign();
    }
}

fn faded((per_hour, at_ns): (f64, u64), now_ns: u64) -> f64 {
    let hours = now_ns.saturating_sub(at_ns) as f64 / 3.6e12;
    per_hour * (-hours / FADES_HOURS).exp()
}

/// What one function imports: sorted.
fn imports(random: &mut SplitMix64) -> Vec<u32> {
    let weights: f64 = (1..=DISTRIBUTIONS).map(|rank| 1.0 / rank as f64).sum();
    let mut found = BTreeSet::new();
    for _ in 0..=random.below(IMPORTED_MAX) {
        let mut at = random.unit() * weights;
        let rank = (1..DISTRIBUTIONS).find(|rank| {
            at -= 1.0 / *rank as f64;
            at < 0.0
        });
        found.insert(rank.unwrap_or(DISTRIBUTIONS) - 1);
    }
    found.into_iter().map(|rank| 2 * rank as u32 + u32::from(random.unit() < NEWER)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::trace;
    use super::*;

    fn layers(sharing: Sharing) -> Layers {
        let mut layers = Layers::new(&trace::make(40, 0.1, 0, 1), sharing, 1 << 32, 1);
        let known = (0..40).filter(|function| layers.functions[*function].imports.is_some());
        let python: Vec<usize> = known.collect();
        // Two with a common part, and one with neither.
        for (function, imports) in python.iter().zip([vec![0, 2], vec![0, 4], vec![6]]) {
            layers.functions[*function].imports = Some(imports);
            layers.functions[*function].own = Cost::default();
        }
        for number in [0, 2, 4, 6] {
            let one = &mut layers.distributions[number];
            (one.import_ns, one.bytes) = (100_000_000, 20_000_000);
            one.modules = (0..100).map(|module| number as u32 * 1000 + module).collect();
        }
        layers.functions.truncate(python[2] + 1);
        layers.set_grounds();
        layers
    }

    fn python(layers: &Layers) -> Vec<usize> {
        let known = layers.functions.iter().enumerate().filter(|(_, function)| function.imports.is_some());
        known.map(|(number, _)| number).collect()
    }

    /// Plans, and makes all that is to be made; how many that are.
    fn make_all(layers: &mut Layers, now_ns: u64) -> usize {
        let (_, wanted) = layers.plan(now_ns);
        wanted.iter().for_each(|contents| layers.make(contents.clone()));
        wanted.len()
    }

    fn idle(layers: &Layers) -> Vec<(u32, usize)> {
        layers.idle().map(|(number, functions)| (number, functions.len())).collect()
    }

    #[test]
    fn a_layer_saves_its_imports_and_its_memory_goes_with_its_last_user() {
        let mut layers = layers(Sharing::Distributions);
        layers.budget_bytes = 20_000_000;
        let users = python(&layers);
        users.iter().for_each(|function| layers.begun(*function, 0));
        assert_eq!(make_all(&mut layers, 1), 0, "it isn't time yet");
        assert_eq!(make_all(&mut layers, PLANNED_EVERY_NS), 1);
        assert_eq!((layers.made, layers.built.len()), (1, 1));
        for function in &users[..2] {
            let (alone, now) = (layers.alone(*function), layers.zygote(*function));
            assert_eq!(alone.start_ns - now.start_ns, 101_000_000);
            assert_eq!(alone.bytes - now.bytes, 5_600_000);
            let saved = Cost { start_ns: 101_000_000, bytes: 20_000_000 };
            assert_eq!(layers.package(*function), Some((1, saved)));
        }
        assert_eq!(layers.alone(users[2]), layers.zygote(users[2]));
        assert_eq!(layers.ended(users[0]), 0);
        layers.begun(users[0], PLANNED_EVERY_NS);
        assert_eq!(idle(&layers), [], "somebody shares it");
        assert_eq!(layers.ended(users[0]), 0);
        assert_eq!(idle(&layers), [(1, 2)]);
        assert_eq!(layers.push_out(1, PLANNED_EVERY_NS), 20_000_000);
        assert_eq!(layers.zygote(users[0]), layers.alone(users[0]));
        // It isn't made again at once.
        layers.begun(users[0], PLANNED_EVERY_NS);
        assert_eq!(make_all(&mut layers, PLANNED_EVERY_NS * 2), 0);
        layers.begun(users[1], PLANNED_EVERY_NS * 2);
        assert_eq!(make_all(&mut layers, PLANNED_EVERY_NS * 2 + PUSHED_OUT_FOR_NS), 1);
    }

    #[test]
    fn whole_sets_share_with_their_like_only_and_none_is_none() {
        let mut same = layers(Sharing::SameSet);
        let users = python(&same);
        users.iter().for_each(|function| same.begun(*function, 0));
        assert_eq!(make_all(&mut same, PLANNED_EVERY_NS), 3, "one for each set");
        assert_eq!(same.built.values().map(|built| built.measured.bytes).sum::<u64>(), 100_000_000);
        let mut none = layers(Sharing::None);
        users.iter().for_each(|function| none.begun(*function, 0));
        assert_eq!(make_all(&mut none, PLANNED_EVERY_NS), 0);
        assert!(users.iter().all(|function| none.zygote(*function) == none.alone(*function)));
    }
}
