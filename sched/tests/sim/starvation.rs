//! srpt+'s bound (`policy/srpt_plus.rs`), on every task of random traces, with functions that lie about being short.

use super::traces::*;
use proptest::prelude::*;
use spry_sched::FunctionId;
use spry_sched::policy::{Decision, Event, Policy, Srpt, SrptPlus, SrptPlusConfig};
use spry_sched::predict::Predictor;
use spry_sched::sim::{Job, Outcome};

/// Notes the largest rank that each task ever has.
struct Noting {
    policy: SrptPlus,
    largest: Vec<u64>,
}

impl Policy for Noting {
    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        self.policy.on(now_ns, event, decisions);
        for decision in decisions {
            let largest = &mut self.largest[decision.task.0 as usize];
            *largest = decision.rank.max(*largest);
        }
    }
}

/// Functions 0 and 1 have always been short.
fn gullible() -> Predictor {
    let mut predictor = Predictor::default();
    for function in [0, 1] {
        (0..200).for_each(|_| predictor.observe(FunctionId(function), None, MS));
    }
    predictor
}

fn run_noting(
    config: SrptPlusConfig,
    predictor: Predictor,
    cores: usize,
    trace: &[Job],
) -> (Outcome, Vec<u64>) {
    let policy = SrptPlus::new(config, predictor);
    let mut noting = Noting { policy, largest: vec![0; trace.len()] };
    (run(cores, trace, &mut noting), noting.largest)
}

/// s + b + (V + A) / m, for each job.
fn bounds(trace: &[Job], outcome: &Outcome, largest: &[u64], cores: u64) -> Vec<u64> {
    let times = times(trace, outcome);
    let bound = |place: usize| {
        let (job, deadline) = (&trace[place], largest[place]);
        let others = trace.iter().zip(&times).enumerate().filter(|(other, _)| *other != place);
        let work: u64 = others
            .map(|(_, (other, times))| match other.arrival_ns {
                at if at <= job.arrival_ns => other.cpu_ns() - times.ran_before(job.arrival_ns),
                at if at <= deadline => other.cpu_ns(),
                _ => 0,
            })
            .sum();
        job.cpu_ns() + job.io_ns() + work.div_ceil(cores)
    };
    (0..trace.len()).map(bound).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_task_ends_within_its_bound(
        trace in any_trace(40), cores in 1usize..4, stretch in 0u32..50, patience_ms in 0u64..5_000,
    ) {
        let config = SrptPlusConfig { stretch, patience_ns: patience_ms * MS };
        let (outcome, largest) = run_noting(config, gullible(), cores, &trace);
        let bounds = bounds(&trace, &outcome, &largest, cores as u64);
        for (place, job) in trace.iter().enumerate() {
            prop_assert!(largest[place] <= job.arrival_ns + config.patience_ns);
            let took = outcome.finish_ns[place] - job.arrival_ns;
            prop_assert!(took <= bounds[place], "job {place}: {took} > {}", bounds[place]);
        }
    }
}

/// A flood that never ends while the long one waits: as much short work as one core can do, or more, for 30 s.
fn flood(short_ns: u64, every_ns: u64) -> Vec<Job> {
    let mut trace = vec![job(0, 3, 400 * MS)];
    trace.extend((0..FLOOD_NS / every_ns).map(|call| job(call * every_ns, 0, short_ns)));
    trace
}

const FLOOD_NS: u64 = 30_000 * MS;

#[test]
fn under_a_flood_srpt_starves_the_long_one_and_srpt_plus_does_not() {
    let trace = flood(2 * MS, 2 * MS);
    let mut predictor = gullible();
    predictor.observe(FunctionId(3), None, 400 * MS);
    let starved = run(1, &trace, &mut Srpt::new(predictor.clone())).finish_ns[0];
    assert!(starved >= FLOOD_NS);
    let config = SrptPlusConfig::default();
    let took = run(1, &trace, &mut SrptPlus::new(config, predictor)).finish_ns[0];
    // The second bound of the essay: load 1, nobody ahead.
    let stretched = u64::from(config.stretch) * 400 * MS;
    assert!(took <= 400 * MS + stretched + stretched / 16, "{took}");
}

#[test]
fn liars_starve_nobody() {
    // "1 ms", says their past; they take 10 each, in a flood of twice what the core can do. The honest one's deadline
    // is 8 s away, in which 16 s of work come: that is its bound, and not the 60 s of the whole flood.
    let trace = flood(10 * MS, 5 * MS);
    let mut predictor = gullible();
    predictor.observe(FunctionId(3), None, 400 * MS);
    let config = SrptPlusConfig::default();
    let (outcome, largest) = run_noting(config, predictor, 1, &trace);
    let bound = bounds(&trace, &outcome, &largest, 1)[0];
    assert!(outcome.finish_ns[0] <= bound && bound < 17_500 * MS, "{} {bound}", outcome.finish_ns[0]);
}
