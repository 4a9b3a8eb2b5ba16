//! What is known of functions' imports, kept over restarts: which modules each version had loaded after its start, how long that
//! took, and how often it is started.
//!
//! A version is named by its code, handler and *ground*: who else imports on the same ground imports the same. What is known
//! was said by a process of the function, which may lie; it can only make a layer of its own packages, that no function uses
//! but those that import all that is in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spry_sched::FunctionId;
use spry_sched::layers::{self, Measured, Wanted};

use crate::store::StoredFunction;
use crate::zygote::{Runtime, ZygoteSpec};

/// Starts of long ago count less.
const FADES: Duration = Duration::from_secs(3600);
/// Every function may be started again some time.
const STARTS_PER_HOUR_MIN: f64 = 0.05;
/// Versions that are remembered.
const VERSIONS_MAX: usize = 4096;

/// Names what functions import on: the hash of the interpreter's file, the packages' folder and the manifest's variables.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct GroundKey(String);

/// What they import on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ground {
    pub(super) interpreter: PathBuf,
    pub(super) packages: Option<PathBuf>,
    pub(super) env: BTreeMap<String, String>,
}

impl Ground {
    /// Of a function's process; only Python's are looked at.
    pub(super) fn of(spec: &ZygoteSpec) -> Option<(GroundKey, Self)> {
        let Runtime::Python { interpreter } = &spec.runtime else { return None };
        let file = fs::metadata(interpreter).ok()?;
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(interpreter.as_os_str().as_encoded_bytes());
        for number in [file.dev(), file.ino(), file.size(), file.mtime() as u64, file.mtime_nsec() as u64] {
            add(&number.to_le_bytes());
        }
        add(spec.packages.as_deref().unwrap_or(Path::new("")).as_os_str().as_encoded_bytes());
        for (name, value) in &spec.env {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        let key = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let ground =
            Self { interpreter: interpreter.clone(), packages: spec.packages.clone(), env: spec.env.clone() };
        Some((GroundKey(key), ground))
    }
}

/// Names a version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct VersionKey {
    code: String,
    handler: String,
    ground: GroundKey,
}

impl VersionKey {
    pub(super) fn of(stored: &StoredFunction, ground: &GroundKey) -> Self {
        let code = if stored.code_sha256.is_empty() { &stored.sha256 } else { &stored.code_sha256 };
        let handler = stored.manifest.handler.clone();
        Self { code: code.clone(), handler, ground: ground.clone() }
    }

    pub(super) fn ground(&self) -> &GroundKey {
        &self.ground
    }

    /// Whether it is this version, on whatever ground.
    pub(super) fn is_of(&self, stored: &StoredFunction) -> bool {
        *self == Self::of(stored, &self.ground)
    }
}

/// What is known of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Version {
    /// Not its own ones.
    pub(super) modules: Vec<String>,
    /// Of a start by itself.
    pub(super) start_ns: u64,
    /// That its zygote holds.
    pub(super) bytes: u64,
    /// Its memory limit.
    pub(super) limit_bytes: u64,
    /// It was begun from a layer and failed, and did well by itself.
    #[serde(skip)]
    pub(super) alone: bool,
    /// How often it is started.
    #[serde(skip)]
    starts: Starts,
}

impl Version {
    /// What a version's zygote said and was measured at, after a start by itself.
    pub(super) fn new(modules: Vec<String>, took: Duration, bytes: u64, limit_bytes: u64) -> Self {
        let start_ns = took.as_nanos() as u64;
        Self { modules, start_ns, bytes, limit_bytes, alone: false, starts: Starts::default() }
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
        self.per_hour * (-age.as_secs_f64() / FADES.as_secs_f64()).exp()
    }

    fn add(&mut self, now: Instant) {
        self.per_hour = self.at(now) + 1.0;
        self.at = Some(now);
    }
}

/// A layer that should be there, by names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NamedPlan {
    pub(super) ground: GroundKey,
    /// Sorted: in that order they are imported, so that none of the functions has a say in it.
    pub(super) modules: Vec<String>,
    pub(super) versions: Vec<VersionKey>,
}

/// What versions have in common that are one to the planner: ground and modules.
type Alike = (u32, Vec<u32>);

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    versions: HashMap<VersionKey, Version>,
}

impl Known {
    /// As it was written down; nothing, if that can't be read.
    pub(super) fn read(path: &Path) -> Self {
        let list = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let list: Vec<(VersionKey, Version)> = list.unwrap_or_default();
        Self { versions: list.into_iter().collect() }
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
    }

    /// Whether a version imports on it.
    pub(super) fn has_ground(&self, ground: &GroundKey) -> bool {
        self.versions.keys().any(|key| key.ground == *ground)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&VersionKey, &Version)> {
        self.versions.iter()
    }

    /// Plans, for those that import on one of these grounds.
    pub(super) fn plan(
        &self,
        grounds: &HashSet<GroundKey>,
        there: &[(GroundKey, Vec<String>, Measured)],
        budget_bytes: u64,
        now: Instant,
    ) -> Vec<NamedPlan> {
        let mut names = Names::default();
        let numbers: Vec<&GroundKey> = grounds.iter().collect();
        let number = |key: &GroundKey| numbers.iter().position(|ground| *ground == key);
        // Those that import the same are one.
        let mut alike: BTreeMap<Alike, (Wanted, Vec<&VersionKey>)> = BTreeMap::new();
        for (key, version) in self.versions.iter().filter(|(_, version)| !version.alone) {
            let Some(ground) = number(&key.ground) else { continue };
            let (ground, modules) = (ground as u32, names.numbers(&version.modules));
            let starts_per_hour = version.starts.at(now).max(STARTS_PER_HOUR_MIN);
            let (start_ns, bytes) = (version.start_ns, version.bytes);
            let one = alike.entry((ground, modules.clone())).or_insert_with(|| {
                let function = FunctionId(0);
                (Wanted { function, ground, modules, start_ns, bytes, starts_per_hour: 0.0 }, Vec::new())
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
        let there: HashMap<(u32, Vec<u32>), Measured> = there
            .iter()
            .filter_map(|(ground, modules, measured)| {
                Some(((number(ground)? as u32, names.numbers(modules)), *measured))
            })
            .collect();
        let measured = |ground, modules: &[u32]| there.get(&(ground, modules.to_vec())).copied();
        let planned = layers::plan(&wanted, budget_bytes, measured);
        planned
            .into_iter()
            .map(|planned| {
                let mut modules: Vec<String> =
                    planned.modules.iter().map(|module| names.name(*module)).collect();
                modules.sort_unstable();
                let versions = planned.functions.iter().flat_map(|function| keys[function.0 as usize].iter());
                NamedPlan {
                    ground: numbers[planned.ground as usize].clone(),
                    modules,
                    versions: versions.map(|key| (*key).clone()).collect(),
                }
            })
            .collect()
    }
}

/// Numbers for names, for as long as a plan is made.
#[derive(Debug, Default)]
struct Names<'a> {
    numbers: HashMap<&'a str, u32>,
    names: Vec<&'a str>,
}

impl<'a> Names<'a> {
    /// Sorted.
    fn numbers(&mut self, names: &'a [String]) -> Vec<u32> {
        let mut numbers: Vec<u32> = names
            .iter()
            .map(|name| {
                *self.numbers.entry(name).or_insert_with(|| {
                    self.names.push(name);
                    self.names.len() as u32 - 1
                })
            })
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn name(&self, number: u32) -> String {
        self.names[number as usize].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(name: &str) -> GroundKey {
        GroundKey(name.to_owned())
    }

    fn key(code: &str, on: &str) -> VersionKey {
        VersionKey { code: code.to_owned(), handler: "f:main".to_owned(), ground: ground(on) }
    }

    fn version(modules: &[&str]) -> Version {
        let modules = modules.iter().map(|name| (*name).to_owned()).collect();
        Version::new(modules, Duration::from_millis(300), 30 << 20, 128 << 20)
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
        let (known, now) = (known(), Instant::now());
        let planned = known.plan(&[ground("g")].into(), &[], 25 << 20, now);
        assert_eq!(planned.len(), 1, "{planned:?}");
        assert_eq!(planned[0].modules, ["numpy", "os"]);
        let mut versions = planned[0].versions.clone();
        versions.sort();
        assert_eq!(versions, [key("a", "g"), key("b", "g")]);
        assert!(known.plan(&[ground("g")].into(), &[], 0, now).is_empty());
        assert!(known.plan(&HashSet::new(), &[], 1 << 40, now).is_empty());
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
        assert_eq!(read.get(&key("a", "g")).expect("known").modules, ["os", "numpy", "json"]);
        fs::write(&path, b"nonsense").expect("written");
        assert!(Known::read(&path).versions.is_empty());
    }

    #[test]
    fn who_did_badly_on_a_layer_is_left_alone_and_who_is_gone_is_forgotten() {
        let (mut known, now) = (known(), Instant::now());
        known.leave_alone(&key("b", "g"));
        known.learn(key("b", "g"), version(&["os", "numpy"]), now);
        let planned = known.plan(&[ground("g")].into(), &[], 1 << 40, now);
        assert_eq!(planned.iter().map(|planned| planned.versions.len()).sum::<usize>(), 1, "{planned:?}");
        known.retain(|key| key.code != "a");
        assert!(known.plan(&[ground("g")].into(), &[], 1 << 40, now).is_empty());
    }
}
