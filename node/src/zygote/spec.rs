//! What a function's processes are to be.

use std::collections::BTreeMap;
use std::path::PathBuf;

use spry_wire::freeze::Freeze;

use crate::cgroup::GroupLimits;
use crate::packages::Site;
use crate::secrets::Secret;

/// Everything that a zygote is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct ZygoteSpec {
    /// The function's name; also the name of its control groups and its host name.
    pub name: String,
    /// What runs it.
    pub runtime: Runtime,
    /// See [`spry_wire::control::Init::handler`].
    pub handler: String,
    /// The folder with its code, readable by `uid_gid`.
    pub code: PathBuf,
    /// The folders with the Python packages that it needs.
    pub packages: Option<Site>,
    /// What it is told in `/run/secrets`.
    pub secrets: Vec<Secret>,
    /// Its own environment variables.
    pub env: BTreeMap<String, String>,
    /// The function's user and group. Root needs one; anyone else can't have one (`None`).
    pub uid_gid: Option<(u32, u32)>,
    /// Of each of its processes.
    pub limits: ProcessLimits,
    /// What of the network it may reach.
    pub egress: Egress,
    /// Each of its instances serves one request, and nothing may stay for the next: `/tmp`, which they share, can
    /// only be read.
    pub single_use: bool,
    /// What it does to its memory once its function is loaded.
    pub freeze: Freeze,
    /// Whether its instances shall be rewound ([`super::rewind`]), or why not.
    pub rewind: Result<(), String>,
}

/// What runs a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runtime {
    /// spry's loader of shared libraries.
    Native,
    /// A Python interpreter with spry's module.
    Python {
        /// See [`super::find_interpreter`].
        interpreter: PathBuf,
    },
}

/// What one instance (or the zygote) may use, its own children included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProcessLimits {
    /// Memory, in bytes; no swap on top.
    pub memory_bytes: u64,
    /// CPUs' worth of time.
    pub cpu: f64,
    /// Processes and threads.
    pub processes: u32,
    /// Open files of one process.
    pub open_files: u64,
    /// Bytes in `/tmp`, which a function's instances share. They count as memory of the instance that wrote them.
    pub tmpfs_bytes: u64,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        Self { memory_bytes: 128 << 20, cpu: 1.0, processes: 32, open_files: 1024, tmpfs_bytes: 16 << 20 }
    }
}

impl From<&ProcessLimits> for GroupLimits {
    fn from(limits: &ProcessLimits) -> Self {
        let ProcessLimits { memory_bytes, cpu, processes, .. } = *limits;
        // one more: the zygote waits in the group where its next instance is born, and leaves a moment later
        Self { memory_bytes, cpu, processes: processes.saturating_add(1) }
    }
}

/// What of the network a function may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Nothing: a network namespace of its own, with the loopback down.
    None,
    /// What the host reaches.
    Host,
}
