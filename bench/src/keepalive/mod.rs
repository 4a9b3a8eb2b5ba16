//! `keepalive`: the keep-alive policies of a node, side by side on the same trace in simulated time.
//!
//! - [`trace`]: the calls, made from a seed; [`machine`]: the node's memory.
//!
//! The policies are those of `spry_sched::keepalive`, the same that a node uses. What counts is how many calls
//! find nothing warm, against the memory that was held for it; each number beside `ttl`'s with the same memory.
//!
//! With `--layers` the policies run beside the planner of package layers ([`layers`]); each number is then beside that
//! of the same policy without layers.

pub mod layers;
pub mod machine;
pub mod trace;

use clap::Args;
use spry_sched::keepalive::{Kind, SECOND_NS};

use crate::report::Row;
use layers::{Layers, Sharing};
use machine::Outcome;

const BENCH: &str = "keepalive";

/// What is to be simulated.
#[derive(Debug, Args)]
pub struct Options {
    /// Functions.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    functions: u32,
    /// Days.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60))]
    days: u32,
    /// Memory of the node, in percent of what all functions together would take.
    #[arg(long, value_delimiter = ',', default_value = "100,20,5",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    memory: Vec<u32>,
    /// Every function's `scale.idle`, in minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    idle: u32,
    /// With package layers, which may hold so many percent of the node's memory.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    layers: Option<u32>,
    /// Where the random numbers start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs every policy.
pub fn run(options: &Options) -> Vec<Row> {
    let standard_ns = u64::from(options.idle) * 60 * SECOND_NS;
    let trace = trace::make(options.functions as usize, f64::from(options.days), standard_ns, options.seed);
    let all_bytes = machine::footprint_bytes(&trace);
    let calls: u64 = trace.functions.iter().flat_map(|f| &f.batches).map(|batch| batch.count).sum();
    eprintln!(
        "{} functions, {} days, {calls} calls, {:.1} GB if all were there, seed {}",
        options.functions,
        options.days,
        all_bytes as f64 / 1e9,
        options.seed
    );
    if let Some(percent) = options.layers {
        return with_layers(options, &trace, percent);
    }
    let mut rows = Vec::new();
    for percent in &options.memory {
        let budget_bytes = (u128::from(all_bytes) * u128::from(*percent) / 100) as u64;
        let mut ttl = None;
        for kind in Kind::ALL {
            let mut policy = kind.policy();
            let outcome = machine::run(&trace, &mut *policy, budget_bytes);
            let ttl = ttl.get_or_insert_with(|| outcome.clone());
            rows.extend(report(&format!("{}, {percent} % memory", kind.name()), &outcome, ttl));
        }
    }
    rows
}

/// Runs every policy beside the planner of layers.
fn with_layers(options: &Options, trace: &trace::Trace, layers_percent: u32) -> Vec<Row> {
    let alone = Layers::new(trace, Sharing::None, 0, options.seed);
    let of = |function: usize| alone.alone(function).bytes + trace.functions[function].profile.costs[2].bytes;
    let all_bytes: u64 = (0..trace.functions.len()).map(of).sum();
    let mut rows = Vec::new();
    for percent in &options.memory {
        let budget_bytes = (u128::from(all_bytes) * u128::from(*percent) / 100) as u64;
        let layers_bytes = (u128::from(budget_bytes) * u128::from(layers_percent) / 100) as u64;
        for kind in Kind::ALL {
            let mut none = None;
            for sharing in Sharing::ALL {
                let layers = Layers::new(trace, sharing, layers_bytes, options.seed);
                let outcome = machine::run_with(trace, &mut *kind.policy(), Some(layers), budget_bytes);
                let none = none.get_or_insert_with(|| outcome.clone());
                let case = format!("{}, {percent} % memory, {}", kind.name(), sharing.name());
                let row = |metric, unit, value: fn(&Outcome) -> f64| {
                    Row::new(BENCH, &case, metric, value(&outcome), unit).against(value(none))
                };
                rows.extend([
                    row("waiting", "s", |o| o.waited_s),
                    row("waiting, a cold call", "ms", |o| o.waited_s * 1e3 / o.cold.max(1) as f64),
                    row("cold calls", "of a million", |o| per_million(o.cold, o.calls)),
                    row("memory x time", "GB h", |o| o.memory_gb_h),
                    row("layers made", "", |o| o.layers as f64),
                ]);
            }
        }
    }
    rows
}

fn report(case: &str, outcome: &Outcome, ttl: &Outcome) -> Vec<Row> {
    let row = |metric, unit, value: fn(&Outcome) -> f64| {
        Row::new(BENCH, case, metric, value(outcome), unit).against(value(ttl))
    };
    vec![
        row("cold calls", "of a million", |o| per_million(o.cold, o.calls)),
        row("cold calls, p75 of functions", "%", |o| cold_percent(o, 0.75)),
        row("forked calls", "of a million", |o| per_million(o.forked, o.calls)),
        row("waiting", "s", |o| o.waited_s),
        row("memory x time", "GB h", |o| o.memory_gb_h),
        row("pushed out", "", |o| o.evicted as f64).shown(false),
        row("made ahead", "", |o| o.prewarmed as f64).shown(false),
    ]
}

fn per_million(part: u64, of: u64) -> f64 {
    part as f64 * 1e6 / of.max(1) as f64
}

/// Of the functions' own shares of cold calls, this quantile (as the paper shows it: every function counts the same).
fn cold_percent(outcome: &Outcome, quantile: f64) -> f64 {
    let called = outcome.by_function.iter().filter(|(calls, _)| *calls > 0);
    let mut shares: Vec<f64> = called.map(|(calls, cold)| *cold as f64 * 100.0 / *calls as f64).collect();
    shares.sort_by(f64::total_cmp);
    let at = (shares.len() as f64 * quantile) as usize;
    shares.get(at.min(shares.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
