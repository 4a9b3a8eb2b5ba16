//! How long what has served stays, when it is made again ahead of need, and what goes first when memory is short.
//!
//! A function is served by layers: a package layer that functions may share, its own zygote, and instances
//! ([`Layer`]). Each costs time to make and memory to keep. A policy hears what arrives and what things cost, and
//! answers two questions:
//!
//! - [`KeepAlive::window`]: after the function's last use, from when until when should this layer be there? What is
//!   before the window may go at once and is made again when the window opens (pre-warming); what is after
//!   it goes for good.
//! - [`KeepAlive::worth`]: memory is short; which goes first? The one of least worth.
//!
//! | policy | leaves by time | leaves under pressure | pre-warms |
//! |---|---|---|---|
//! | [`Ttl`] | a fixed time after the last use | least recently used | no |
//! | [`GreedyDual`] | never | least (clock + frequency x cost / size) | no |
//! | [`Histogram`] | after the 99th percentile of its gaps | least recently used | before the 5th percentile |
//! | [`Layered`] | each layer by its own rate and cost | least (rate x cost / size) | no |
//!
//! Policies are pure: time comes as a parameter, and who applies the answers (the keeper of spryd, the simulator
//! of `cargo xtask bench keepalive`) is none of their concern. Times are nanoseconds since an origin that the caller
//! chooses and never changes; spans are nanoseconds.

mod greedy_dual;
mod histogram;
mod layered;
#[cfg(test)]
mod tests;
mod ttl;

use std::fmt::Debug;

use crate::FunctionId;
pub use greedy_dual::GreedyDual;
pub use histogram::{BUCKET_NS, BUCKETS, Histogram};
pub use layered::{Layered, LayeredConfig};
pub use ttl::Ttl;

/// One second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// What a function is served by, from what is shared most to what is shared least. Each needs the one before it
/// to be made, not to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// An interpreter with packages loaded, from which zygotes of several functions are made.
    Package,
    /// A process with the function's own code loaded, from which its instances are forked.
    Zygote,
    /// A process that serves.
    Instance,
}

impl Layer {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Package, Self::Zygote, Self::Instance];
}

/// What one thing of a layer costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Time to make it, when the layer below is there.
    pub start_ns: u64,
    /// Memory that it holds while it is there.
    pub bytes: u64,
}

/// What is known of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// How long its owner wants an idle instance kept (`scale.idle`): the fixed time of [`Ttl`], and what others fall
    /// back to when they know nothing better.
    pub standard_ns: u64,
    /// Which package layer it is made from, if it is made from one. Functions with the same number share it.
    pub package: Option<u32>,
    /// By layer, in the order of [`Layer::ALL`].
    pub costs: [Cost; 3],
}

impl Profile {
    /// The costs of one layer.
    pub fn cost(&self, layer: Layer) -> Cost {
        self.costs[layer as usize]
    }
}

/// When a layer should be there, in nanoseconds after the function's last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From when on; 0: it stays from the last use on.
    pub from_ns: u64,
    /// Until when; `u64::MAX`: for good.
    pub until_ns: u64,
}

/// Where in its window a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not needed yet: it may go, and is to be made again when the window opens.
    Before,
    /// Needed.
    Within,
    /// Not needed any more.
    After,
}

impl Window {
    /// For good.
    pub const ALWAYS: Self = Self { from_ns: 0, until_ns: u64::MAX };

    /// From the last use on, for so long.
    pub fn lasting(until_ns: u64) -> Self {
        Self { from_ns: 0, until_ns }
    }

    /// Where one is that has been idle for so long.
    pub fn phase(&self, idle_ns: u64) -> Phase {
        match idle_ns {
            idle_ns if idle_ns >= self.until_ns => Phase::After,
            idle_ns if idle_ns < self.from_ns => Phase::Before,
            _ => Phase::Within,
        }
    }

    /// When (idle time) the phase next changes by itself.
    pub fn next_change_ns(&self, idle_ns: u64) -> Option<u64> {
        match self.phase(idle_ns) {
            Phase::Before => Some(self.from_ns.min(self.until_ns)),
            Phase::Within => Some(self.until_ns).filter(|until_ns| *until_ns != u64::MAX),
            Phase::After => None,
        }
    }
}

/// Requests of one function that have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// How many.
    pub count: u64,
    /// Time from the end of the request before them to the first of them; `None` for a function's first request.
    /// The others came while it was busy, or close behind.
    pub gap_ns: Option<u64>,
}

/// A policy for all functions of a node.
///
/// Functions that were never told of by [`learn`](Self::learn) have no window (nothing of them is kept) and no worth;
/// other events about them are ignored.
pub trait KeepAlive: Debug + Send {
    /// What it is called in the configuration.
    fn name(&self) -> &'static str;

    /// Takes in what is known of a function: before anything else about it, and again when that changes.
    fn learn(&mut self, function: FunctionId, profile: Profile);

    /// Takes in that requests have come.
    fn arrived(&mut self, function: FunctionId, arrivals: Arrivals, now_ns: u64);

    /// Takes in that something of this layer was pushed out because memory was short.
    fn evicted(&mut self, function: FunctionId, layer: Layer) {
        let _ = (function, layer);
    }

    /// The function is gone; its slot may be given to another.
    fn forget(&mut self, function: FunctionId);

    /// When this layer should be there, after the last use.
    fn window(&self, function: FunctionId, layer: Layer, now_ns: u64) -> Window;

    /// What is lost with something of this layer that was used last at `used_ns`. Only to be compared with other
    /// worths of the same policy; finite.
    fn worth(&self, function: FunctionId, layer: Layer, used_ns: u64, now_ns: u64) -> f64;
}

/// The policies by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`Ttl`].
    Ttl,
    /// [`GreedyDual`].
    GreedyDual,
    /// [`Histogram`].
    Histogram,
    /// [`Layered`].
    Layered,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ttl, Self::GreedyDual, Self::Histogram, Self::Layered];

    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttl => "ttl",
            Self::GreedyDual => "greedy-dual",
            Self::Histogram => "histogram",
            Self::Layered => "layered",
        }
    }

    /// The one of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// A policy that knows nothing yet.
    pub fn policy(self) -> Box<dyn KeepAlive> {
        match self {
            Self::Ttl => Box::<Ttl>::default(),
            Self::GreedyDual => Box::<GreedyDual>::default(),
            Self::Histogram => Box::<Histogram>::default(),
            Self::Layered => Box::<Layered>::default(),
        }
    }
}

/// Least recently used goes first: the worth of those who know nothing better. Seconds, negative, 0 at best.
fn recency(used_ns: u64, now_ns: u64) -> f64 {
    -(now_ns.saturating_sub(used_ns) as f64 / SECOND_NS as f64)
}
