//! `greedy-dual`: keep-alive is caching, and the cache is as large as the memory.
//!
//! After FaasCache [A. Fuerst, P. Sharma: "FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching",
//! ASPLOS 2021, section 4], which takes Greedy-Dual-Size-Frequency from web caches [Cherkasova 1998]. Everything that
//! has served stays until its memory is needed; then goes what has the least
//!
//! ```text
//! priority = clock + frequency x cost / size
//! ```
//!
//! - `frequency`: requests since something of the function is there. It starts again at 0 when the last of it has been
//!   pushed out, as in the paper: what was popular once is not kept for that.
//! - `cost`: the time to make it anew, in ns. `size`: its memory, in bytes. So the second term is the time saved per
//!   byte, and a small function with a slow start stays longest.
//! - `clock`: the priority of the last one that was pushed out. A function takes the clock's value when it is used; so
//!   those that are used keep up with it, and an idle one falls behind however frequent it was.
//!
//! The clock is the node's, the frequency the function's, and each layer has its own cost and size: a zygote
//! outlives its instances if it costs more per byte to make, which it does.
//!
//! It expires nothing by time ("resource-conserving", section 4.1): an idle node keeps all that it has room for.
//! Parameters: none. Units: ns per byte.

use super::{Arrivals, KeepAlive, Layer, Profile, Window};
use crate::FunctionId;
use crate::slots::Slots;

/// See the module.
#[derive(Debug, Default)]
pub struct GreedyDual {
    known: Slots<Known>,
    clock: f64,
}

#[derive(Debug)]
struct Known {
    profile: Profile,
    frequency: u64,
    /// The clock at its last use.
    clock: f64,
}

impl GreedyDual {
    /// The priority of what was pushed out last.
    pub fn clock(&self) -> f64 {
        self.clock
    }

    fn priority(known: &Known, layer: Layer) -> f64 {
        let cost = known.profile.cost(layer);
        known.clock + known.frequency as f64 * cost.start_ns as f64 / cost.bytes.max(1) as f64
    }
}

impl KeepAlive for GreedyDual {
    fn name(&self) -> &'static str {
        "greedy-dual"
    }

    fn learn(&mut self, function: FunctionId, profile: Profile) {
        let clock = self.clock;
        let known = self.known.get_or_insert_with(function.0, || Known { profile, frequency: 0, clock });
        known.profile = profile;
    }

    fn arrived(&mut self, function: FunctionId, arrivals: Arrivals, _: u64) {
        let Some(known) = self.known.get_mut(function.0) else { return };
        known.frequency = known.frequency.saturating_add(arrivals.count);
        known.clock = self.clock;
    }

    fn evicted(&mut self, function: FunctionId, layer: Layer) {
        let Some(known) = self.known.get_mut(function.0) else { return };
        self.clock = self.clock.max(Self::priority(known, layer));
        // The zygote goes after its instances: then nothing of the function is left.
        if layer == Layer::Zygote {
            known.frequency = 0;
        }
    }

    fn forget(&mut self, function: FunctionId) {
        self.known.remove(function.0);
    }

    fn window(&self, function: FunctionId, _: Layer, _: u64) -> Window {
        if self.known.get(function.0).is_some() { Window::ALWAYS } else { Window::lasting(0) }
    }

    fn worth(&self, function: FunctionId, layer: Layer, _: u64, _: u64) -> f64 {
        self.known.get(function.0).map_or(0.0, |known| Self::priority(known, layer))
    }
}
