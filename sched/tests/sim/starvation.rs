//! srpt+'s bound (`policy/srpt_plus.rs`), on every task of random traces, with functions that lie about being short.

use super::traces::*;
use proptest::prelude::*;
use spry_sched::FunctionId;
use spry_sched::policy::{Decision, Event, Policy, Srpt, SrptPlus, SrptPlusConfig};
use spry_sched::predict::Predictor;
use spry_sched::sim::{Job, Outcome};

/// Notes each task's last due date.
struct Noting {
    policy: SrptPlus,
    due_ns: Vec<u64>,
}

impl Policy for Noting {
    fn on(&mut self, now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        self.policy.on(now_ns, event, decisions);
        // A due date changes with a decision.
        for decision in decisions {
            let due_ns = &mut self.due_ns[decision.task.0 as usize];
            *due_ns = self.policy.due_ns(decision.task).unwrap_or(*due_ns);
        }
    }

    fn next_tick_ns(&self) -> Option<u64> {
        self.policy.next_tick_ns()
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
    let mut noting = Noting { policy, due_ns: vec![0; trace.len()] };
    (run(cores, trace, &mut noting), noting.due_ns)
}

/// The bound of the essay, for one job.
fn bound(config: SrptPlusConfig, trace: &[Job], outcome: &Outcome, place: usize, due_ns: u64) -> u64 {
    let (job, times) = (&trace[place], times(trace, outcome));
    let others = trace.iter().zip(&times).enumerate().filter(|(other, _)| *other != place);
    let work_ns: u64 = others
        .map(|(_, (other, times))| match other.arrival_ns {
            at if at <= job.arrival_ns => other.cpu_ns() - times.ran_before(job.arrival_ns),
            at if at <= due_ns => other.cpu_ns(),
            _ => 0,
        })
        .sum();
    let shared_ns = (work_ns + job.cpu_ns()) * 100 / u64::from(config.share_percent);
    (due_ns - job.arrival_ns) + job.io_ns() + shared_ns + 2 * config.period_ns()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_task_ends_within_its_bound(
        trace in any_trace(40), cores in 1usize..4, stretch in 0u32..50, patience_ms in 0u64..5_000,
        share_percent in 1u32..=100, quantum_ns in 1_000_000u64..50_000_000,
    ) {
        let patience_ns = patience_ms * MS;
        let config = SrptPlusConfig { stretch, patience_ns, share_percent, quantum_ns };
        let (outcome, due_ns) = run_noting(config, gullible(), cores, &trace);
        for (place, job) in trace.iter().enumerate() {
            prop_assert!((job.arrival_ns..=job.arrival_ns + patience_ns).contains(&due_ns[place]));
            let took = outcome.finish_ns[place] - job.arrival_ns;
            let bound = bound(config, &trace, &outcome, place, due_ns[place]);
            prop_assert!(took <= bound, "job {place}: {took} > {bound}");
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
    let trace = flood(4 * MS, 4 * MS);
    let mut predictor = gullible();
    predictor.observe(FunctionId(3), None, 400 * MS);
    let starved = run(1, &trace, &mut Srpt::new(predictor.clone())).finish_ns[0];
    assert!(starved >= FLOOD_NS);
    // Due after 8 s, then 20 ms of its 400 in each 200.
    let config = SrptPlusConfig::default();
    let took = run(1, &trace, &mut SrptPlus::new(config, predictor)).finish_ns[0];
    assert!(took <= 12_500 * MS, "{took}");
}

#[test]
fn liars_starve_nobody() {
    // "1 ms", says their past; they take 20 each, in a flood of twice what the core can do.
    let trace = flood(20 * MS, 10 * MS);
    let mut predictor = gullible();
    predictor.observe(FunctionId(3), None, 400 * MS);
    let config = SrptPlusConfig { stretch: 5, share_percent: 25, ..SrptPlusConfig::default() };
    let (outcome, due_ns) = run_noting(config, predictor, 1, &trace);
    let bound = bound(config, &trace, &outcome, 0, due_ns[0]);
    // Due after 2 s, in which 4 s of work come, done at a quarter of the core: 19 s, of the 60 s that the flood needs.
    assert!(outcome.finish_ns[0] <= bound && bound < 21_000 * MS, "{} {bound}", outcome.finish_ns[0]);
}
