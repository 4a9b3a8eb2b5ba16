//! What is made once, at spryd's start, and used for every function.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use spry_sched::backend::{Backend, Process, Standing};

use super::kit::SpareKit;
use super::nursery::{Nursery, Steward};
use crate::cgroup::{Arrangement, Controller, Tree};
use crate::sandbox::{Ability, Probe, null_input};
use crate::sys::CpuSet;

/// How a runtime is started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launch {
    /// The program. For Python it is the function's interpreter instead.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables that it needs; a function can't change them.
    pub env: BTreeMap<String, String>,
    /// Files and folders that it needs beside its program.
    pub files: Vec<PathBuf>,
}

/// See [`Executor::new`].
#[derive(Debug, Clone)]
pub struct ExecutorConfig {
    /// Names the state folder, in control groups' names: letters, digits and dashes.
    pub node: String,
    /// A file in the state folder that remembers where the control groups were.
    pub cgroup_record: Option<PathBuf>,
    /// Whether functions or processes share the cores.
    pub arrangement: Arrangement,
    /// False: do without control groups.
    pub use_cgroups: bool,
    /// The native runtime.
    pub native: Launch,
    /// The Python runtime.
    pub python: Launch,
    /// How long a function may take to load.
    pub start_timeout: Duration,
    /// How long a zygote may take to fork, and the instance to say hello.
    pub fork_timeout: Duration,
}

impl ExecutorConfig {
    /// With what most nodes use.
    pub fn new(node: impl Into<String>, native: Launch, python: Launch) -> Self {
        Self {
            node: node.into(),
            cgroup_record: None,
            arrangement: Arrangement::default(),
            use_cgroups: true,
            native,
            python,
            start_timeout: Duration::from_secs(30),
            fork_timeout: Duration::from_secs(5),
        }
    }
}

/// spryd can't run functions.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// Control groups could not be looked at (one that merely can't be used is no error).
    #[error("find the control groups: {0}")]
    Cgroups(#[source] io::Error),
    /// The nursery could not be started, or not find out what the kernel allows.
    #[error("start the parent of the function processes: {0}")]
    Nursery(#[source] io::Error),
    /// A descriptor or a set of CPUs.
    #[error("prepare for function processes: {0}")]
    Prepare(#[source] io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Executor {
    pub(super) config: ExecutorConfig,
    pub(super) nursery: Nursery,
    steward: Steward,
    pub(super) tree: Arc<Tree>,
    pub(super) ability: Ability,
    pub(super) null: OwnedFd,
    pub(super) kit: SpareKit,
    /// Where spryd itself may run.
    pub(super) cpus: CpuSet,
}

impl Executor {
    /// Removes what an earlier spryd of this node left in its control groups (one spryd at a time has the state
    /// folder: the caller holds its lock), makes new ones, and starts the nursery. Blocks for milliseconds.
    pub fn new(config: ExecutorConfig) -> Result<Arc<Self>, ExecutorError> {
        let tree = match config.use_cgroups {
            true => {
                let record = config.cgroup_record.as_deref();
                Tree::open(&config.node, config.arrangement, record).map_err(ExecutorError::Cgroups)?
            }
            false => Tree::none(),
        };
        let steward = Steward::default();
        let started = Nursery::start(tree.clone(), Arc::clone(&steward));
        let (nursery, ability) = started.map_err(ExecutorError::Nursery)?;
        if let Err(failed) = ability.own_root() {
            tracing::warn!(%failed, "functions have no root of their own: they see the host's files; see `spry doctor`");
        }
        let null = null_input().map_err(ExecutorError::Prepare)?;
        let cpus = CpuSet::mine().map_err(ExecutorError::Prepare)?;
        Ok(Arc::new(Self { config, nursery, steward, tree, ability, null, kit: SpareKit::default(), cpus }))
    }

    /// From now on this backend hears of every process, from its birth to its end. For once, before any is made.
    pub fn set_backend(&self, backend: Arc<dyn Backend>) {
        let _set_before = self.steward.set(backend);
    }

    /// A process that no decision is about begins something new.
    pub(super) fn renew(&self, process: &Process) {
        if let Some(backend) = self.steward.get().filter(|backend| backend.keeps_order())
            && let Err(error) = backend.apply(process, Standing::FREE)
        {
            tracing::debug!(pid = process.pid(), %error, "a process could not be set free");
        }
    }

    /// What holds functions here and what doesn't.
    pub fn report(&self) -> Vec<Probe> {
        let mut report = self.ability.probes();
        report.extend(self.tree.probes());
        report
    }

    /// Must every function have a user of its own? (As root.)
    pub fn needs_own_users(&self) -> bool {
        self.ability.is_root()
    }

    /// Work is about to be handed to an instance. Only means something (and costs more than a branch) where
    /// memory isn't counted by control groups: see [`crate::cgroup::watchdog`].
    pub fn nudge(&self) {
        self.nursery.nudge();
    }

    /// The folder with the cpu controller in which every process has a control group of its own.
    pub fn cpu_folder(&self) -> Option<&Path> {
        self.tree.cpu_folder()
    }

    /// Is a limit held by control groups?
    pub fn has_control_group(&self, controller: Controller) -> bool {
        self.tree.has(controller)
    }

    /// Kills every function process, reaps them, removes the control groups. Afterwards nothing can be started.
    pub async fn shutdown(&self) {
        self.nursery.stop().await;
    }
}
