//! Several servers side by side: the same load on each, in rounds.
//!
//! In a round every server has its turn, back to back, and every other round goes in reverse, so that a drift of the
//! machine hits all alike. A case's number is the median of the rounds; the spread beside it is that of the rounds'
//! own ratios.

use std::time::Duration;

use nix::unistd::Pid;

use super::{SuiteError, process_error};
use crate::load::{self, Failures, Outcome, Plan, Target, Until};
use crate::process;
use crate::report::{Bar, Row, median};
use crate::stop::Stop;

/// Which CPUs client and servers may use; the same for the floor and for spry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// The kernel decides.
    Free,
    /// The client on the first CPU, the servers on all others.
    Apart,
    /// All on the first CPU.
    Together,
}

impl Place {
    /// `cpus` are those of this benchmark from before it was restricted itself.
    pub(super) fn apply(self, cpus: &[usize], subjects: &[Subject]) -> std::io::Result<()> {
        let Some((client, others)) = cpus.split_first().filter(|_| self != Self::Free) else {
            return Ok(());
        };
        let servers = if self == Self::Together || others.is_empty() { &cpus[..1] } else { others };
        for subject in subjects {
            process::restrict(&process::tree(subject.root)?, servers)?;
        }
        process::restrict_this_thread(*client)
    }
}

/// A server that takes part in a case.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) label: String,
    pub(super) target: Target,
    pub(super) root: Pid,
    /// What the others are compared with.
    pub(super) floor: bool,
}

/// The numbers of one run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers([f64; METRICS.len()]);

/// Name, unit, whether less is better, whether it is shown in the table (all are in the JSON).
pub(super) const METRICS: [(&str, &str, bool, bool); 8] = [
    ("p50", "us", true, true),
    ("p90", "us", true, false),
    ("p99", "us", true, true),
    ("p99.9", "us", true, false),
    ("max", "us", true, false),
    ("requests", "1/s", false, true),
    ("server cpu", "us/request", true, true),
    ("client cpu", "us/request", true, false),
];
/// Where in [`METRICS`] the median is.
pub(super) const P50: usize = 0;
/// Where the requests per second are.
pub(super) const REQUESTS: usize = 5;
/// Where the server's CPU is.
pub(super) const SERVER_CPU: usize = 6;

impl Numbers {
    fn of(outcome: &Outcome, server_cpu: Duration) -> Self {
        Self([
            outcome.latency_us(0.5),
            outcome.latency_us(0.9),
            outcome.latency_us(0.99),
            outcome.latency_us(0.999),
            outcome.latency_us(1.0),
            outcome.per_second(),
            server_cpu.as_secs_f64() * 1e6 / outcome.done.max(1) as f64,
            outcome.client_cpu_us(),
        ])
    }
}

/// One subject's runs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    numbers: Vec<Numbers>,
    failures: Failures,
    /// See [`Outcome::backlog_max`].
    pub(super) backlog_max: usize,
}

impl Runs {
    /// Takes in the runs of further rounds.
    pub(super) fn add(&mut self, more: Self) {
        self.numbers.extend(more.numbers);
        self.failures.merge(&more.failures);
        self.backlog_max = self.backlog_max.max(more.backlog_max);
    }

    /// One metric, round by round.
    pub(super) fn values(&self, metric: usize) -> impl Iterator<Item = f64> {
        self.numbers.iter().map(move |numbers| numbers.0[metric])
    }

    fn median(&self, metric: usize) -> f64 {
        median(&self.values(metric).collect::<Vec<_>>())
    }
}

/// In a round every subject has its turn, back to back; every other round goes in reverse.
pub(super) fn rounds(
    subjects: &[Subject],
    plan: &Plan,
    rounds: usize,
    stop: &Stop,
) -> Result<Vec<Runs>, SuiteError> {
    let mut results: Vec<Runs> = subjects.iter().map(|_| Runs::default()).collect();
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    for _ in 0..rounds.max(1) {
        for &index in &order {
            let (numbers, outcome) = measure(&subjects[index], plan, stop)?;
            results[index].numbers.push(numbers);
            results[index].failures.merge(&outcome.failures);
            results[index].backlog_max = results[index].backlog_max.max(outcome.backlog_max);
        }
        order.reverse();
    }
    Ok(results)
}

fn measure(subject: &Subject, plan: &Plan, stop: &Stop) -> Result<(Numbers, Outcome), SuiteError> {
    // A tenth of the time first, unmeasured: caches, connections' buffers, scaling.
    if let Until::Elapsed(time) = plan.until {
        load::run(&subject.target, &Plan { until: Until::Elapsed(time / 10), ..*plan }, stop)?;
    }
    let before = process::tree_cpu(subject.root).map_err(process_error("a server"))?;
    let outcome = load::run(&subject.target, plan, stop)?;
    let after = process::tree_cpu(subject.root).map_err(process_error("a server"))?;
    Ok((Numbers::of(&outcome, after.saturating_sub(before)), outcome))
}

/// The best floor for a metric, and its median.
pub(super) fn best_floor(subjects: &[Subject], results: &[Runs], metric: usize) -> Option<(usize, f64)> {
    let less_is_better = METRICS[metric].2;
    let floors = subjects.iter().enumerate().filter(|(_, subject)| subject.floor);
    floors.map(|(index, _)| (index, results[index].median(metric))).min_by(|a, b| {
        let order = a.1.total_cmp(&b.1);
        if less_is_better { order } else { order.reverse() }
    })
}

/// The rows of a case: every metric of every subject, beside the best floor's.
pub(super) fn report(
    bench: &'static str,
    subjects: &[Subject],
    results: &[Runs],
    case: &str,
    connections: usize,
    bar: &dyn Fn(&str, usize) -> Option<Bar>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for (subject, runs) in subjects.iter().zip(results) {
        let name = format!("{} {case} c{connections}", subject.label);
        for (metric, &(metric_name, unit, _, shown)) in METRICS.iter().enumerate() {
            let row = Row::new(bench, name.as_str(), metric_name, runs.median(metric), unit);
            let values = runs.values(metric);
            let row = match best_floor(subjects, results, metric) {
                Some((floor, baseline)) if !subject.floor => {
                    let floors = results[floor].values(metric);
                    row.against(baseline).spread(values.zip(floors).map(|(value, floor)| value / floor))
                }
                _ => row.spread(values),
            };
            let bar = bar(&subject.label, metric);
            rows.push(bar.into_iter().fold(row, Row::must).shown(shown || bar.is_some()));
        }
        rows.push(failures(bench, &name, &runs.failures));
    }
    rows
}

fn failures(bench: &'static str, case: &str, failures: &Failures) -> Row {
    if failures.total() > 0 {
        eprintln!("{case}: failed requests: {failures}");
    }
    Row::new(bench, case, "failures", failures.total() as f64, "requests").must(Bar::AtMost(0.0)).shown(false)
}
