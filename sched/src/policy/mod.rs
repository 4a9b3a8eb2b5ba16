//! Who runs first, for how long, and in which class: policies, one file each, behind one trait.
//!
//! A policy hears of events and answers with decisions. It reads no clock, makes no call and knows no process: the
//! same code drives the kernel (through a backend) and the simulator ([`crate::sim`]).
//!
//! | policy | order | what it must know | starves |
//! |---|---|---|---|
//! | [`Eevdf`] | the kernel's fair class | nothing | nobody |
//! | [`Sfs`] | FIFO for a slice, then fair | arrivals | long ones, while short ones overload the node |
//! | [`Alps`] | rank and slice per function, learnt from simulated SRPT | functions | long ones, under overload |
//! | [`Srpt`] | least expected time left | functions, CPU time | long ones, under overload |
//! | [`SrptPlus`] | least Gittins index; a share of one core for the overdue | functions, CPU time | nobody: a bound is proven |
//!
//! # What a backend promises
//!
//! - Time never goes back. `used_ns` is the CPU time of this invocation so far, in all.
//! - [`Event::Arrive`] opens a slot, [`Event::Exit`] closes it. Events of a slot that isn't open are ignored, since a
//!   backend may hear of an exit before it hears of the rest; an arrival in an open slot starts it afresh.
//! - Tasks of [`Class::Fifo`] go before those of [`Class::Fair`], always. Among the former the one with the smallest rank
//!   goes first, equal ranks in the order in which they were decided.
//! - A task of `Fifo` that is to `preempt` takes the core of the running one with the largest rank, if that is larger
//!   than its own, where a running task's rank has fallen by [`Decision::fall`] for each nanosecond that it has run.
//!   (So a job that is nearly done keeps its turn.) What is pushed aside keeps the rank that it had then.
//! - After [`Decision::slice_ns`] of CPU time, counted from the decision, it asks again: [`Event::SliceEnd`]. A task
//!   that blocks or is pushed aside keeps what is left of its slice.
//! - [`Event::Tick`] comes at [`Policy::next_tick_ns`] or as soon after it as can be had.
//!
//! # What a policy promises
//!
//! - It answers `Arrive`, `Wake` and `SliceEnd` with exactly one decision for that task, if the slot is open; it may
//!   decide anew about other tasks at any event.
//! - It allocates nothing for an event, but to grow its arrays and queues to the most slots yet open, and for a new function.

mod alike;
mod alps;
mod eevdf;
mod known;
mod sfs;
mod srpt;
mod srpt_plus;

pub use alps::{Alps, AlpsConfig};
pub use eevdf::Eevdf;
pub use sfs::{Sfs, SfsConfig};
pub use srpt::Srpt;
pub use srpt_plus::{SrptPlus, SrptPlusConfig};

use crate::{FunctionId, TaskId};

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An invocation wants the CPU for the first time.
    Arrive {
        /// Its slot.
        task: TaskId,
        /// Whose invocation it is.
        function: FunctionId,
        /// The size of its request in bytes, if that is to help the prediction.
        size_bytes: Option<u64>,
    },
    /// It has got a core.
    Start {
        /// Its slot.
        task: TaskId,
    },
    /// Its slice is used up, and it could go on.
    SliceEnd {
        /// Its slot.
        task: TaskId,
        /// CPU time so far.
        used_ns: u64,
    },
    /// It waits for something else than the CPU.
    Block {
        /// Its slot.
        task: TaskId,
        /// CPU time so far.
        used_ns: u64,
    },
    /// It could go on.
    Wake {
        /// Its slot.
        task: TaskId,
    },
    /// It is over.
    Exit {
        /// Its slot, free from now on.
        task: TaskId,
        /// CPU time in all.
        used_ns: u64,
        /// It came to its own end: not killed, not abandoned.
        finished: bool,
    },
    /// The time that [`Policy::next_tick_ns`] had asked for has come.
    Tick,
}

/// The kernel's two classes, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// By rank; before all of `Fair`.
    Fifo,
    /// Shared evenly, by the kernel.
    Fair,
}

/// A slice without an end.
pub const UNLIMITED: u64 = u64::MAX;

/// What is to be done with a task, until the next decision about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whom it is about.
    pub task: TaskId,
    /// In which class it runs.
    pub class: Class,
    /// Its place within [`Class::Fifo`]; the smallest goes first.
    pub rank: u64,
    /// By so much its rank falls for each nanosecond that it runs,
    pub fall: u32,
    /// but not below this.
    pub floor: u64,
    /// In `Fifo`: after so much more CPU time the policy is asked again. In `Fair`: the slice to ask the kernel for.
    /// [`UNLIMITED`]: never, and the kernel's own.
    pub slice_ns: u64,
    /// Whether it may push aside a running task of `Fifo`.
    pub preempt: bool,
}

impl Decision {
    /// Leaves a task to the kernel's fair class.
    pub fn fair(task: TaskId) -> Self {
        Self { task, class: Class::Fair, rank: 0, fall: 0, floor: 0, slice_ns: UNLIMITED, preempt: false }
    }

    /// The rank after it has run for `ran_ns`.
    pub fn rank_after(&self, ran_ns: u64) -> u64 {
        self.rank.saturating_sub(ran_ns.saturating_mul(self.fall.into())).max(self.floor.min(self.rank))
    }
}

/// A scheduling policy.
pub trait Policy {
    /// Takes in what has happened at `now_ns` and adds what is to be done about it to `decisions`.
    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>);

    /// What was learnt of a function counts no more: its slot is another's now.
    fn forget(&mut self, function: FunctionId) {
        let _ = function;
    }

    /// When it next wants a [`Event::Tick`]; `None`: not before the next event.
    fn next_tick_ns(&self) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests;
