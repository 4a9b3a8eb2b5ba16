//! Control groups: what a function's processes may use, and finding all of them again.
//!
//! ```text
//! <spryd's own group>/spry-<node>/<function>/zygote-0
//!                                           /instance-1 …
//! ```
//!
//! - Or side by side, where a policy says who goes first ([`Arrangement`]).
//! - [`layout`] finds the hierarchies (v2, v1, or both); [`limits`] knows their interface files; `dir` is a
//!   folder in one of them; [`Leaf`] is a group in all of them. A [`Tree`] without hierarchies is valid: its
//!   leaves hold nothing, and the sandbox's rlimits and the [`watchdog`] stand in.
//! - There is no trait with an implementation per version: a hybrid node has both at once, and the versions differ in
//!   file names only (a table in [`limits`]) and in `cgroup.kill`.
//! - v2 lets a group have either processes or controlled children. Where spryd sits in the group that it was
//!   given, it moves itself to a leaf beside its tree first.
//! - Names carry the node's id, so that a new spryd finds what a crashed one left ([`Tree::open`] kills and removes
//!   it) and never touches another's.
//! - Everything here blocks for microseconds, except moving a process: the first move after a quiet moment waits
//!   for an RCU grace period, some 7 ms (docs/decisions/0003-cgroup-placement.md).

mod dir;
pub mod layout;
mod leaf;
pub mod limits;
pub mod watchdog;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::sandbox::{Outcome, Probe};
use dir::Dir;
pub use layout::{Controller, Hierarchy, Version};
pub use leaf::{FunctionGroup, Leaf, WhenEmpty};
pub use limits::GroupLimits;

/// A control group could not be made, read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct CgroupError {
    /// What was being done.
    pub operation: &'static str,
    /// To which folder or file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl CgroupError {
    fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self { operation, path: path.to_owned(), source }
    }
}

/// Whom the kernel compares when groups want the same core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arrangement {
    /// Functions: each has a folder, and its processes share what that gets.
    #[default]
    ByFunction,
    /// Processes: no folders, so that what is said of one process (`cpu.idle`) holds against those of all functions
    /// (docs/decisions/0019-who-goes-first.md).
    SideBySide,
}

/// Behind the tree's name: the leaf beside it that spryd itself moves to (v2: a group with children that are limited has no
/// processes of its own).
const DAEMON_LEAF: &str = "-daemon";

/// All groups of this spryd.
#[derive(Debug)]
pub struct Tree {
    name: String,
    arrangement: Arrangement,
    roots: Vec<Dir>,
    controllers: Vec<(Controller, usize)>,
    refused: Vec<CgroupError>,
    functions: Mutex<HashMap<String, Weak<FunctionGroup>>>,
    /// Counts folders that could not have their function's name.
    doubles: AtomicU64,
    /// Numbers the leaves of all functions.
    leaves: AtomicU64,
    /// Folders whose removal failed, children before parents.
    stale: Mutex<Vec<Dir>>,
}

impl Tree {
    /// Makes the tree below this process's own groups, after killing and removing what an earlier spryd of the same
    /// node left there. `node` names the state folder (its user makes sure that one spryd at a time has it).
    /// `record` is a file that remembers where the tree was, for a successor that starts in another group.
    /// A hierarchy that can't be used is left out, and [`Self::probes`] says why.
    pub fn open(node: &str, arrangement: Arrangement, record: Option<&Path>) -> io::Result<Arc<Self>> {
        let found = layout::find()?;
        Self::open_in(found, node, arrangement, record)
    }

    /// The same, in these hierarchies.
    pub fn open_in(
        hierarchies: Vec<Hierarchy>,
        node: &str,
        arrangement: Arrangement,
        record: Option<&Path>,
    ) -> io::Result<Arc<Self>> {
        let name = format!("spry-{node}");
        let mut tree = Self {
            name,
            arrangement,
            roots: vec![],
            controllers: vec![],
            refused: vec![],
            functions: Mutex::default(),
            doubles: AtomicU64::new(0),
            leaves: AtomicU64::new(0),
            stale: Mutex::default(),
        };
        if let Some(record) = record {
            tree.sweep_recorded(record, &hierarchies);
        }
        for hierarchy in hierarchies {
            match tree.root_in(&hierarchy) {
                Ok((dir, controllers)) => {
                    let index = tree.roots.len();
                    tree.controllers.extend(controllers.into_iter().map(|controller| (controller, index)));
                    tree.roots.push(dir);
                }
                Err(error) => tree.refused.push(error),
            }
        }
        if let Some(record) = record {
            let paths: Vec<_> = tree.roots.iter().map(|root| root.path.to_string_lossy()).collect();
            fs::write(record, paths.join("\n"))?;
        }
        Ok(Arc::new(tree))
    }

    /// A tree without groups.
    pub fn none() -> Arc<Self> {
        let (name, roots, controllers, refused) = (String::new(), vec![], vec![], vec![]);
        Arc::new(Self {
            name,
            arrangement: Arrangement::default(),
            roots,
            controllers,
            refused,
            functions: Mutex::default(),
            doubles: AtomicU64::new(0),
            leaves: AtomicU64::new(0),
            stale: Mutex::default(),
        })
    }

    fn root_in(&self, hierarchy: &Hierarchy) -> Result<(Dir, Vec<Controller>), CgroupError> {
        let version = hierarchy.version;
        let daemon = format!("{}{DAEMON_LEAF}", self.name);
        // started again by itself within the leaf that an earlier start moved it to
        let own = match hierarchy.own.parent() {
            Some(parent) if hierarchy.own.ends_with(&daemon) => parent,
            _ => &hierarchy.own,
        };
        let path = own.join(&self.name);
        if path.is_dir() {
            tracing::info!("removing what an earlier spryd left in {}", path.display());
            let left = Dir { version, path: path.clone() };
            left.clear().map_err(|source| CgroupError::new("clear", &path, source))?;
        }
        let controllers = hierarchy.controllers.clone();
        if version == Version::V2 {
            // the root of all groups, which has no `cgroup.type`, may have both processes and controlled children
            let own = Dir { version, path: own.to_owned() };
            if own.path.join("cgroup.type").exists() && !own.members().is_empty() {
                let leaf = own.path.join(&daemon);
                if !leaf.is_dir() {
                    Dir::create(version, leaf.clone())?;
                }
                Dir { version, path: leaf }.write("cgroup.procs", "0")?;
            }
            hand_down(&own, &controllers)?;
        }
        let root = Dir::create(version, path)?;
        if version == Version::V2
            && let Err(error) = hand_down(&root, &controllers)
        {
            let _ = root.remove();
            return Err(error);
        }
        Ok((root, controllers))
    }

    /// Clears the trees of this node that a predecessor noted, where they are still to be seen.
    fn sweep_recorded(&self, record: &Path, hierarchies: &[Hierarchy]) {
        for path in fs::read_to_string(record).unwrap_or_default().lines().map(PathBuf::from) {
            let Some(hierarchy) = hierarchies.iter().find(|h| path.starts_with(&h.mount)) else { continue };
            if !path.ends_with(&self.name) || !path.is_dir() {
                continue;
            }
            tracing::info!("removing what an earlier spryd left in {}", path.display());
            if let Err(error) = (Dir { version: hierarchy.version, path: path.clone() }).clear() {
                tracing::warn!("{} could not be removed: {error}", path.display());
            }
        }
    }

    /// The groups of one function; the same for all who ask while anyone has them.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Arc<FunctionGroup>, CgroupError> {
        let mut functions = self.functions.lock();
        if let Some(group) = functions.get(name).and_then(Weak::upgrade) {
            return Ok(group);
        }
        // An earlier group of that name may still be on its way out (a dead process leaves its group a little
        // after its end is told): then the new one has another folder.
        self.retry_removals();
        let mut folder = name.to_owned();
        let group = loop {
            match FunctionGroup::create(self, &folder) {
                Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
                    folder = format!("{name}.{}", self.doubles.fetch_add(1, Ordering::Relaxed));
                }
                made => break Arc::new(made?),
            }
        };
        functions.retain(|_, group| group.strong_count() > 0);
        functions.insert(name.to_owned(), Arc::downgrade(&group));
        Ok(group)
    }

    /// Does a control group hold this limit?
    pub fn has(&self, controller: Controller) -> bool {
        self.controllers.iter().any(|(has, _)| *has == controller)
    }

    /// Removes a folder, or notes it for [`Self::retry_removals`]: a dead process may leave its group a little
    /// after its end is told.
    fn discard(&self, dir: Dir) {
        if dir.remove().is_err() {
            self.stale.lock().push(dir);
        }
    }

    /// Tries again to remove what was still busy.
    pub fn retry_removals(&self) {
        self.stale.lock().retain(|dir| dir.remove().is_err());
    }

    /// Kills and removes everything. Blocks; for the end.
    pub fn remove(&self) -> io::Result<()> {
        let results: Vec<_> = self.roots.iter().filter(|root| root.path.is_dir()).map(Dir::clear).collect();
        results.into_iter().collect()
    }

    /// The folders of the tree itself, one per hierarchy.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().map(|root| root.path.as_path())
    }

    /// One line per limit.
    pub fn probes(&self) -> Vec<Probe> {
        let why = || match self.refused.first() {
            Some(error) => error.to_string(),
            None => "no hierarchy has the controller".to_owned(),
        };
        let line = |(controller, name, instead)| {
            let held = self.controllers.iter().find(|(has, _)| *has == controller);
            let outcome = match held.map(|(_, index)| &self.roots[*index]) {
                Some(root) => Outcome::Yes {
                    detail: format!(
                        "{}, below {}",
                        match root.version {
                            Version::V1 => "cgroup v1",
                            Version::V2 => "cgroup v2",
                        },
                        root.path.parent().unwrap_or(&root.path).display()
                    ),
                },
                None => Outcome::No { why: why(), instead },
            };
            Probe { name, outcome }
        };
        let lines = [
            (
                Controller::Memory,
                "memory limit",
                "RLIMIT_DATA per process, and a watchdog on resident memory",
            ),
            (Controller::Cpu, "CPU limit", "nothing: a function may use all CPUs"),
            (Controller::Pids, "process limit", "RLIMIT_NPROC per function"),
        ];
        lines.into_iter().map(line).collect()
    }

    fn roots(&self) -> &[Dir] {
        &self.roots
    }

    /// Makes `name` below each of `parents` (in the order of the roots); all of them or none.
    fn create_below(&self, parents: &[Dir], name: &str, inner: bool) -> Result<Vec<Dir>, CgroupError> {
        let mut made = Vec::with_capacity(parents.len());
        for (index, parent) in parents.iter().enumerate() {
            let result = Dir::create(parent.version, parent.path.join(name));
            let result = result.and_then(|dir| {
                made.push(dir);
                let controllers: Vec<_> = self
                    .controllers
                    .iter()
                    .filter(|(_, at)| *at == index)
                    .map(|(controller, _)| *controller)
                    .collect();
                if inner && parent.version == Version::V2 {
                    hand_down(&made[made.len() - 1], &controllers)?;
                }
                Ok(())
            });
            if let Err(error) = result {
                made.iter().for_each(|dir| drop(dir.remove()));
                return Err(error);
            }
        }
        Ok(made)
    }

    /// The tree's folder with the cpu controller.
    pub fn cpu_folder(&self) -> Option<&Path> {
        Some(&self.dir_of(Controller::Cpu, &self.roots)?.path)
    }

    fn apply(&self, dirs: &[Dir], limits: &GroupLimits) -> Result<(), CgroupError> {
        for (controller, index) in &self.controllers {
            let Some(dir) = dirs.get(*index) else { continue };
            for setting in limits::settings(dir.version, *controller, limits) {
                match dir.write(setting.file, &setting.value) {
                    Err(error) if setting.required => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn dir_of<'a>(&self, controller: Controller, dirs: &'a [Dir]) -> Option<&'a Dir> {
        let (_, index) = self.controllers.iter().find(|(has, _)| *has == controller)?;
        dirs.get(*index)
    }

    /// `/spry-<node>/…`: the part of a folder's path that is the same in `/proc/<pid>/cgroup`.
    fn path_within(&self, path: &Path) -> Option<String> {
        let root = self.roots.iter().find(|root| path.starts_with(&root.path))?;
        let tail = path.strip_prefix(&root.path).ok()?;
        Some(format!("/{}/{}", self.name, tail.display()))
    }
}

/// v2: children of `dir` get these controllers.
fn hand_down(dir: &Dir, controllers: &[Controller]) -> Result<(), CgroupError> {
    controllers
        .iter()
        .try_for_each(|controller| dir.write("cgroup.subtree_control", &format!("+{}", controller.name())))
}

/// The group whose children functions' groups are, for a spryd that has moved itself into a leaf beside them.
fn above_a_daemon(own: &Path) -> &Path {
    let name = own.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let is_leaf = name.starts_with("spry-") && name.ends_with(DAEMON_LEAF);
    own.parent().filter(|_| is_leaf).unwrap_or(own)
}

/// What a spryd started by the caller would find; makes and removes a tree of its own to see.
pub fn probe() -> Vec<Probe> {
    let layout = match layout::find() {
        Ok(found) => found,
        Err(error) => {
            return vec![Probe {
                name: "cgroup layout",
                outcome: Outcome::Error { what: error.to_string() },
            }];
        }
    };
    let has = |version| layout.iter().any(|hierarchy| hierarchy.version == version);
    let outcome = match (has(Version::V1), has(Version::V2)) {
        (true, true) => Outcome::Yes { detail: "hybrid, controllers in v1 and v2".to_owned() },
        (true, false) => Outcome::Yes { detail: "v1".to_owned() },
        (false, true) => Outcome::Yes { detail: "v2".to_owned() },
        (false, false) => Outcome::No {
            why: "no hierarchy with memory, cpu or pids is mounted".to_owned(),
            instead: "rlimits, and a watchdog on resident memory",
        },
    };
    let mut probes = vec![Probe { name: "cgroup layout", outcome }];
    match probe_limits(layout) {
        Ok(limits) => probes.extend(limits),
        Err(error) => {
            probes.push(Probe { name: "limits", outcome: Outcome::Error { what: error.to_string() } })
        }
    }
    probes
}

/// Tries on a tree of its own. v2's are told from `cgroup.subtree_control` only, so as not to move the caller.
fn probe_limits(layout: Vec<Hierarchy>) -> io::Result<Vec<Probe>> {
    let node = format!("probe-{}", std::process::id());
    let may_move = layout.iter().all(|hierarchy| hierarchy.version == Version::V1);
    if may_move {
        let tree = Tree::open_in(layout, &node, Arrangement::default(), None)?;
        let probes = tree.probes();
        tree.remove()?;
        return Ok(probes);
    }
    let mut tree = Tree {
        arrangement: Arrangement::default(),
        name: node,
        roots: vec![],
        controllers: vec![],
        refused: vec![],
        functions: Mutex::default(),
        doubles: AtomicU64::new(0),
        leaves: AtomicU64::new(0),
        stale: Mutex::default(),
    };
    for hierarchy in layout {
        let own = Dir { version: hierarchy.version, path: above_a_daemon(&hierarchy.own).to_owned() };
        let writable = nix::unistd::access(&own.path.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK);
        match writable {
            Ok(()) => {
                let index = tree.roots.len();
                tree.controllers
                    .extend(hierarchy.controllers.into_iter().map(|controller| (controller, index)));
                // the lines name the parent of a root
                tree.roots.push(Dir { version: own.version, path: own.path.join(&tree.name) });
            }
            Err(errno) => tree.refused.push(CgroupError::new("write below", &own.path, errno.into())),
        }
    }
    Ok(tree.probes())
}
