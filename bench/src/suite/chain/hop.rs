//! The cost of a hop: (p50 of a chain of 16 - p50 of a chain of 1) / 15, everything on one core, beside half the round
//! trip of the bare bus in the same round.
//!
//! On one core, because a wake-up across cores costs more than all else together and the kernel changes its mind
//! about it from second to second.
//!
//! Sixteen functions are sixteen address spaces, and a ping-pong has two, which the processor keeps. So two more rows tell
//! how much of a hop that is: bare processes that the bus routes on from one to the next, sixteen of them; and a chain of
//! sixteen steps that goes to and fro between two functions.

use std::path::Path;

use shm_bus::transport::Kind;

use super::{BENCH, Code, Options, apply, warm};
use crate::load::{self, Pace, Plan, Target, Until};
use crate::node::{Node, Programs};
use crate::pingpong::PingPong;
use crate::process;
use crate::report::{Bar, Row, median};
use crate::stop::Stop;
use crate::suite::{SuiteError, TIMEOUT, process_error};

/// Steps of the long chain.
const STEPS: usize = 16;
/// What goes through a chain of those that pass it on.
const BODY: &[u8] = crate::floor::NOP_JSON;

/// A chain of one step and one of many, of the same code.
struct Pair {
    name: &'static str,
    /// Its hop has a bar.
    bound: bool,
    one: Target,
    many: Target,
    /// Medians of each round.
    one_us: Vec<f64>,
    many_us: Vec<f64>,
}

impl Pair {
    fn hops(&self) -> impl Iterator<Item = f64> {
        self.one_us.iter().zip(&self.many_us).map(|(one, many)| (many - one) / (STEPS - 1) as f64)
    }
}

pub(super) fn run(
    options: &Options,
    programs: &Programs,
    binary: &Path,
    stop: &Stop,
) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start_with(programs, "transport = \"sockmap\"\nworkers = 1\n", stop)?;
    let mut pairs = Vec::new();
    for code in [Code::Pass, Code::Nop] {
        pairs.push(prepare(&node, programs, code, stop)?);
    }
    pairs.push(prepare_to_and_fro(&node, stop)?);
    let mut bare = PingPong::start(binary, Kind::Sockmap, 1)?;
    let mut bare_many = PingPong::start(binary, Kind::Sockmap, STEPS as u16)?;
    let (mut half_trips_us, mut bare_hops_us) = (Vec::new(), Vec::new());
    let cpus = process::allowed_cpus().map_err(process_error("this program"))?;
    for round in 0..options.rounds.max(1) {
        eprintln!("hop, round {} of {}", round + 1, options.rounds);
        // In each round, since the node may have started or moved an instance since.
        let tree = process::tree(node.pid()).map_err(process_error("spryd"))?;
        process::restrict(&tree, &cpus[..1]).map_err(process_error("spryd"))?;
        bare.restrict(&cpus[..1])?;
        bare_many.restrict(&cpus[..1])?;
        process::restrict_this_thread(cpus[0]).map_err(process_error("this program"))?;

        half_trips_us.push(bare.median_us(options.time() / 2)? / 2.0);
        bare_hops_us.push(bare_many.hop_us(options.time())?);
        for pair in &mut pairs {
            // There and back again: what drifts evenly cancels out.
            let before = median_us(&pair.one, options, stop)?;
            pair.many_us.push(median_us(&pair.many, options, stop)?);
            let after = median_us(&pair.one, options, stop)?;
            pair.one_us.push(f64::midpoint(before, after));
        }
    }
    Ok(report(&pairs, &half_trips_us, &bare_hops_us))
}

fn prepare(node: &Node, programs: &Programs, code: Code, stop: &Stop) -> Result<Pair, SuiteError> {
    let names = code.names(STEPS);
    code.deploy(node, programs, &names, &[])?;
    let (one, many) = (format!("one-{}", code.name()), format!("many-{}", code.name()));
    apply(node, &one, &names[..1], "1MiB")?;
    apply(node, &many, &names, "1MiB")?;
    let one = warm(node, &one, BODY, BODY, stop)?;
    let many = warm(node, &many, BODY, BODY, stop)?;
    let (name, bound) = (code.name(), code == Code::Pass);
    Ok(Pair { name, bound, one, many, one_us: Vec::new(), many_us: Vec::new() })
}

/// Two of the functions that pass it on, in turns.
fn prepare_to_and_fro(node: &Node, stop: &Stop) -> Result<Pair, SuiteError> {
    let names: Vec<String> = Code::Pass.names(2).into_iter().cycle().take(STEPS).collect();
    apply(node, "one-of-two", &names[..1], "1MiB")?;
    apply(node, "many-of-two", &names, "1MiB")?;
    let one = warm(node, "one-of-two", BODY, BODY, stop)?;
    let many = warm(node, "many-of-two", BODY, BODY, stop)?;
    Ok(Pair { name: "pass (two in turns)", bound: false, one, many, one_us: Vec::new(), many_us: Vec::new() })
}

fn median_us(target: &Target, options: &Options, stop: &Stop) -> Result<f64, SuiteError> {
    let plan =
        |time| Plan { connections: 1, pace: Pace::Closed, until: Until::Elapsed(time), timeout: TIMEOUT };
    load::run(target, &plan(options.time() / 10), stop)?;
    let outcome = load::run(target, &plan(options.time() / 2), stop)?;
    if outcome.failures.total() > 0 {
        let what = "a chain on one core".to_owned();
        return Err(SuiteError::Answer { what, found: outcome.failures.to_string() });
    }
    Ok(outcome.latency_us(0.5))
}

fn report(pairs: &[Pair], half_trips_us: &[f64], bare_hops_us: &[f64]) -> Vec<Row> {
    let baseline = median(half_trips_us);
    let mut rows = vec![
        Row::new(BENCH, "bare bus, one core", "half round trip", baseline, "us")
            .spread(half_trips_us.iter().copied()),
        Row::new(BENCH, format!("{STEPS} x bare bus, one core"), "hop", median(bare_hops_us), "us")
            .against(baseline)
            .spread(bare_hops_us.iter().zip(half_trips_us).map(|(hop, half)| hop / half)),
    ];
    for pair in pairs {
        let (name, hops) = (pair.name, pair.hops().collect::<Vec<_>>());
        for (steps, values) in [(1, &pair.one_us), (STEPS, &pair.many_us)] {
            let case = format!("{steps} x {name}, one core");
            rows.push(Row::new(BENCH, case, "p50", median(values), "us").spread(values.iter().copied()));
        }
        let row = Row::new(BENCH, format!("{name}, one core"), "hop", median(&hops), "us").against(baseline);
        let row = row.spread(hops.iter().zip(half_trips_us).map(|(hop, half)| hop / half));
        rows.push(if pair.bound { row.must(Bar::RatioAtMost(1.5)) } else { row });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_is_the_fifteenth_part_of_the_difference() {
        let target = Target::new(([127, 0, 0, 1], 1).into(), "GET", "/", b"", b"".as_slice().into());
        let (one_us, many_us) = (vec![40.0, 50.0, 60.0], vec![115.0, 125.0, 150.0]);
        let pair = Pair { name: "pass", bound: true, one: target.clone(), many: target, one_us, many_us };
        let rows = report(&[pair], &[4.0, 4.0, 5.0], &[6.0, 6.0, 6.0]);
        assert_eq!(rows[1].ratio, Some(1.5));
        let hop = rows.last().unwrap();
        assert_eq!((hop.value, hop.baseline, hop.ratio), (5.0, Some(4.0), Some(1.25)));
        assert_eq!((hop.met, hop.spread), (Some(true), Some((1.2, 1.25))));
    }
}
