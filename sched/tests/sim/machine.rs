//! The machine's own rules, whatever the policy.

use super::traces::*;
use proptest::prelude::*;
use spry_sched::policy::{Decision, Event, Policy, Srpt};
use spry_sched::predict::Predictor;
use spry_sched::sim::{Fifo, Job, Machine, OfflineSrpt, Run, TIME_MAX_NS, check};

/// How many cores are busy, and from when: a step function.
fn busy(runs: &[Run]) -> Vec<(u64, usize)> {
    let mut changes: Vec<(u64, i64)> =
        runs.iter().flat_map(|run| [(run.from_ns, 1), (run.to_ns, -1)]).collect();
    changes.sort_unstable();
    let mut level = 0i64;
    let mut steps: Vec<(u64, usize)> = Vec::new();
    for (at, change) in changes {
        level += change;
        match steps.last_mut().filter(|last| last.0 == at) {
            Some(last) => last.1 = level as usize,
            None => steps.push((at, level as usize)),
        }
    }
    steps
}

/// The fewest busy cores within a span.
fn fewest(steps: &[(u64, usize)], (from, to): Span) -> usize {
    let first = steps.partition_point(|step| step.0 <= from);
    let before = if first == 0 { 0 } else { steps[first - 1].1 };
    steps[first..].iter().take_while(|step| step.0 < to).map(|step| step.1).fold(before, usize::min)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// No job is lost or runs twice at once, each runs exactly what it needs, no core has two; and no core idles
    /// while somebody waits.
    #[test]
    fn all_jobs_run_to_their_ends_and_no_core_idles_for_nothing(trace in any_trace(25), cores in 1usize..4) {
        for (name, mut policy) in every_policy(cores, &trace) {
            let outcome = run(cores, &trace, policy.as_mut());
            let times = times(&trace, &outcome);
            let steps = busy(&outcome.runs);
            prop_assert!(steps.iter().all(|step| step.1 <= cores), "{name}");
            let mut by_core = outcome.runs.clone();
            by_core.sort_unstable_by_key(|run| (run.core, run.from_ns));
            let overlaps = by_core.windows(2).any(|w| w[0].core == w[1].core && w[0].to_ns > w[1].from_ns);
            prop_assert!(!overlaps, "{name}");
            for (place, times) in times.iter().enumerate() {
                prop_assert!(times.ran.windows(2).all(|w| w[0].1 <= w[1].0), "{name}: job {place} is in two places");
                for &span in &times.waited {
                    prop_assert_eq!(fewest(&steps, span), cores, "{}: job {} waits in {:?}", name, place, span);
                }
            }
        }
    }

    #[test]
    fn the_same_trace_has_the_same_outcome(trace in any_trace(25), cores in 1usize..4) {
        let outcomes = || -> Vec<_> {
            let policies = every_policy(cores, &trace).into_iter();
            policies.map(|(_, mut policy)| run(cores, &trace, policy.as_mut())).collect()
        };
        prop_assert_eq!(outcomes(), outcomes());
    }

    /// On one core those who never block end in the order of their arrival, undisturbed; on more they begin in it.
    #[test]
    fn fifo_keeps_the_order(trace in any_trace(25), cores in 1usize..4) {
        let trace: Vec<Job> =
            trace.into_iter().map(|job| Job { bursts_ns: vec![job.cpu_ns()], ..job }).collect();
        let outcome = run(cores, &trace, &mut Fifo::default());
        let begun: Vec<u64> = times(&trace, &outcome).iter().map(|times| times.ran[0].0).collect();
        prop_assert!(begun.is_sorted());
        prop_assert_eq!(outcome.runs.len(), trace.len());
        if cores == 1 {
            prop_assert!(outcome.finish_ns.is_sorted());
        }
    }

    /// A switch costs time on the core where it happens, and nobody's CPU time.
    #[test]
    fn switches_cost_what_they_cost(trace in any_trace(25)) {
        let machine = Machine { switch_ns: 5_000, record: true, ..Machine::new(1) };
        let outcome = machine.run(&trace, &mut Srpt::new(Predictor::default())).unwrap();
        let (mut last, mut from_ns) = (None, 0);
        for run in &outcome.runs {
            // (Whoever goes on after a sleep, with nobody in between, needs no switch.)
            let wanted_ns = if last == Some(run.job) { 0 } else { 5_000 };
            prop_assert!(run.from_ns - from_ns >= wanted_ns, "{run:?} after {last:?} until {from_ns}");
            (last, from_ns) = (Some(run.job), run.to_ns);
        }
        times(&trace, &outcome);
    }
}

#[test]
fn by_hand_one_core_srpt() {
    // 10 at 0, pushed aside at 2 by 3, and at 6 by 1; back at 5 and at 7; done at 14.
    let trace = [job(0, 0, 10), job(2, 0, 3), job(6, 0, 1)];
    let outcome = run(1, &trace, &mut OfflineSrpt::new(&trace));
    assert_eq!(outcome.finish_ns, [14, 5, 7]);
    assert_eq!(outcome.switches, 5);
    let spans: Vec<_> = outcome.runs.iter().map(|run| (run.job, run.from_ns, run.to_ns)).collect();
    assert_eq!(spans, [(0, 0, 2), (1, 2, 5), (0, 5, 6), (2, 6, 7), (0, 7, 14)]);
}

#[test]
fn bad_traces_are_refused_with_the_reason() {
    let what = |trace: &[Job]| check(trace).map_err(|bad| bad.to_string());
    let bursts = |bursts_ns: &[u64]| Job { bursts_ns: bursts_ns.to_vec(), ..job(0, 0, 1) };
    assert_eq!(what(&[]), Ok(()));
    let order = what(&[job(5, 0, 1), job(4, 0, 1)]);
    assert_eq!(order, Err("job 1 of the trace arrives before the one ahead of it".into()));
    assert!(what(&[bursts(&[])]).is_err());
    assert!(what(&[bursts(&[1, 2])]).unwrap_err().contains("odd"));
    assert!(what(&[bursts(&[1, 0, 1])]).unwrap_err().contains("empty"));
    assert!(what(&[bursts(&[u64::MAX])]).is_err());
    assert!(what(&[job(TIME_MAX_NS, 0, 1)]).is_err());
}

/// A policy that asks for ticks in the past, and says nothing when it should: time goes on, and all jobs end.
struct Rude;

impl Policy for Rude {
    fn on(&mut self, _now_ns: u64, event: Event, decisions: &mut Vec<Decision>) {
        if let Event::Tick = event {
            decisions.push(Decision::fair(spry_sched::TaskId(77)));
        }
    }

    fn next_tick_ns(&self) -> Option<u64> {
        Some(0)
    }
}

#[test]
fn a_rude_policy_stops_nothing() {
    let trace = [job(0, 0, 10), job(2, 0, 3)];
    let outcome = run(1, &trace, &mut Rude);
    assert_eq!(outcome.finish_ns.iter().max(), Some(&13));
}
