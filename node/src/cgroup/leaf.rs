//! The groups that processes are in: one leaf per zygote and per instance, in every hierarchy of the tree.
//!
//! A leaf is leased, gets processes, and is retired: whatever is still in it is killed, and once it is empty it
//! goes back to its function's pool or is removed. Making one costs some 150 µs in three hierarchies, so they are
//! reused, unless memory that outlived the processes (shared memory that others hold) is still charged to it.

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::dir::Dir;
use super::layout::Controller;
use super::limits::{self, GroupLimits};
use super::{Arrangement, CgroupError, Tree};

/// Memory that may stay charged to a leaf that is used again.
const LEFTOVER_MAX_BYTES: u64 = 1 << 20;
/// Empty leaves kept per function.
const POOL_MAX: usize = 16;

/// All groups of one function.
#[derive(Debug)]
pub struct FunctionGroup {
    tree: Arc<Tree>,
    /// Where its leaves are made; its own, unless they lie beside those of others.
    dirs: Vec<Dir>,
    name: String,
    pool: Mutex<Vec<Bare>>,
}

/// A leaf's folders, without the tie to its function.
#[derive(Debug)]
struct Bare {
    name: String,
    dirs: Vec<Dir>,
    limits: Option<GroupLimits>,
    /// How often the kernel had killed in it for want of memory when it was last emptied.
    oom_kills: u64,
    /// See [`Leaf::set_common_end`].
    common_end: bool,
}

/// See the module. Dropping a leaf removes it if it is empty; [`Leaf::kill`] first.
#[derive(Debug)]
pub struct Leaf {
    function: Arc<FunctionGroup>,
    /// `None` after it went back to the pool.
    bare: Option<Bare>,
    when_empty: Option<WhenEmpty>,
}

/// Told when all processes that were in a leaf have ended, for certain. If that never is certain, nobody is told.
pub struct WhenEmpty(Box<dyn FnOnce() + Send>);

impl WhenEmpty {
    /// `tell` is called on another thread.
    pub fn new(tell: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(tell))
    }
}

impl fmt::Debug for WhenEmpty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WhenEmpty")
    }
}

impl FunctionGroup {
    /// Makes the function's folder in every hierarchy, if functions have folders.
    pub(super) fn create(tree: &Arc<Tree>, name: &str) -> Result<Self, CgroupError> {
        let dirs = match tree.arrangement {
            Arrangement::ByFunction => tree.create_below(tree.roots(), name, true)?,
            Arrangement::SideBySide => Vec::new(),
        };
        Ok(Self { tree: tree.clone(), dirs, name: name.to_owned(), pool: Mutex::new(Vec::new()) })
    }

    /// An empty group with these limits; `kind` is the first part of a new one's name.
    pub fn lease(self: &Arc<Self>, kind: &str, wanted: &GroupLimits) -> Result<Leaf, CgroupError> {
        let pooled = self.pool.lock().pop();
        let mut bare = match pooled {
            Some(bare) => bare,
            None => {
                let number = self.tree.leaves.fetch_add(1, Ordering::Relaxed);
                let (parents, name) = match self.tree.arrangement {
                    Arrangement::ByFunction => (&self.dirs[..], format!("{kind}-{number}")),
                    Arrangement::SideBySide => (self.tree.roots(), format!("{kind}-{number}.{}", self.name)),
                };
                let dirs = self.tree.create_below(parents, &name, false)?;
                Bare { name, dirs, limits: None, oom_kills: 0, common_end: true }
            }
        };
        let mut applied = Ok(());
        if bare.limits != Some(*wanted) {
            applied = self.tree.apply(&bare.dirs, wanted);
            (bare.limits, bare.common_end) = (Some(*wanted), true);
        }
        let leaf = Leaf { function: self.clone(), bare: Some(bare), when_empty: None };
        applied?;
        Ok(leaf)
    }
}

impl Drop for FunctionGroup {
    fn drop(&mut self) {
        let pooled = std::mem::take(self.pool.get_mut()).into_iter().flat_map(|bare| bare.dirs);
        for dir in pooled.chain(std::mem::take(&mut self.dirs)) {
            self.tree.discard(dir);
        }
    }
}

impl Leaf {
    fn dirs(&self) -> &[Dir] {
        self.bare.as_ref().map_or(&[], |bare| &bare.dirs)
    }

    /// Whether it is of these.
    pub fn is_of(&self, function: &Arc<FunctionGroup>) -> bool {
        Arc::ptr_eq(&self.function, function)
    }

    /// Its folder's name.
    pub fn name(&self) -> &str {
        self.bare.as_ref().map_or("", |bare| &bare.name)
    }

    /// Its folder with the cpu controller.
    pub fn cpu_folder(&self) -> Option<&Path> {
        Some(&self.function.tree.dir_of(Controller::Cpu, self.dirs())?.path)
    }

    /// The `cgroup.procs` files, for a process that enters by itself.
    pub fn open_procs(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        self.dirs().iter().map(Dir::open_procs).collect()
    }

    /// Whom to tell when it is empty.
    pub fn tell(&mut self, when_empty: Option<WhenEmpty>) {
        self.when_empty = when_empty;
    }

    /// Moves a process into it. The caller knows that `pid` can't be reused meanwhile (its unreaped child).
    pub fn place(&self, pid: i32) -> Result<(), CgroupError> {
        self.dirs().iter().try_for_each(|dir| dir.write("cgroup.procs", &pid.to_string()))
    }

    /// Is this process in it, in every hierarchy?
    pub fn holds(&self, pid: i32) -> bool {
        let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
        self.dirs().iter().all(|dir| {
            // the last two components (function, leaf) and the tree's own name before them are ours alone
            let Some(tail) = self.function.tree.path_within(&dir.path) else { return false };
            groups.lines().any(|line| line.ends_with(&tail))
        })
    }

    /// Kills everything in it; returns what was alive, to wait for.
    pub fn kill(&mut self) -> Vec<OwnedFd> {
        let killed: Vec<_> = self.dirs().iter().filter_map(Dir::kill_members).collect();
        if !killed.is_empty()
            && let Some(bare) = &mut self.bare
        {
            bare.limits = None; // killing changed them, also if all had gone by then
        }
        killed.into_iter().flatten().collect()
    }

    /// Whether all in it end when one runs out of memory, where the kernel can do that (v2).
    pub fn set_common_end(&mut self, common: bool) {
        let Some(dir) = self.function.tree.dir_of(Controller::Memory, self.dirs()) else { return };
        let Some(file) = limits::common_end_file(dir.version) else { return };
        if self.bare.as_ref().is_none_or(|bare| bare.common_end == common) {
            return;
        }
        // As when the limits are set: without it, those that are left end with the first one's reaping.
        let _wish = dir.write(file, if common { "1" } else { "0" });
        self.bare.iter_mut().for_each(|bare| bare.common_end = common);
    }

    /// Has the kernel killed a process in it for want of memory, since it was leased?
    pub fn out_of_memory(&self) -> bool {
        self.bare.as_ref().is_some_and(|bare| self.oom_kills() > bare.oom_kills)
    }

    fn oom_kills(&self) -> u64 {
        let Some(dir) = self.function.tree.dir_of(Controller::Memory, self.dirs()) else { return 0 };
        let text = dir.read(limits::oom_kills_file(dir.version)).unwrap_or_default();
        limits::oom_kills(&text).unwrap_or(0)
    }

    /// Bytes charged to it; 0 where nobody counts.
    pub fn memory_bytes(&self) -> u64 {
        let Some(dir) = self.function.tree.dir_of(Controller::Memory, self.dirs()) else { return 0 };
        let text = dir.read(limits::memory_usage_file(dir.version)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// For the next lease, or away with it. The caller has seen that it is empty ([`Self::kill`] found nothing).
    pub fn recycle(mut self) {
        // (Without a folder nobody knows what is in it.)
        if let Some(WhenEmpty(tell)) = self.when_empty.take().filter(|_| !self.dirs().is_empty()) {
            tell();
        }
        let clean = self.memory_bytes() <= LEFTOVER_MAX_BYTES;
        // now rather than when it is leased: somebody waits for that
        let oom_kills = self.oom_kills();
        self.bare.iter_mut().for_each(|bare| bare.oom_kills = oom_kills);
        let mut pool = self.function.pool.lock();
        if clean && pool.len() < POOL_MAX {
            pool.extend(self.bare.take());
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        for dir in self.bare.take().into_iter().flat_map(|bare| bare.dirs) {
            self.function.tree.discard(dir);
        }
    }
}
