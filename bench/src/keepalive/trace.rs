//! A trace of a small platform's functions, made from a seed, with the published shape of Azure's.
//!
//! After M. Shahrad et al., "Serverless in the Wild", USENIX ATC 2020 (data of July 2019):
//!
//! - **Rates** (section 3.3, figure 5a): daily invocations per function cover eight orders of magnitude; 45 % of functions are
//!   called at most once an hour, 81 % at most once a minute, and few are nearly all of the load. Here: log-linear
//!   between [`RATES_PER_DAY`].
//! - **When** (section 3.3, figure 6, and figure 2): timers come like clockwork, HTTP calls are about Poisson, and many
//!   applications vary more than Poisson does (a coefficient of variation above 1). Here: shares in [`Kind`].
//! - **How long** (section 3.4, figure 7): log-normal, mu -0.38, sigma 2.36, in seconds.
//! - **How much memory** (section 3.5, figure 8): Burr, c 11.652, k 0.221, scale 107.083, in MB.
//!
//! What starting costs isn't in that paper; it is what this project measures of its own (`cargo xtask bench fork`):
//! an instance about a millisecond, a native zygote some 10 to 40 ms, one of Python 50 to 600 ms of its own code
//! above a package layer that takes 300 ms.
//!
//! Calls closer together than [`BATCH_NS`] are one record with a count: no policy lets go of anything in that time, and so
//! the ten million calls a day of the largest functions fit into memory.

use spry_sched::keepalive::{Cost, Profile, SECOND_NS};

use crate::random::SplitMix64;

/// Calls within this time of a record's first are in that record.
pub const BATCH_NS: u64 = 10 * SECOND_NS;
const DAY_S: f64 = 86_400.0;
/// Share of functions, and the calls a day that so many have at most.
const RATES_PER_DAY: [(f64, f64); 5] = [(0.0, 0.1), (0.45, 24.0), (0.81, 1_440.0), (0.97, 1e5), (1.0, 1e7)];
/// Package layers that functions share.
const PACKAGES: usize = 6;
/// Longest execution: a function's usual time limit.
const EXEC_S_MAX: f64 = 30.0;

/// How calls come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// At the same distance, within a second.
    Timer,
    /// Poisson.
    Steady,
    /// In bursts, with long pauses between them.
    Bursty,
}

/// Calls that came together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// When the first came.
    pub at_ns: u64,
    /// How many.
    pub count: u64,
}

/// One function and all its calls.
#[derive(Clone, Debug)]
pub struct Function {
    /// How its calls come.
    pub kind: Kind,
    /// What it costs.
    pub profile: Profile,
    /// How long a call takes.
    pub exec_ns: u64,
    /// Its calls, in order.
    pub batches: Vec<Batch>,
}

/// All functions.
#[derive(Clone, Debug)]
pub struct Trace {
    /// By slot.
    pub functions: Vec<Function>,
    /// How long it goes on.
    pub span_ns: u64,
}

/// Makes a trace. `standard_ns` is every function's `scale.idle`.
pub fn make(functions: usize, days: f64, standard_ns: u64, seed: u64) -> Trace {
    let span_s = days * DAY_S;
    let mut random = SplitMix64::new(seed);
    let functions = (0..functions)
        .map(|_| {
            // Each function from a seed of its own: more functions don't change those before.
            let mut random = SplitMix64::new(random.next_u64());
            let per_day = rate_per_day(random.unit());
            let kind = match random.unit() {
                u if u < 0.20 => Kind::Timer,
                u if u < 0.60 => Kind::Steady,
                _ => Kind::Bursty,
            };
            Function {
                kind,
                profile: profile(&mut random, standard_ns),
                exec_ns: (exec_s(&mut random) * 1e9) as u64,
                batches: batch(&calls(kind, per_day, span_s, &mut random)),
            }
        })
        .collect();
    Trace { functions, span_ns: (span_s * 1e9) as u64 }
}

/// The rate that a share of functions stays below.
fn rate_per_day(share: f64) -> f64 {
    let above = RATES_PER_DAY.iter().position(|(end, _)| share < *end).unwrap_or(RATES_PER_DAY.len() - 1);
    let ((from, low), (to, high)) = (RATES_PER_DAY[above - 1], RATES_PER_DAY[above]);
    let within = (share - from) / (to - from);
    (low.ln() + within * (high.ln() - low.ln())).exp()
}

/// Records of (seconds, calls).
fn calls(kind: Kind, per_day: f64, span_s: f64, random: &mut SplitMix64) -> Vec<(f64, u64)> {
    let gap_s = DAY_S / per_day;
    let mut found = Vec::new();
    // From the middle of a gap on, so that not all functions begin at once.
    let mut now_s = gap_s * random.unit();
    let batch_s = BATCH_NS as f64 / 1e9;
    while now_s < span_s {
        let dense = (batch_s / gap_s).floor().max(1.0);
        let (mut count, mut next_s) = (dense, gap_s * dense);
        match kind {
            Kind::Timer => next_s += random.unit() - 0.5,
            Kind::Steady => next_s = random.exponential(next_s),
            Kind::Bursty => {
                // A burst has 10 calls in the mean, a tenth of the usual gap apart; the pauses make up for it.
                let ends = random.unit() < 0.1;
                next_s = random.exponential(next_s) * if ends { 9.1 } else { 0.1 };
                count = count.max(1.0);
            }
        }
        found.push((now_s, count as u64));
        now_s += next_s.max(1e-3);
    }
    found
}

fn batch(calls: &[(f64, u64)]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for (at_s, count) in calls {
        let at_ns = (at_s * 1e9) as u64;
        match batches.last_mut() {
            Some(last) if at_ns - last.at_ns < BATCH_NS => last.count += count,
            _ => batches.push(Batch { at_ns, count: *count }),
        }
    }
    batches
}

fn profile(random: &mut SplitMix64, standard_ns: u64) -> Profile {
    const MB: f64 = 1e6;
    let ms = |ms: f64| (ms * 1e6) as u64;
    // Burr XII by its inverse.
    let u = 0.999 * random.unit();
    let memory_mb = 107.083 * ((1.0 - u).powf(-1.0 / 0.221) - 1.0).powf(1.0 / 11.652);
    let memory = memory_mb.clamp(8.0, 2048.0) * MB;
    let python = random.unit() < 0.7;
    let package = python.then(|| random.below(PACKAGES) as u32);
    let (low, high): (f64, f64) = if python { (50.0, 600.0) } else { (10.0, 40.0) };
    let start_ms = (low.ln() + random.unit() * (high.ln() - low.ln())).exp();
    let package_cost = Cost { start_ns: ms(300.0), bytes: (60.0 * MB) as u64 };
    let zygote = Cost { start_ns: ms(start_ms), bytes: memory as u64 };
    let instance = Cost { start_ns: ms(1.0), bytes: (0.05 * memory + 0.4 * MB) as u64 };
    Profile { standard_ns, package, costs: [package_cost, zygote, instance] }
}

fn exec_s(random: &mut SplitMix64) -> f64 {
    // Box and Muller.
    let normal = (-2.0 * (1.0 - random.unit()).ln()).sqrt() * (std::f64::consts::TAU * random.unit()).cos();
    (-0.38 + 2.36 * normal).exp().clamp(0.000_5, EXEC_S_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls_per_day(function: &Function, days: f64) -> f64 {
        function.batches.iter().map(|batch| batch.count).sum::<u64>() as f64 / days
    }

    #[test]
    fn it_has_the_published_shape() {
        let trace = make(2000, 2.0, 0, 1);
        let mut rates: Vec<f64> =
            trace.functions.iter().map(|function| calls_per_day(function, 2.0)).collect();
        rates.sort_by(f64::total_cmp);
        let below = |rate: f64| rates.partition_point(|r| *r <= rate) as f64 / rates.len() as f64;
        assert!((0.38..0.52).contains(&below(24.0)), "{}", below(24.0));
        assert!((0.75..0.87).contains(&below(1440.0)), "{}", below(1440.0));
        let busiest: f64 = rates[rates.len() * 8 / 10..].iter().sum();
        assert!(busiest / rates.iter().sum::<f64>() > 0.98);
        let mut memory: Vec<u64> = trace.functions.iter().map(|f| f.profile.costs[1].bytes).collect();
        memory.sort_unstable();
        let median = memory[memory.len() / 2];
        assert!((120_000_000..200_000_000).contains(&median), "{median}");
    }

    #[test]
    fn it_is_the_seeds_and_more_functions_change_none() {
        let (few, many) = (make(20, 1.0, 0, 3), make(40, 1.0, 0, 3));
        for (one, other) in few.functions.iter().zip(&many.functions) {
            assert_eq!(one.batches, other.batches);
        }
        assert_ne!(few.functions[0].batches, make(20, 1.0, 0, 4).functions[0].batches);
    }

    #[test]
    fn records_are_in_order_and_apart() {
        for function in make(200, 1.0, 0, 5).functions {
            assert!(function.batches.windows(2).all(|two| two[1].at_ns - two[0].at_ns >= BATCH_NS));
        }
    }
}
