//! What is known of functions' imports, kept over restarts: which modules each version had loaded after its start, how long that
//! took, and how often it is started.
//!
//! A version is named by its code, handler, *ground* and packages: who else imports among the same imports the same. What is known
//! was said by a process of the function, which may lie; it can only make a layer of its own packages, that no function uses
//! but those that import all that is in it, and that [`super::fit`] lets.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spry_sched::FunctionId;
use spry_sched::layers::{self, Contents, Measured, Wanted};

use super::fit::Provided;
use super::key::{GroundKey, LayerKey, VersionKey};
use super::numbers::Names;

/// Starts of long ago count less. (By the hour, what is worth a layer among functions that are called every few hours went back and forth.)
const FADES_HOURS: f64 = 24.0;
/// Every function may be started again some time.
const STARTS_PER_HOUR_MIN: f64 = 0.05;
/// Versions that are remembered.
const VERSIONS_MAX: usize = 4096;

/// What is known of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Version {
    /// Not its own ones; sorted.
    pub(super) modules: Vec<String>,
    /// Of a start by itself, as long as somebody would have waited for it: for people to read.
    pub(super) start_ns: u64,
    /// The processor's time for that. (What was written down by an earlier spryd doesn't say.)
    #[serde(default)]
    cpu_ns: u64,
    /// That its zygote holds.
    pub(super) bytes: u64,
    /// Its memory limit.
    pub(super) limit_bytes: u64,
    /// See [`super::fit::own_names`]. (What was written down by an earlier spryd doesn't say.)
    #[serde(default, rename = "own_names")]
    pub(super) own: Option<Vec<String>>,
    /// It was begun from a layer and failed, and did well by itself.
    #[serde(skip)]
    pub(super) alone: bool,
    /// How often it is started.
    #[serde(skip)]
    starts: Starts,
}

/// What a start has taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    pub(super) wall: Duration,
    pub(super) cpu: Duration,
}

#[cfg(test)]
pub(super) const TOOK: Took = Took { wall: Duration::from_millis(900), cpu: Duration::from_millis(300) };

impl Version {
    /// What a version's zygote said and was measured at, after a start by itself.
    pub(super) fn new(
        mut modules: Vec<String>,
        took: Took,
        bytes: u64,
        limit_bytes: u64,
        own: Option<Vec<String>>,
    ) -> Self {
        modules.sort_unstable();
        let (start_ns, cpu_ns) = (took.wall.as_nanos() as u64, took.cpu.as_nanos() as u64);
        Self { modules, start_ns, cpu_ns, bytes, limit_bytes, own, alone: false, starts: Starts::default() }
    }

    /// What plans go by: how long others were let run meanwhile says nothing of the next start.
    fn work_ns(&self) -> u64 {
        if self.cpu_ns == 0 { self.start_ns } else { self.cpu_ns }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Starts {
    per_hour: f64,
    at: Option<Instant>,
}

impl Starts {
    fn at(&self, now: Instant) -> f64 {
        let age = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.per_hour * (-age.as_secs_f64() / 3600.0 / FADES_HOURS).exp()
    }

    fn add(&mut self, now: Instant) {
        self.per_hour = self.at(now) + 1.0 / FADES_HOURS;
        self.at = Some(now);
    }
}

/// A layer that should be there.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NamedPlan {
    pub(super) key: LayerKey,
    pub(super) versions: Vec<VersionKey>,
}

/// What versions have in common that are one to the planner: all that makes a layer, and what of their own could be imported.
type Alike<'a> = (Contents, Option<&'a [String]>);

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    versions: HashMap<VersionKey, Version>,
    /// What distributions bring.
    pub(super) provided: Provided,
}

impl Known {
    /// As it was written down; nothing, if that can't be read.
    pub(super) fn read(path: &Path) -> Self {
        let list = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let mut list: Vec<(VersionKey, Version)> = list.unwrap_or_default();
        for (_, version) in &mut list {
            version.modules.sort_unstable();
        }
        Self { versions: list.into_iter().collect(), provided: Provided::default() }
    }

    /// The text to write down.
    pub(super) fn text(&self) -> Vec<u8> {
        let list: Vec<_> = self.versions.iter().collect();
        serde_json::to_vec(&list).unwrap_or_default()
    }

    pub(super) fn get(&self, key: &VersionKey) -> Option<&Version> {
        self.versions.get(key)
    }

    /// Notes what a version said of itself after a start by itself.
    pub(super) fn learn(&mut self, key: VersionKey, mut version: Version, now: Instant) {
        if let Some(before) = self.versions.get(&key) {
            version.starts = before.starts.clone();
            version.alone = before.alone;
        }
        version.starts.add(now);
        self.versions.insert(key, version);
        if self.versions.len() > VERSIONS_MAX {
            let oldest = self.versions.iter().min_by_key(|(_, version)| version.starts.at);
            let oldest = oldest.map(|(key, _)| key.clone());
            oldest.and_then(|key| self.versions.remove(&key));
        }
    }

    /// Notes a start.
    pub(super) fn started(&mut self, key: &VersionKey, now: Instant) {
        if let Some(version) = self.versions.get_mut(key) {
            version.starts.add(now);
        }
    }

    /// Has a version begin by itself from now on.
    pub(super) fn leave_alone(&mut self, key: &VersionKey) {
        if let Some(version) = self.versions.get_mut(key) {
            version.alone = true;
        }
    }

    /// Forgets versions that aren't kept.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&VersionKey) -> bool) {
        self.versions.retain(|key, _| is_kept(key));
        self.provided
            .retain(|folder| self.versions.keys().any(|key| key.packages.iter().any(|one| one == folder)));
    }

    /// Whether some version has all of these folders.
    pub(super) fn has_all(&self, folders: &[String]) -> bool {
        let has_all =
            |key: &VersionKey| folders.iter().all(|folder| key.packages.binary_search(folder).is_ok());
        folders.is_empty() || self.versions.keys().any(has_all)
    }

    /// Whether a version imports on it.
    pub(super) fn has_ground(&self, ground: &GroundKey) -> bool {
        self.versions.keys().any(|key| key.ground == *ground)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&VersionKey, &Version)> {
        self.versions.iter()
    }

    /// Plans, for those that import on one of these grounds. `suits` tells whom a layer would suit, as far as that is known.
    pub(super) fn plan(
        &self,
        grounds: &HashSet<GroundKey>,
        there: &[(LayerKey, Measured)],
        budget_bytes: u64,
        now: Instant,
        suits: impl Fn(&LayerKey, &VersionKey, &Version) -> bool,
    ) -> Vec<NamedPlan> {
        let mut names = Names::default();
        let numbers: Vec<&GroundKey> = grounds.iter().collect();
        let number = |key: &GroundKey| numbers.iter().position(|ground| *ground == key);
        // Those that import the same are one.
        let mut alike: BTreeMap<Alike<'_>, (Wanted, Vec<&VersionKey>)> = BTreeMap::new();
        for (key, version) in self.versions.iter().filter(|(_, version)| !version.alone) {
            let Some(ground) = number(&key.ground) else { continue };
            let contents = names.contents(ground as u32, &version.modules, &key.packages, &self.provided);
            let Some(contents) = contents else { continue };
            let starts_per_hour = version.starts.at(now).max(STARTS_PER_HOUR_MIN);
            let (start_ns, bytes) = (version.work_ns(), version.bytes);
            let Contents { ground, modules, packages } = contents.clone();
            let one = alike.entry((contents, version.own.as_deref())).or_insert_with(|| {
                let function = FunctionId(0);
                (
                    Wanted { function, ground, modules, packages, start_ns, bytes, starts_per_hour: 0.0 },
                    Vec::new(),
                )
            });
            one.0.start_ns = one.0.start_ns.min(start_ns);
            one.0.bytes = one.0.bytes.max(bytes);
            one.0.starts_per_hour += starts_per_hour;
            one.1.push(key);
        }
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut keys: Vec<Vec<&VersionKey>> = Vec::new();
        for (one, versions) in alike.into_values() {
            wanted.push(Wanted { function: FunctionId(keys.len() as u32), ..one });
            keys.push(versions);
        }
        let there: HashMap<Contents, Measured> = there
            .iter()
            .filter_map(|(key, measured)| {
                let ground = number(&key.ground)? as u32;
                Some((names.contents(ground, &key.modules, &key.packages, &self.provided)?, *measured))
            })
            .collect();
        let key_of = |contents: &Contents| {
            let mut modules: Vec<String> =
                contents.modules.iter().map(|number| names.module(*number)).collect();
            modules.sort_unstable();
            let mut packages: Vec<String> =
                contents.packages.iter().map(|number| names.name(*number)).collect();
            packages.sort_unstable();
            LayerKey { ground: numbers[contents.ground as usize].clone(), modules, packages }
        };
        // (Asked for every function, one layer after the other.)
        let last: RefCell<Option<(Contents, LayerKey)>> = RefCell::default();
        let suits = |contents: &Contents, function: FunctionId| {
            let mut last = last.borrow_mut();
            if last.as_ref().is_none_or(|(before, _)| before != contents) {
                *last = Some((contents.clone(), key_of(contents)));
            }
            let Some((_, layer)) = &*last else { return false };
            let first = keys[function.0 as usize].first();
            first.is_some_and(|key| self.versions.get(*key).is_some_and(|version| suits(layer, key, version)))
        };
        let planned = layers::plan(&wanted, budget_bytes, |contents| there.get(contents).copied(), suits);
        planned
            .into_iter()
            .map(|planned| NamedPlan {
                key: key_of(&planned.contents),
                versions: planned
                    .functions
                    .iter()
                    .flat_map(|function| keys[function.0 as usize].iter())
                    .map(|key| (*key).clone())
                    .collect(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(name: &str) -> GroundKey {
        GroundKey(name.to_owned())
    }

    fn key(code: &str, on: &str) -> VersionKey {
        VersionKey {
            code: code.to_owned(),
            handler: "f:main".to_owned(),
            ground: ground(on),
            packages: vec![],
        }
    }

    fn plan(known: &Known, on: &[&str], budget_bytes: u64) -> Vec<NamedPlan> {
        let grounds = on.iter().map(|name| ground(name)).collect();
        known.plan(&grounds, &[], budget_bytes, Instant::now(), |_, _, _| true)
    }

    fn version(modules: &[&str]) -> Version {
        let modules = modules.iter().map(|name| (*name).to_owned()).collect();
        Version::new(modules, TOOK, 30 << 20, 128 << 20, Some(vec![]))
    }

    fn known() -> Known {
        let mut known = Known::default();
        let now = Instant::now();
        known.learn(key("a", "g"), version(&["os", "numpy", "json"]), now);
        known.learn(key("b", "g"), version(&["os", "numpy", "csv"]), now);
        known.learn(key("c", "h"), version(&["os", "numpy", "json"]), now);
        known
    }

    #[test]
    fn what_two_have_in_common_is_planned_for_both() {
        let known = known();
        let planned = plan(&known, &["g"], 25 << 20);
        assert_eq!(planned.len(), 1, "{planned:?}");
        assert_eq!(planned[0].key.modules, ["numpy", "os"]);
        let mut versions = planned[0].versions.clone();
        versions.sort();
        assert_eq!(versions, [key("a", "g"), key("b", "g")]);
        assert!(plan(&known, &["g"], 0).is_empty());
        assert!(plan(&known, &[], 1 << 40).is_empty());
    }

    /// Two functions with other packages beside one that both have, and a third with another version of that.
    #[test]
    fn what_comes_from_the_same_distribution_is_planned_for_both_and_nothing_else() {
        let mut known = Known::default();
        for (folder, brings) in
            [("/numpy-1-a", "numpy"), ("/numpy-2-b", "numpy"), ("/x-1-c", "x"), ("/y-1-d", "y")]
        {
            known.provided.insert(folder, &[brings]);
        }
        for (code, packages, own) in [
            ("a", ["/numpy-1-a", "/x-1-c"], "x"),
            ("b", ["/numpy-1-a", "/y-1-d"], "y"),
            ("c", ["/numpy-2-b", "/y-1-d"], "y"),
        ] {
            let of_numpy: Vec<String> = (0..40).map(|at| format!("numpy.m{at}")).collect();
            let mut modules: Vec<&str> = of_numpy.iter().map(String::as_str).collect();
            modules.extend(["os", "numpy", own]);
            let key = VersionKey { packages: packages.map(str::to_owned).to_vec(), ..key(code, "g") };
            known.learn(key, version(&modules), Instant::now());
        }
        let planned = plan(&known, &["g"], 1 << 40);
        let shared =
            planned.iter().find(|plan| plan.versions.len() == 2 && plan.key.packages == ["/numpy-1-a"]);
        let shared = shared.unwrap_or_else(|| panic!("{planned:?}"));
        assert_eq!(shared.key.modules.len(), 42, "all but its own: {shared:?}");
        assert!(shared.versions.iter().all(|key| key.code != "c"), "{planned:?}");
        // It is the same when it has been made.
        let measured = Measured { is_there: true, start_ns: 300_000_000, restore_ns: 1, bytes: 1 << 20 };
        let there = [(shared.key.clone(), measured)];
        let again = known.plan(&[ground("g")].into(), &there, 1 << 20, Instant::now(), |_, _, _| true);
        assert_eq!(again.len(), 1, "{again:?}");
        assert_eq!(again[0].key, shared.key);
    }

    #[test]
    fn it_is_the_same_after_a_restart_but_for_the_counts() {
        let known = known();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("imports");
        assert!(Known::read(&path).versions.is_empty());
        fs::write(&path, known.text()).expect("written");
        let read = Known::read(&path);
        assert_eq!(read.versions.len(), 3);
        // As it was written before distributions had folders of their own.
        let before = r#"[[{"code":"a","handler":"f:main","ground":"g"},{"modules":["os"],"start_ns":1,"bytes":2,"limit_bytes":3}]]"#;
        fs::write(&path, before).expect("written");
        assert_eq!(Known::read(&path).get(&key("a", "g")).map(|version| version.own.clone()), Some(None));
        assert_eq!(read.get(&key("a", "g")).expect("known").modules, ["json", "numpy", "os"]);
        fs::write(&path, b"nonsense").expect("written");
        assert!(Known::read(&path).versions.is_empty());
    }

    #[test]
    fn who_did_badly_on_a_layer_is_left_alone_and_who_is_gone_is_forgotten() {
        let (mut known, now) = (known(), Instant::now());
        known.leave_alone(&key("b", "g"));
        known.learn(key("b", "g"), version(&["os", "numpy"]), now);
        let planned = plan(&known, &["g"], 1 << 40);
        assert_eq!(planned.iter().map(|planned| planned.versions.len()).sum::<usize>(), 1, "{planned:?}");
        known.retain(|key| key.code != "a");
        assert!(plan(&known, &["g"], 1 << 40).is_empty());
    }
    #[test]
    fn plans_go_by_the_processors_time() {
        let key = key("slow", "g");
        let waited = Took { wall: Duration::from_secs(3), cpu: Duration::from_millis(5) };
        let modules = ["decimal", "os"].map(str::to_owned).to_vec();
        let version = Version::new(modules, waited, 30 << 20, 128 << 20, Some(vec![]));
        let mut known = Known::default();
        known.learn(key.clone(), version.clone(), Instant::now());
        assert_eq!(plan(&known, &["g"], 1 << 30), [], "others had the processor");
        known.learn(key, Version { cpu_ns: 0, ..version }, Instant::now());
        assert_eq!(plan(&known, &["g"], 1 << 30).len(), 1, "nothing else is known");
    }
}
