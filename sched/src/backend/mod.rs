//! What becomes of a policy's decisions in the kernel: one trait, an implementation per way.
//!
//! The [engine](crate::engine) decides which invocations are to have a core now (as many as there are cores) and which run
//! only on what those leave. A backend makes that true for the processes that they run in:
//!
//! | backend | how | ranks |
//! |---|---|---|
//! | [`Posix`] | control groups' `cpu.idle`, or `sched_setattr`: idle class, real-time class | two levels; at the front, weights and slices by rank |
//! | [`SchedExt`] | ranks in memory that a scheduler in BPF reads; [`Posix`] while there is none | all of them |
//!
//! A backend hears of every process that it may have to say something of, from its birth to its end ([`Backend::adopt`],
//! [`Backend::release`]), and of those that no decision is ever about, too.
//!
//! A process's level outlasts the invocation, so whoever ends at [`Level::Back`] is set back to [`Level::Front`]: the next
//! request may be given to it by the bus without anybody being asked.

mod posix;
mod process;
mod sched_ext;
mod share;
mod sys;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use posix::{Means, Posix, PosixOptions, wake_soon};
pub use process::Process;
pub use sched_ext::{KERNEL, PIN_DIR, SchedExt};
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
    /// An invocation begins with it.
    pub begins: bool,
}

/// What is taken to be left of something that nobody knows.
const UNKNOWN_NS: u64 = 1_000_000;
/// Where those stand whose invocations nobody tells of.
const SHARED_NS: u64 = 50_000_000;

impl Standing {
    /// Of a process that no decision is about, at the beginning of something new: it goes ahead as long as that is short.
    pub const FREE: Self = Self {
        level: Level::Front,
        rank: UNKNOWN_NS,
        fall: 1,
        slice_ns: crate::policy::UNLIMITED,
        core: None,
        begins: true,
    };
    /// Of a process that serves invocations which nobody tells of: a fixed place, before the long ones and after the short
    /// ones, which it shares with others of its kind.
    pub const SHARED: Self = Self { rank: SHARED_NS, fall: 0, begins: false, ..Self::FREE };
    /// A rank behind all others.
    pub const LAST: u64 = spry_scx::RANK_MAX;
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

/// Another way was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The better one works (again).
    Up,
    /// The better one has ended, and why.
    Down(String),
}

/// A way to make decisions true. Used by several threads.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// What it does here and now, in words; changes when it had to fall back.
    fn describe(&self) -> String;

    /// Whether it wants to hear of every new rank of a process that runs and of every end, and not of new levels only.
    fn wants_ranks(&self) -> bool {
        false
    }

    /// Whether it keeps the order itself: then those whom no decision is about need a standing, too.
    fn keeps_order(&self) -> bool {
        false
    }

    /// Makes it true. Doesn't block for longer than a system call.
    fn apply(&self, process: &Process, standing: Standing) -> io::Result<()>;

    /// A process of the node's functions has been made, and stands [free](Standing::FREE). It may use so many cores.
    fn adopt(&self, process: &Arc<Process>, cpu: f64) {
        let _ = (process, cpu);
    }

    /// It has ended, and is going to be reaped.
    fn release(&self, process: &Process) {
        let _ = process;
    }

    /// How often it is to [`look`](Self::look); `None`: never.
    fn look_every(&self) -> Option<Duration> {
        None
    }

    /// Finds out whether another way has to be taken, and takes it. After a change every process stands [free](Standing::FREE).
    fn look(&self) -> Option<Change> {
        None
    }

    /// How often a better way was left for a worse one.
    fn fallbacks(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests;
