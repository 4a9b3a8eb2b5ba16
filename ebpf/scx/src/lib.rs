//! Shortest remaining time first in the kernel, by sched_ext: what spryd says to the scheduler, and (with the feature
//! `loader`) what loads it.
//!
//! The scheduler itself is `bpf/spry.bpf.c`, in C, because nothing else speaks struct_ops well; its object is checked in.
//! Its program `spry-scx` loads it, stays, and pins its maps to a folder of bpffs of its own. spryd opens them there:
//!
//! ```text
//!  spryd                        bpffs: /sys/fs/bpf/spry-scx/              kernel
//!  Scheduler::claim ── pidfd ──► marks      which slot a process has ────► ops.enqueue, ops.dispatch …
//!  Task::stand      ── store ──► standings  rank, fall, quota (mmap) ────►   │
//!  Task::cpu_ns    ◄── load ──── accounts   what it used (mmap) ◄────────────┤
//!  Scheduler::health ◄─ load ─── health     heartbeat, exit reason (mmap) ◄──┘
//! ```
//!
//! The folder, and all above it, must be root's and closed to others: both sides refuse one that somebody else could have
//! filled ([`OpenError::Untrusted`]). A map of another layout or version is refused, too.
//!
//! A standing is changed without a system call. When `spry-scx` ends, however it ends, the kernel puts all tasks back into
//! the fair class by itself, and writes why into the health map, which stays readable for whoever has it open.

mod client;
mod folder;
pub mod layout;
#[cfg(feature = "loader")]
pub mod loader;
mod sys;

pub use client::{Health, OpenError, RANK_MAX, Scheduler, Standing, Task};

/// Where the maps are pinned unless told otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/spry-scx";
/// The pinned maps.
pub(crate) const STANDINGS: &str = "standings";
pub(crate) const ACCOUNTS: &str = "accounts";
pub(crate) const HEALTH: &str = "health";
pub(crate) const MARKS: &str = "marks";
