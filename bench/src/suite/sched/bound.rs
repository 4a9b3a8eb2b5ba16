//! srpt+'s promise that nobody starves (`sched/src/policy/srpt_plus.rs`), held against a run on a node.
//!
//! A node doesn't tell when an invocation was due and how much the others still needed then. So the bound is taken as it would be
//! for an invocation whose size was known from the start, and whoever hadn't ended when it came is counted whole.

use spry_sched::policy::SrptPlusConfig;
use spry_sched::sim::{Job, Outcome};

/// The largest part of its bound that an invocation took; above 1: the promise was broken.
pub(super) fn worst_part(config: SrptPlusConfig, trace: &[Job], outcome: &Outcome) -> f64 {
    let part = |(place, job): (usize, &Job)| {
        let took_ns = outcome.finish_ns[place].saturating_sub(job.arrival_ns);
        took_ns as f64 / bound_ns(config, trace, outcome, place) as f64
    };
    trace.iter().enumerate().map(part).fold(0.0, f64::max)
}

fn bound_ns(config: SrptPlusConfig, trace: &[Job], outcome: &Outcome, place: usize) -> u64 {
    let job = &trace[place];
    let patience_ns = (u64::from(config.stretch) * job.cpu_ns()).min(config.patience_ns);
    let due_ns = job.arrival_ns + patience_ns;
    let others = trace.iter().zip(&outcome.finish_ns).enumerate().filter(|(other, _)| *other != place);
    let counts = others.filter(|(_, (other, finish_ns))| {
        other.arrival_ns <= due_ns && (other.arrival_ns > job.arrival_ns || **finish_ns > job.arrival_ns)
    });
    let work_ns = counts.map(|(_, (other, _))| other.cpu_ns()).sum::<u64>() + job.cpu_ns();
    patience_ns + job.io_ns() + work_ns * 100 / u64::from(config.share_percent) + 2 * config.period_ns()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spry_sched::FunctionId;

    #[test]
    fn the_bound_is_the_due_date_and_the_work_before_it_at_the_share() {
        let job = |arrival_ns, cpu_ns| Job {
            arrival_ns,
            function: FunctionId(0),
            size_bytes: None,
            bursts_ns: vec![cpu_ns],
        };
        // One that has ended, the one in question, one that is there, one that comes in time, one that comes too late.
        let trace = [job(0, 7), job(0, 5), job(10, 10), job(210, 30), job(211, 100)];
        let outcome = Outcome { finish_ns: vec![9, 20, 500, 600, 700], ..Outcome::default() };
        let config =
            SrptPlusConfig { stretch: 20, patience_ns: 1_000_000, share_percent: 10, quantum_ns: 20 };
        assert_eq!(bound_ns(config, &trace, &outcome, 2), 200 + (5 + 30 + 10) * 10 + 2 * 200);
        assert!(worst_part(config, &trace, &outcome) < 1.0);
    }
}
