//! Turnarounds and slowdowns by class, beside those of `eevdf` on the same trace.
//!
//! Turnaround is from arrival to end. Slowdown is turnaround over what the invocation would take alone (CPU and I/O).

use spry_sched::sim::{Job, Outcome};

use super::Ran;
use crate::report::Row;

/// One class of invocations under one policy; milliseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Class {
    /// How many.
    pub count: usize,
    /// Mean turnaround.
    pub mean_ms: f64,
    /// Median turnaround.
    pub p50_ms: f64,
    /// The 99th percentile of turnarounds.
    pub p99_ms: f64,
    /// Mean slowdown.
    pub slowdown: f64,
}

/// All classes under one policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Invocations below the limit.
    pub short: Class,
    /// The others.
    pub long: Class,
    /// Both.
    pub all: Class,
    /// Context switches per invocation.
    pub switches: f64,
}

impl Tally {
    /// Counts.
    pub fn of(trace: &[Job], outcome: &Outcome, short_below_ns: u64) -> Self {
        let jobs = || trace.iter().zip(&outcome.finish_ns);
        Self {
            short: Class::of(jobs().filter(|(job, _)| job.cpu_ns() < short_below_ns)),
            long: Class::of(jobs().filter(|(job, _)| job.cpu_ns() >= short_below_ns)),
            all: Class::of(jobs()),
            switches: outcome.switches as f64 / trace.len().max(1) as f64,
        }
    }

    fn classes(&self) -> [(&'static str, &Class); 3] {
        [("short", &self.short), ("long", &self.long), ("all", &self.all)]
    }
}

impl Class {
    fn of<'a>(jobs: impl Iterator<Item = (&'a Job, &'a u64)>) -> Self {
        let mut slowdowns = 0.0;
        let mut turnarounds: Vec<u64> = jobs
            .map(|(job, finish_ns)| {
                let took_ns = finish_ns - job.arrival_ns;
                slowdowns += took_ns as f64 / (job.cpu_ns() + job.io_ns()) as f64;
                took_ns
            })
            .collect();
        if turnarounds.is_empty() {
            return Self::default();
        }
        turnarounds.sort_unstable();
        let count = turnarounds.len();
        // The smallest value that so many are not above.
        let quantile =
            |q: f64| turnarounds[((count as f64 * q).ceil() as usize).clamp(1, count) - 1] as f64 / 1e6;
        Self {
            count,
            mean_ms: turnarounds.iter().map(|&ns| ns as f64).sum::<f64>() / count as f64 / 1e6,
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            slowdown: slowdowns / count as f64,
        }
    }

    /// Metrics by their names in a table, and in JSON.
    fn metrics(&self) -> [(f64, &'static str); 4] {
        [(self.mean_ms, "ms"), (self.p50_ms, "ms"), (self.p99_ms, "ms"), (self.slowdown, "x")]
    }
}

/// As in JSON: class, then metric.
const METRICS: [[&str; 4]; 3] = [
    ["short_mean", "short_p50", "short_p99", "short_slowdown"],
    ["long_mean", "long_p50", "long_p99", "long_slowdown"],
    ["all_mean", "all_p50", "all_p99", "all_slowdown"],
];

/// A line a policy and class; behind each number its ratio to the baseline's.
pub fn table(ran: &[Ran], baseline: &Tally) -> String {
    let mut text = format!(
        "  {:<8} {:<6} {:>8} {:>18} {:>18} {:>18} {:>16} {:>9}\n",
        "policy", "class", "count", "mean ms", "p50 ms", "p99 ms", "slowdown", "switches"
    );
    for (class, (label, base)) in baseline.classes().into_iter().enumerate() {
        for Ran { name, tally, .. } in ran {
            let this = tally.classes()[class].1;
            if this.count == 0 {
                continue;
            }
            let mut cells =
                this.metrics().into_iter().zip(base.metrics()).map(|((value, _), (base, _))| {
                    format!("{value:.1} {:>6}", format!("{:.2}x", value / base))
                });
            let mut cell = || cells.next().unwrap_or_default();
            let (mean, p50, p99, slowdown) = (cell(), cell(), cell(), cell());
            text += &format!(
                "  {:<8} {label:<6} {:>8} {mean:>18} {p50:>18} {p99:>18} {slowdown:>16} {:>9.2}\n",
                name.text(),
                this.count,
                tally.switches
            );
        }
    }
    text
}

/// The same for `--json`.
pub fn rows(bench: &'static str, trace: &str, ran: &[Ran], baseline: &Tally) -> Vec<Row> {
    let mut rows = Vec::new();
    for Ran { name, tally, .. } in ran {
        let case = format!("{trace} {}", name.text());
        for (class, (_, this)) in tally.classes().into_iter().enumerate().filter(|(_, (_, c))| c.count > 0) {
            let base = baseline.classes()[class].1;
            for (metric, ((value, unit), (base, _))) in
                METRICS[class].into_iter().zip(this.metrics().into_iter().zip(base.metrics()))
            {
                rows.push(Row::new(bench, case.as_str(), metric, value, unit).against(base));
            }
        }
        rows.push(Row::new(bench, case, "switches", tally.switches, "1/call").against(baseline.switches));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::Name;
    use super::*;
    use spry_sched::FunctionId;

    fn tally() -> Tally {
        let job = |arrival_ms: u64, bursts_ms: &[u64]| Job {
            arrival_ns: arrival_ms * 1_000_000,
            function: FunctionId(0),
            size_bytes: None,
            bursts_ns: bursts_ms.iter().map(|ms| ms * 1_000_000).collect(),
        };
        let trace = [job(0, &[1]), job(1, &[2, 6, 2]), job(2, &[100])];
        let finish_ns = [2, 21, 302].map(|ms: u64| ms * 1_000_000).to_vec();
        let outcome = Outcome { finish_ns, switches: 6, ..Outcome::default() };
        Tally::of(&trace, &outcome, 50_000_000)
    }

    #[test]
    fn numbers_by_hand() {
        let tally = tally();
        // Turnarounds of 2, 20 and 300 ms; alone they would take 1, 10 and 100.
        let short = Class { count: 2, mean_ms: 11.0, p50_ms: 2.0, p99_ms: 20.0, slowdown: 2.0 };
        assert_eq!(tally.short, short);
        assert_eq!(
            tally.long,
            Class { count: 1, mean_ms: 300.0, p50_ms: 300.0, p99_ms: 300.0, slowdown: 3.0 }
        );
        assert_eq!((tally.all.count, tally.all.p50_ms, tally.switches), (3, 20.0, 2.0));
    }

    #[test]
    fn rows_and_table_have_ratios_to_the_baseline() {
        let mut base = tally();
        base.short.mean_ms = 22.0;
        let ran = [Ran { name: Name::Srpt, outcome: Outcome::default(), tally: tally() }];
        let rows = rows("sim", "t", &ran, &base);
        assert_eq!(rows.len(), 13);
        let first = (rows[0].case.as_str(), rows[0].metric, rows[0].value, rows[0].ratio);
        assert_eq!(first, ("t srpt", "short_mean", 11.0, Some(0.5)));
        assert!(table(&ran, &base).contains("11.0  0.50x"), "{}", table(&ran, &base));
    }
}
