//! What becomes of a policy's decisions in the kernel: one trait, an implementation per way.
//!
//! The [engine](crate::engine) decides which invocations are to have a core now (as many as there are cores) and which run
//! only on what those leave. A backend makes that true for the processes that they run in:
//!
//! | backend | how | ranks |
//! |---|---|---|
//! | [`Posix`] | control groups' `cpu.idle`, or `sched_setattr`: idle class, real-time class | two levels; at the front, weights and slices by rank |
//! | `sched_ext` | ranks in a map that a scheduler in BPF reads | all of them |
//!
//! A process's level outlasts the invocation, so whoever ends at [`Level::Back`] is set back to [`Level::Front`]: the next
//! request may be given to it by the bus without anybody being asked.

mod posix;
mod process;
mod share;
mod sys;

use std::io;

pub use posix::{Means, Posix, PosixOptions, wake_soon};
pub use process::Process;
pub use sys::process_cpu_ns;

/// Where a process stands among those of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// It is one of as many as there are cores, and has one when it can run.
    Front,
    /// It runs on what the others leave.
    Back,
}

/// What is to be made true for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// One of two, for backends that know no more.
    pub level: Level,
    /// The policy's rank (the smallest goes first), for backends that keep the order themselves.
    pub rank: u64,
    /// By how much the rank falls for each nanosecond that it runs.
    pub fall: u32,
    /// The slice to ask the kernel for; [`UNLIMITED`](crate::policy::UNLIMITED): its own.
    pub slice_ns: u64,
    /// It is to go on there, of the cores of the node (from 0): nobody else at the front is. `None`: where it is.
    pub core: Option<u16>,
}

impl Standing {
    /// Of a process that no decision is about.
    pub const FREE: Self =
        Self { level: Level::Front, rank: 0, fall: 0, slice_ns: crate::policy::UNLIMITED, core: None };
}

/// Which way it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's own classes.
    Posix,
    /// A scheduler in BPF.
    SchedExt,
}

impl Kind {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Posix => "posix",
            Self::SchedExt => "sched_ext",
        }
    }
}

/// A way to make decisions true. Used by several threads.
pub trait Backend: Send + Sync {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// What it does here and now, in words; changes when it had to fall back.
    fn describe(&self) -> String;

    /// Whether it wants to hear of every new rank of a process that runs, and not of new levels only.
    fn wants_ranks(&self) -> bool {
        false
    }

    /// Makes it true. Doesn't block for longer than a system call.
    fn apply(&self, process: &Process, standing: Standing) -> io::Result<()>;
}

#[cfg(test)]
mod tests;
