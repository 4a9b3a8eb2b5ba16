//! Offline SRPT has the least mean turnaround on one core: against every schedule there is, on tiny traces.

use std::collections::HashMap;

use super::traces::*;
use proptest::prelude::*;
use spry_sched::policy::{Srpt, SrptPlus, SrptPlusConfig};
use spry_sched::predict::Predictor;
use spry_sched::sim::{Job, OfflineSrpt};

/// The least sum of ending times, trying each job in each unit of time.
fn least_sum(
    arrivals: &[u64],
    now: u64,
    rest: &mut Vec<u64>,
    known: &mut HashMap<(u64, Vec<u64>), u64>,
) -> u64 {
    if rest.iter().all(|&rest| rest == 0) {
        return 0;
    }
    if let Some(&sum) = known.get(&(now, rest.clone())) {
        return sum;
    }
    let mut best = u64::MAX;
    for place in 0..rest.len() {
        if rest[place] > 0 && arrivals[place] <= now {
            rest[place] -= 1;
            let ends = if rest[place] == 0 { now + 1 } else { 0 };
            best = best.min(ends + least_sum(arrivals, now + 1, rest, known));
            rest[place] += 1;
        }
    }
    if best == u64::MAX {
        best = least_sum(arrivals, now + 1, rest, known);
    }
    known.insert((now, rest.clone()), best);
    best
}

fn mean(trace: &[Job], finish_ns: &[u64]) -> f64 {
    let turnarounds = trace.iter().zip(finish_ns).map(|(job, end)| (end - job.arrival_ns) as f64);
    turnarounds.sum::<f64>() / trace.len() as f64
}

proptest! {
    #[test]
    fn offline_srpt_is_optimal_on_one_core(mut jobs in prop::collection::vec((0u64..8, 1u64..5), 1..6)) {
        jobs.sort_unstable();
        let trace: Vec<Job> = jobs.iter().map(|&(arrival, cpu)| job(arrival, 0, cpu)).collect();
        let arrivals: Vec<u64> = jobs.iter().map(|job| job.0).collect();
        let mut rest = jobs.iter().map(|job| job.1).collect();
        let least = least_sum(&arrivals, 0, &mut rest, &mut HashMap::new());
        let outcome = run(1, &trace, &mut OfflineSrpt::new(&trace));
        prop_assert_eq!(outcome.finish_ns.iter().sum::<u64>(), least);
    }

    /// And so no policy does better.
    #[test]
    fn no_policy_beats_it_on_one_core(trace in any_trace(20)) {
        let trace: Vec<Job> =
            trace.into_iter().map(|job| Job { bursts_ns: vec![job.cpu_ns()], ..job }).collect();
        let best = mean(&trace, &run(1, &trace, &mut OfflineSrpt::new(&trace)).finish_ns);
        for (name, mut policy) in every_policy(1, &trace) {
            let got = mean(&trace, &run(1, &trace, policy.as_mut()).finish_ns);
            prop_assert!(got >= best - 1e-6, "{name}: {got} < {best}");
        }
    }
}

/// When a function always takes the same, prediction comes within a few per cent of knowing.
#[test]
fn with_regular_functions_prediction_is_as_good_as_knowing() {
    let job_of = |index: u64| match index % 5 {
        0 => job(index * 97 * MS, 1, 400 * MS),
        short => job(index * 97 * MS + short * 11 * MS, 0, 5 * MS),
    };
    let mut trace: Vec<Job> = (0..2000).map(job_of).collect();
    trace.sort_by_key(|job| job.arrival_ns);
    let mut predictor = Predictor::default();
    predictor.observe(trace[0].function, None, 400 * MS);
    predictor.observe(trace[1].function, None, 5 * MS);
    let best = mean(&trace, &run(1, &trace, &mut OfflineSrpt::new(&trace)).finish_ns);
    let srpt = mean(&trace, &run(1, &trace, &mut Srpt::new(predictor.clone())).finish_ns);
    let config = SrptPlusConfig::default();
    let plus = mean(&trace, &run(1, &trace, &mut SrptPlus::new(config, predictor)).finish_ns);
    assert!(srpt <= best * 1.02 && plus <= best * 1.05, "{best} {srpt} {plus}");
}
