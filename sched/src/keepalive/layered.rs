//! `layered`: every layer for as long as it earns its memory, shared ones by the calls of all who share them.
//!
//! After RainbowCake [H. Yu et al.: "RainbowCake: Mitigating Cold-starts in Serverless with Layer-wise Container
//! Caching and Sharing", ASPLOS 2024, sections 4 and 5]. An idle container there isn't kept or dropped as a whole: it
//! loses its function first, then its language, last its bare sandbox, and each of these has a time to live of
//! its own. Here: instance, function zygote, package layer.
//!
//! Two bounds, of which the smaller counts:
//!
//! ```text
//! patience   -ln(1 - quantile) / rate            by then the next call has come, with that probability (Poisson arrivals)
//! break-even  start / (price x bytes)            by then keeping it has cost what making it anew would
//! ```
//!
//! - `rate`: of an instance and a zygote, the function's, over the last [`LayeredConfig::calls`] reports; of a package
//!   layer, the sum of the rates of all functions that are made from it (the sum of Poisson processes is one), so that
//!   a layer that many rare functions share stays where each alone would let it go.
//! - `price`: how much waiting a byte that is held for a second is worth. The paper weighs start-up time against
//!   memory waste with alpha = 0.996 for the former, in seconds and gigabytes; that is a second of waiting for 249
//!   GB s of memory, and [`LayeredConfig::gb_s_per_s`] here.
//!
//! A function with fewer than two reports has no rate: its layers stay until they break even, or by the fixed rule of
//! [`Ttl`](super::Ttl) if that is sooner.
//!
//! Under pressure goes what earns least: rate x start / bytes (a pure number of waiting saved per byte and time).

use std::collections::{HashMap, VecDeque};

use super::ttl::standard;
use super::{Arrivals, KeepAlive, Layer, Profile, SECOND_NS, Window};
use crate::FunctionId;
use crate::slots::Slots;

/// Bytes of a gigabyte.
const GB: f64 = 1e9;

/// What can be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayeredConfig {
    /// Reports of arrivals that a rate is taken over.
    pub calls: usize,
    /// The probability that the next call has come when a layer goes; by layer, in the order of [`Layer::ALL`].
    pub quantiles: [f64; 3],
    /// Gigabyte-seconds of idle memory that a second of waiting is worth.
    pub gb_s_per_s: f64,
}

impl Default for LayeredConfig {
    fn default() -> Self {
        Self { calls: 8, quantiles: [0.99, 0.99, 0.95], gb_s_per_s: 249.0 }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Layered {
    config: LayeredConfig,
    known: Slots<Known>,
    /// Who is made from each package layer.
    shared: HashMap<u32, Vec<u32>>,
}

#[derive(Debug)]
struct Known {
    profile: Profile,
    /// When requests came, and how many; the newest last.
    reports: VecDeque<(u64, u64)>,
}

impl Known {
    /// Calls per nanosecond. `until_ns`: seen from then; without, from the last call.
    fn rate(&self, until_ns: Option<u64>) -> Option<f64> {
        let (first_ns, _) = *self.reports.front()?;
        let (last_ns, _) = *self.reports.back()?;
        let calls: u64 = self.reports.iter().skip(1).map(|(_, count)| count).sum();
        let span_ns = until_ns.unwrap_or(last_ns).max(last_ns) - first_ns;
        (calls > 0 && span_ns > 0).then(|| calls as f64 / span_ns as f64)
    }
}

impl Layered {
    /// With other parameters.
    pub fn new(config: LayeredConfig) -> Self {
        Self { config, ..Self::default() }
    }

    fn rate(&self, known: &Known, layer: Layer, now_ns: u64) -> Option<f64> {
        let sharers = known.profile.package.filter(|_| layer == Layer::Package);
        let Some(sharers) = sharers.and_then(|package| self.shared.get(&package)) else {
            return known.rate(None);
        };
        let rates = sharers.iter().filter_map(|function| self.known.get(*function)?.rate(Some(now_ns)));
        Some(rates.sum()).filter(|rate| *rate > 0.0)
    }

    fn leave(&mut self, function: FunctionId) {
        let package = self.known.get(function.0).and_then(|known| known.profile.package);
        if let Some(sharers) = package.and_then(|package| self.shared.get_mut(&package)) {
            sharers.retain(|sharer| *sharer != function.0);
        }
    }
}

impl KeepAlive for Layered {
    fn name(&self) -> &'static str {
        "layered"
    }

    fn learn(&mut self, function: FunctionId, profile: Profile) {
        self.leave(function);
        let fresh = || Known { profile, reports: VecDeque::new() };
        self.known.get_or_insert_with(function.0, fresh).profile = profile;
        if let Some(package) = profile.package {
            self.shared.entry(package).or_default().push(function.0);
        }
    }

    fn arrived(&mut self, function: FunctionId, arrivals: Arrivals, now_ns: u64) {
        let Some(known) = self.known.get_mut(function.0) else { return };
        if arrivals.count == 0 {
            return;
        }
        if known.reports.len() >= self.config.calls.max(2) {
            known.reports.pop_front();
        }
        known.reports.push_back((now_ns, arrivals.count));
    }

    fn forget(&mut self, function: FunctionId) {
        self.leave(function);
        self.known.remove(function.0);
        self.shared.retain(|_, sharers| !sharers.is_empty());
    }

    fn window(&self, function: FunctionId, layer: Layer, now_ns: u64) -> Window {
        let Some(known) = self.known.get(function.0) else { return Window::lasting(0) };
        let cost = known.profile.cost(layer);
        let start_s = cost.start_ns as f64 / SECOND_NS as f64;
        let even_ns = start_s * self.config.gb_s_per_s / (cost.bytes.max(1) as f64 / GB) * SECOND_NS as f64;
        let patience_ns = match self.rate(known, layer, now_ns) {
            Some(rate) => -(1.0 - self.config.quantiles[layer as usize]).ln() / rate,
            None => standard(known.profile.standard_ns, layer) as f64,
        };
        // (A float beyond the largest u64 becomes that.)
        Window::lasting(even_ns.min(patience_ns) as u64)
    }

    fn worth(&self, function: FunctionId, layer: Layer, used_ns: u64, now_ns: u64) -> f64 {
        let Some(known) = self.known.get(function.0) else { return 0.0 };
        let cost = known.profile.cost(layer);
        // Without a rate: as if the next call came after as long as the last one is ago.
        let age_ns = now_ns.saturating_sub(used_ns).max(SECOND_NS);
        let rate = self.rate(known, layer, now_ns).unwrap_or(1.0 / age_ns as f64);
        rate * cost.start_ns as f64 / cost.bytes.max(1) as f64
    }
}
