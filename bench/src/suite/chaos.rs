//! `chaos`: `kill -9` of a random instance or zygote, ten times a second, under load. Only the requests in the
//! killed processes may fail, with 502; when the killing stops, everything works.
//!
//! A victim is always a living child of the spryd that this benchmark has started itself: a pidfd is opened
//! first, then the parent is looked at, then the signal goes to the pidfd, so that a reused number is never hit.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{SuiteError, TIMEOUT, deploy_and_warm, pause, process_error};
use crate::load::{self, Failure, Failures, LoadError, Pace, Plan, Until};
use crate::node::{Function, Node, Programs};
use crate::random::SplitMix64;
use crate::report::{Bar, Row};
use crate::stop::Stop;
use crate::{process, sys};

const BENCH: &str = "chaos";
const BETWEEN_KILLS: Duration = Duration::from_millis(100);

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Seconds of killing, per function.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Connections.
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Requests that must succeed when the killing has stopped.
    #[arg(long, default_value_t = 2_000)]
    pub after: u64,
    /// Seed of the choice of victims.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs it, for the native and the Python nop, and for a function that is at work when the kill comes.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start(programs, stop)?;
    let mut random = SplitMix64::new(options.seed);
    let mut rows = Vec::new();
    for function in [Function::NativeNop, Function::PythonNop, Function::PythonNap] {
        let target = deploy_and_warm(&node, function, stop)?;
        let plan =
            |until| Plan { connections: options.connections, pace: Pace::Closed, until, timeout: TIMEOUT };
        let time = Duration::from_secs_f64(options.seconds);
        let (kills, outcome) = std::thread::scope(|scope| {
            let load = scope.spawn(|| load::run(&target, &plan(Until::Elapsed(time)), stop));
            let kills = kill_for(time, node.pid(), &mut random, stop);
            let outcome = load.join().expect("the load generator does not panic");
            Ok::<_, SuiteError>((kills?, outcome?))
        })?;
        let recovery = Instant::now();
        let after = load::run(&target, &plan(Until::Requests(options.after)), stop)?;
        let recovery = recovery.elapsed();
        if stop.is_set() {
            return Err(LoadError::Interrupted.into());
        }
        let name = function.name();
        eprintln!("{name}: {kills} kills, {} done, failures: {}", outcome.done, outcome.failures);
        eprintln!("{name}: afterwards {} done, failures: {}", after.done, after.failures);
        rows.extend(report(name, kills, &outcome.failures, outcome.done));
        let failures = after.failures.total() as f64;
        rows.push(Row::new(BENCH, name, "failures afterwards", failures, "requests").must(Bar::AtMost(0.0)));
        rows.push(Row::new(BENCH, name, "time afterwards", recovery.as_secs_f64(), "s").shown(false));
        rows.push(Row::new(BENCH, name, "max", outcome.latency_us(1.0) / 1e3, "ms"));
    }
    Ok(rows)
}

fn report(name: &str, kills: u64, failures: &Failures, done: u64) -> [Row; 4] {
    let gateway_errors = failures.of(Failure::Status(502));
    let others = failures.total() - gateway_errors;
    [
        Row::new(BENCH, name, "kills", kills as f64, "processes").must(Bar::AtLeast(1.0)),
        Row::new(BENCH, name, "requests", done as f64, "").must(Bar::AtLeast(1.0)),
        // A process serves one request at a time, so it can't take more than one with it.
        Row::new(BENCH, name, "status 502", gateway_errors as f64, "requests")
            .must(Bar::AtMost(kills as f64)),
        Row::new(BENCH, name, "other failures", others as f64, "requests").must(Bar::AtMost(0.0)),
    ]
}

fn kill_for(time: Duration, spryd: Pid, random: &mut SplitMix64, stop: &Stop) -> Result<u64, SuiteError> {
    let end = Instant::now() + time;
    let mut kills = 0;
    while Instant::now() + BETWEEN_KILLS < end {
        pause(BETWEEN_KILLS, stop)?;
        let tree = process::tree(spryd).map_err(process_error("spryd"))?;
        let victims: Vec<Pid> = tree
            .iter()
            .filter(|process| process.parent == spryd && !process.zombie)
            .map(|process| process.pid)
            .collect();
        if !victims.is_empty() && kill_child(victims[random.below(victims.len())], spryd) {
            kills += 1;
        }
    }
    Ok(kills)
}

/// Kills `pid` if it is a living child of `parent`; whether it did.
fn kill_child(pid: Pid, parent: Pid) -> bool {
    let Ok(victim) = sys::pidfd_open(pid) else { return false };
    let is_child = process::process(pid).is_ok_and(|process| process.parent == parent && !process.zombie);
    is_child && sys::pidfd_send_signal(&victim, Signal::SIGKILL).is_ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_children_are_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        assert!(!kill_child(pid, Pid::from_raw(1)), "another's child");
        assert!(!kill_child(Pid::this(), Pid::this()), "not a child at all");
        assert!(child.try_wait().unwrap().is_none());
        assert!(kill_child(pid, Pid::this()));
        assert!(!child.wait().unwrap().success());
        assert!(!kill_child(pid, Pid::this()), "gone");
    }

    #[test]
    fn each_kill_excuses_one_502_and_nothing_else() {
        let mut failures = Failures::default();
        failures.add(Failure::Status(502));
        assert!(report("nop", 1, &failures, 9).iter().all(|row| row.met == Some(true)));
        failures.add(Failure::Status(502));
        assert_eq!(report("nop", 1, &failures, 9)[2].met, Some(false));
        failures.add(Failure::Closed);
        assert_eq!(
            report("nop", 3, &failures, 9).map(|row| row.met),
            [Some(true), Some(true), Some(true), Some(false)]
        );
        assert_eq!(report("nop", 0, &Failures::default(), 9)[0].met, Some(false));
    }
}
