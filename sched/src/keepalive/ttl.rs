//! `ttl`: a fixed time after the last use, for each function the one that its owner named.
//!
//! What every platform does that does nothing else (AWS and OpenWhisk some 10 minutes, Azure 20), and what the others
//! are measured against. It knows neither how often a function is called nor what it costs: a function that is called
//! every 11 minutes is always cold, one that is called once a day is kept for 10 minutes in vain.
//!
//! Layers go one at a time: an instance after `standard_ns`, the zygote after twice, the package layer after three
//! times that. Under pressure the least recently used goes first, instances before what they are made from.
//!
//! Parameters: none of its own; [`Profile::standard_ns`] per function.

use super::{Arrivals, KeepAlive, Layer, Profile, Window, recency};
use crate::FunctionId;
use crate::slots::Slots;

/// See the module.
#[derive(Debug, Default)]
pub struct Ttl {
    known: Slots<Profile>,
}

impl KeepAlive for Ttl {
    fn name(&self) -> &'static str {
        "ttl"
    }

    fn learn(&mut self, function: FunctionId, profile: Profile) {
        self.known.insert(function.0, profile);
    }

    fn arrived(&mut self, _: FunctionId, _: Arrivals, _: u64) {}

    fn forget(&mut self, function: FunctionId) {
        self.known.remove(function.0);
    }

    fn window(&self, function: FunctionId, layer: Layer, _: u64) -> Window {
        let standard_ns = self.known.get(function.0).map_or(0, |profile| profile.standard_ns);
        Window::lasting(standard(standard_ns, layer))
    }

    fn worth(&self, _: FunctionId, layer: Layer, used_ns: u64, now_ns: u64) -> f64 {
        below(layer, recency(used_ns, now_ns))
    }
}

/// How long a layer is kept by the fixed rule.
pub(super) fn standard(standard_ns: u64, layer: Layer) -> u64 {
    let times = match layer {
        Layer::Instance => 1,
        Layer::Zygote => 2,
        Layer::Package => 3,
    };
    standard_ns.saturating_mul(times)
}

/// Of two that were used at the same time, the instance is worth less than what it was made from; and a year of age
/// separates the layers, so that no zygote goes while an instance could.
pub(super) fn below(layer: Layer, worth: f64) -> f64 {
    const YEAR_S: f64 = 365.0 * 86_400.0;
    let above = match layer {
        Layer::Instance => 0.0,
        Layer::Zygote => YEAR_S,
        Layer::Package => 2.0 * YEAR_S,
    };
    worth + above
}
