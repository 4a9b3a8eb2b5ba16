//! What becomes of a policy's decisions in the kernel: one trait, an implementation per way.
//!
//! The [engine](crate::engine) decides which invocations are to have a core now (as many as there are cores) and which run
//! only on what those leave. A backend makes that true for the processes that they run in:
//!
//! | backend | how | ranks |
//! |---|---|---|
//! | [`Posix`] | control groups' `cpu.idle`, or `sched_setattr`: idle class, real-time class, EEVDF slices | two levels |
//! | `sched_ext` | ranks in a map that a scheduler in BPF reads | all of them |
//!
//! A process's level outlasts the invocation, so whoever ends at [`Level::Back`] is set back to [`Level::Front`]: the next
//! request may be given to it by the bus without anybody being asked.

mod posix;
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub use posix::{Means, Posix, PosixOptions, wake_soon};
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
}

impl Standing {
    /// Of a process that no decision is about.
    pub const FREE: Self = Self { level: Level::Front, rank: 0, fall: 0, slice_ns: crate::policy::UNLIMITED };
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

/// A process that is a child of this one. It is named by a descriptor; its pid is used only while that says that it
/// hasn't been reaped.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    group: Option<PathBuf>,
    idle: OnceLock<Option<File>>,
}

impl Process {
    /// `group`: the folder of its control group with the cpu controller, if it has one for itself alone.
    pub fn new(pid: i32, pidfd: Arc<OwnedFd>, group: Option<PathBuf>) -> Self {
        Self { pid, pidfd, group, idle: OnceLock::new() }
    }

    /// Its pid. See [`Self::is_alive`].
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it hasn't ended. A dead one keeps its pid until its parent has reaped it.
    pub fn is_alive(&self) -> bool {
        sys::is_alive(self.pidfd.as_fd())
    }

    /// Its control group's folder.
    pub fn group(&self) -> Option<&Path> {
        self.group.as_deref()
    }

    /// The CPU time that it has used, all threads, in nanoseconds. `None`: it has ended.
    pub fn cpu_ns(&self) -> Option<u64> {
        sys::process_cpu_ns(self.pid).ok()
    }

    /// Its group's `cpu.idle`, opened once.
    fn idle(&self) -> Option<&File> {
        let open = || File::options().write(true).open(self.group.as_ref()?.join("cpu.idle")).ok();
        self.idle.get_or_init(open).as_ref()
    }
}

#[cfg(test)]
mod tests;
