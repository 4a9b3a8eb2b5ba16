//! The fair class shares evenly: EEVDF's bound on lag.

use super::traces::*;
use proptest::prelude::*;
use spry_sched::policy::Eevdf;
use spry_sched::sim::{Job, Machine};

const SLICE: u64 = 3 * MS;

/// What each job has got and what ideal sharing would have given it, at each moment that somebody stops running.
fn lags(trace: &[Job], cores: usize) -> Vec<(u64, usize, f64)> {
    let outcome = run(cores, trace, &mut Eevdf);
    let times = times(trace, &outcome);
    let first_end = *outcome.finish_ns.iter().min().expect("a job");
    let mut moments: Vec<u64> = outcome.runs.iter().map(|run| run.to_ns).collect();
    moments.extend(trace.iter().map(|job| job.arrival_ns));
    moments.retain(|&moment| moment <= first_end);
    moments.sort_unstable();
    let mut ideal = vec![0.0; trace.len()];
    let mut lags = Vec::new();
    let mut last = 0;
    for moment in moments {
        let present = trace.iter().filter(|job| job.arrival_ns <= last).count();
        let rate = if present <= cores { 1.0 } else { cores as f64 / present as f64 };
        for (place, job) in trace.iter().enumerate() {
            if job.arrival_ns <= last {
                ideal[place] += (moment - last) as f64 * rate;
            }
            lags.push((moment, place, ideal[place] - times[place].ran_before(moment) as f64));
        }
        last = moment;
    }
    lags
}

proptest! {
    /// Theorem 1 of the EEVDF paper: on one core nobody is ever more than a slice away from the even share. Jobs come at
    /// any time; until the first ends.
    #[test]
    fn nobody_is_more_than_a_slice_from_the_even_share(
        gaps in prop::collection::vec(0u64..20 * MS, 2..9),
    ) {
        let mut now = 0;
        let trace: Vec<Job> = gaps
            .iter()
            .map(|gap| {
                now += gap;
                job(now, 0, 400 * MS)
            })
            .collect();
        for (moment, place, lag) in lags(&trace, 1) {
            prop_assert!(lag.abs() <= SLICE as f64 + 10.0, "job {place} at {moment}: {lag}");
        }
    }
}

#[test]
fn on_two_cores_three_share_evenly() {
    let trace = [job(0, 0, 600 * MS), job(0, 0, 600 * MS), job(0, 0, 600 * MS)];
    for (moment, place, lag) in lags(&trace, 2) {
        assert!(lag.abs() <= 2.0 * SLICE as f64, "job {place} at {moment}: {lag}");
    }
}

#[test]
fn who_sleeps_is_neither_paid_nor_fined() {
    // One that works for 1 ms and sleeps for 9, beside two that never sleep: it needs less than its share, and gets
    // it within a slice of each wake-up.
    let sleeper = Job {
        bursts_ns: (0..99).map(|burst| if burst % 2 == 0 { MS } else { 9 * MS }).collect(),
        ..job(0, 0, 1)
    };
    let trace = [sleeper, job(0, 1, 2_000 * MS), job(0, 1, 2_000 * MS)];
    let outcome = run(1, &trace, &mut Eevdf);
    let waits = times(&trace, &outcome)[0].waited.iter().map(|(from, to)| to - from).max();
    assert!(waits.is_some_and(|wait| wait <= SLICE), "{waits:?}");
}

#[test]
fn a_shorter_slice_means_more_switches() {
    let trace = [job(0, 0, 300 * MS), job(0, 0, 300 * MS)];
    let switches = |fair_slice_ns| {
        Machine { fair_slice_ns, ..Machine::new(1) }.run(&trace, &mut Eevdf).unwrap().switches
    };
    assert_eq!([switches(3 * MS), switches(30 * MS)], [200, 20]);
}
