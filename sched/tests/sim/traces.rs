//! Random traces, and what can be read from a record of who ran when.

use proptest::prelude::*;
use spry_sched::FunctionId;
use spry_sched::policy::{Alps, AlpsConfig, Eevdf, Policy, Sfs, SfsConfig, Srpt, SrptPlus, SrptPlusConfig};
use spry_sched::predict::Predictor;
use spry_sched::sim::{Fifo, Job, Machine, OfflineSrpt, Outcome, RoundRobin};

pub(crate) const MS: u64 = 1_000_000;

/// A job of one burst.
pub(crate) fn job(arrival_ns: u64, function: u32, cpu_ns: u64) -> Job {
    Job { arrival_ns, function: FunctionId(function), size_bytes: None, bursts_ns: vec![cpu_ns] }
}

/// Up to `jobs` jobs of four functions, some of which sleep; odd nanoseconds and equal arrivals included.
pub(crate) fn any_trace(jobs: usize) -> impl Strategy<Value = Vec<Job>> {
    let gap_ns = prop_oneof![Just(0), 1u64..30 * MS, (0u64..8).prop_map(|ms| ms * MS)];
    let burst_ns = prop_oneof![1u64..60 * MS, (1u64..30).prop_map(|ms| ms * MS), Just(200 * MS), Just(1)];
    let bursts = prop::collection::vec(burst_ns, 1..=2)
        .prop_flat_map(|bursts| (Just(bursts), prop::collection::vec(1u64..80 * MS, 0..4)))
        .prop_map(|(mut bursts, more)| {
            bursts.extend(more);
            // An odd number.
            bursts.truncate((bursts.len() - 1) / 2 * 2 + 1);
            bursts
        });
    let job = (gap_ns, 0u32..4, bursts, prop::option::of(0u64..1 << 22));
    prop::collection::vec(job, 1..jobs).prop_map(|jobs| {
        let mut now_ns = 0;
        let place = |(gap_ns, function, bursts_ns, size_bytes)| {
            now_ns += gap_ns;
            Job { arrival_ns: now_ns, function: FunctionId(function), size_bytes, bursts_ns }
        };
        jobs.into_iter().map(place).collect()
    })
}

/// Every policy there is, by name.
pub(crate) fn every_policy(cores: usize, trace: &[Job]) -> Vec<(&'static str, Box<dyn Policy>)> {
    let cores = cores as u32;
    let sfs = SfsConfig { window: 5, ..SfsConfig::new(cores) };
    let alps = AlpsConfig { period_ns: 50 * MS, ..AlpsConfig::new(cores) };
    vec![
        ("fifo", Box::<Fifo>::default()),
        ("rr", Box::new(RoundRobin::new(4 * MS))),
        ("eevdf", Box::new(Eevdf)),
        ("sfs", Box::new(Sfs::new(sfs))),
        ("alps", Box::new(Alps::new(alps))),
        ("srpt", Box::new(Srpt::new(Predictor::default()))),
        ("srpt+", Box::new(SrptPlus::new(SrptPlusConfig::default(), Predictor::default()))),
        ("offline", Box::new(OfflineSrpt::new(trace))),
    ]
}

/// Runs with a record.
pub(crate) fn run(cores: usize, trace: &[Job], policy: &mut dyn Policy) -> Outcome {
    Machine { record: true, ..Machine::new(cores) }.run(trace, policy).expect("a good trace")
}

/// From when to when.
pub(crate) type Span = (u64, u64);

/// When a job ran, and when it could have run and did not.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) ran: Vec<Span>,
    pub(crate) waited: Vec<Span>,
}

impl Times {
    /// How long it ran before a moment.
    pub(crate) fn ran_before(&self, moment_ns: u64) -> u64 {
        self.ran.iter().map(|&(from, to)| to.min(moment_ns).saturating_sub(from)).sum()
    }
}

/// Follows each job through its bursts; panics where the record contradicts the trace.
pub(crate) fn times(trace: &[Job], outcome: &Outcome) -> Vec<Times> {
    let mut by_job: Vec<Vec<Span>> = vec![Vec::new(); trace.len()];
    for run in &outcome.runs {
        by_job[run.job as usize].push((run.from_ns, run.to_ns));
    }
    let follow = |(place, mut ran): (usize, Vec<Span>)| {
        ran.sort_unstable();
        let job = &trace[place];
        let mut waited = Vec::new();
        let mut runnable_from = job.arrival_ns;
        let mut bursts = job.bursts_ns.iter();
        let mut left = *bursts.next().expect("a burst");
        for &(from, to) in &ran {
            assert!(from >= runnable_from, "job {place} runs before it may: {from} < {runnable_from}");
            if from > runnable_from {
                waited.push((runnable_from, from));
            }
            assert!(to - from <= left, "job {place} runs through the end of a burst");
            left -= to - from;
            runnable_from = to;
            if left == 0
                && let Some(io) = bursts.next()
            {
                runnable_from += io;
                left = *bursts.next().expect("I/O is followed by CPU");
            }
        }
        assert_eq!((left, bursts.next()), (0, None), "job {place} has not run to its end");
        assert_eq!(ran.last().expect("a run").1, outcome.finish_ns[place], "job {place}");
        Times { ran, waited }
    };
    by_job.into_iter().enumerate().map(follow).collect()
}
