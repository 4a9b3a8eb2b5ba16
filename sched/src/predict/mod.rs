//! How much CPU time an invocation has left, given its function, what it has used, and the size of its request.
//!
//! Per function an aged [`Sketch`] of the CPU times of finished invocations. Three questions are put to it, all of
//! the distribution of what is left *given that it has lasted so long already*: its mean
//! ([`Predictor::mean_rest_ns`]), a quantile ([`Predictor::quantile_rest_ns`]), and its Gittins index
//! ([`Predictor::gittins`]).
//!
//! **What nobody knows.** A new function's invocation counts as having as much left as it has used, at least
//! [`SHORT_NS`]. So unknown functions start short and are believed less the longer they run. One that has outlasted
//! all that are remembered has as much left as it has overrun them, at least a sixteenth of what it has used: sizes
//! are known within 1/32 only, and CPU times differ by that much from run to run. (Were all that it has used counted
//! instead, whoever is a millisecond over his past would be taken for having as much again to do, and set back just
//! before his end. What this brings on a real node has not been shown: `docs/scheduler.md`.) That the chance of
//! lasting as long again is about one half was measured for processes by Harchol-Balter and Downey ("Exploiting
//! Process Lifetime Distributions for Dynamic Load Balancing", ACM TOCS 15(3), 1997, section 2). It is also what
//! keeps a function that lies about being short from gaining by it: its past says "5 ms", and soon after these 5 ms
//! its past says nothing.
//!
//! **The Gittins index** (Gittins 1979; Scully, Harchol-Balter, Scheller-Wolf: "SOAP", SIGMETRICS 2018, section 2 for
//! this form) of a job of age a is the smallest ratio, over all quanta d, of the work that d costs to the chance
//! that the job is finished by it: `min over d of E[min(T - a, d) | T > a] / P(T - a <= d | T > a)`. When sizes are
//! known it is the remaining time; when they are not it gives the least mean turnaround that can be had on one core.
//! A function that takes 1 ms nine times of ten and 1 s otherwise has a mean of 101 ms, but is worth a try for 1 ms
//! first: its index is 1.1 ms, and after the first ms 1 s.
//!
//! **Request sizes**, where the caller knows them, split a function's history in up to nine classes (by factors of
//! four from 256 bytes). A class that has seen [`CLASS_WEIGHT`] invocations answers for itself, before that the
//! function as a whole does.

mod sketch;

pub use sketch::{HALF_LIFE, Sketch};

use crate::FunctionId;
use crate::slots::Slots;
use sketch::Part;

/// What an unknown function is taken to need, in nanoseconds.
pub const SHORT_NS: u64 = 1_000_000;
/// A class of request sizes answers for itself from so many (aged) invocations on.
pub const CLASS_WEIGHT: f64 = 8.0;
/// With fewer (aged) observations than this above an age, the rest is made up by what nobody knows.
const KNOWN_WEIGHT: f64 = 0.5;
/// An invocation that has outlasted its past has at least so much of what it has used left,
const OVERRUN_PART: u64 = 16;
/// and at least this.
const OVERRUN_NS: u64 = 100_000;
const CLASSES: usize = 9;

/// A rank, and how long it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gittins {
    /// The index, in nanoseconds: the smaller the better to run first.
    pub index_ns: u64,
    /// The quantum that the index comes from: after so much CPU time it should be asked for again.
    pub quantum_ns: u64,
}

/// What is known of all functions.
#[derive(Clone, Debug, Default)]
pub struct Predictor {
    functions: Slots<History>,
}

#[derive(Clone, Debug, Default)]
struct History {
    all: Sketch,
    by_size: [Option<Sketch>; CLASSES],
}

impl Predictor {
    /// Takes in the CPU time of a finished invocation.
    pub fn observe(&mut self, function: FunctionId, size_bytes: Option<u64>, used_ns: u64) {
        let history = self.functions.get_or_insert_with(function.0, History::default);
        history.all.observe(used_ns);
        if let Some(size) = size_bytes {
            history.by_size[class(size)].get_or_insert_default().observe(used_ns);
        }
    }

    /// Takes in the CPU time of an invocation that was ended before it had finished. It would have taken longer; so
    /// it says something only if it was a long one already.
    pub fn observe_cut(&mut self, function: FunctionId, size_bytes: Option<u64>, used_ns: u64) {
        if used_ns > self.mean_rest_ns(function, size_bytes, 0) {
            self.observe(function, size_bytes, used_ns);
        }
    }

    /// The expected CPU time left, in nanoseconds, at least 1.
    pub fn mean_rest_ns(&self, function: FunctionId, size_bytes: Option<u64>, used_ns: u64) -> u64 {
        let (sum, weight) = self
            .rest(function, size_bytes, used_ns)
            .fold((0.0, 0.0), |(sum, weight), part| (sum + part.rest_ns * part.weight, weight + part.weight));
        nanoseconds(sum / weight)
    }

    /// The quantile `q` (0 to 1) of the CPU time left, in nanoseconds, at least 1.
    pub fn quantile_rest_ns(
        &self,
        function: FunctionId,
        size_bytes: Option<u64>,
        used_ns: u64,
        q: f64,
    ) -> u64 {
        let sketch = self.sketch(function, size_bytes);
        let known = sketch.and_then(|sketch| sketch.quantile_rest_ns(used_ns, q));
        known.map_or_else(|| unknown_ns(sketch, used_ns), nanoseconds)
    }

    /// The Gittins index.
    pub fn gittins(&self, function: FunctionId, size_bytes: Option<u64>, used_ns: u64) -> Gittins {
        let total: f64 = self.rest(function, size_bytes, used_ns).map(|part| part.weight).sum();
        let mut best = (f64::INFINITY, 0.0);
        let (mut ended, mut cost) = (0.0, 0.0);
        for part in self.rest(function, size_bytes, used_ns) {
            ended += part.weight;
            cost += part.weight * part.rest_ns;
            let index = (cost + (total - ended).max(0.0) * part.rest_ns) / ended;
            // Of equal quanta the longer one: fewer questions.
            if index <= best.0 {
                best = (index, part.rest_ns);
            }
        }
        Gittins { index_ns: nanoseconds(best.0), quantum_ns: nanoseconds(best.1) }
    }

    /// Forgets a function, because its slot is another's now or its code has changed.
    pub fn forget(&mut self, function: FunctionId) {
        self.functions.remove(function.0);
    }

    /// What may be left, by weight: never nothing.
    fn rest(
        &self,
        function: FunctionId,
        size_bytes: Option<u64>,
        used_ns: u64,
    ) -> impl Iterator<Item = Part> {
        let sketch = self.sketch(function, size_bytes);
        let known = sketch.map_or(0.0, |sketch| sketch.weight_above(used_ns));
        let unknown = (known < KNOWN_WEIGHT)
            .then(|| Part { rest_ns: unknown_ns(sketch, used_ns) as f64, weight: KNOWN_WEIGHT - known });
        let parts = move || sketch.into_iter().flat_map(move |sketch| sketch.rest(used_ns));
        // What is known may lie on both sides of what is not; the index wants them in order.
        let border = unknown.map_or(f64::INFINITY, |unknown| unknown.rest_ns);
        let from_border = move |unknown: Part| {
            std::iter::once(unknown).chain(parts().skip_while(move |part| part.rest_ns <= border))
        };
        parts()
            .take_while(move |part| part.rest_ns <= border)
            .chain(unknown.into_iter().flat_map(from_border))
    }

    fn sketch(&self, function: FunctionId, size_bytes: Option<u64>) -> Option<&Sketch> {
        let history = self.functions.get(function.0)?;
        let of_size = size_bytes.and_then(|size| history.by_size[class(size)].as_ref());
        Some(of_size.filter(|sketch| sketch.weight_above(0) >= CLASS_WEIGHT).unwrap_or(&history.all))
    }
}

fn unknown_ns(sketch: Option<&Sketch>, used_ns: u64) -> u64 {
    let past_ns = sketch.and_then(|sketch| sketch.above_ns(KNOWN_WEIGHT));
    past_ns.map_or(used_ns.max(SHORT_NS), |past_ns| {
        used_ns.saturating_sub(past_ns).max(used_ns / OVERRUN_PART).max(OVERRUN_NS)
    })
}

fn nanoseconds(ns: f64) -> u64 {
    (ns as u64).max(1)
}

/// Below 256 bytes, 1 KiB, 4 KiB … 4 MiB, and above.
fn class(size_bytes: u64) -> usize {
    let bits = (u64::BITS - size_bytes.leading_zeros()) as usize;
    (bits.saturating_sub(7) / 2).min(CLASSES - 1)
}

#[cfg(test)]
mod tests;
