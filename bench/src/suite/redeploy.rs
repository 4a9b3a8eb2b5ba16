//! `redeploy`: a function is deployed again and again while it is called; no call fails.

use std::time::{Duration, Instant};

use super::{SuiteError, TIMEOUT, deploy_and_warm, process_error};
use crate::load::{self, LoadError, Pace, Plan, Until};
use crate::node::{Function, Node, Programs};
use crate::process;
use crate::report::{Bar, Row};
use crate::stop::Stop;

const BENCH: &str = "redeploy";

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Seconds per function.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Connections.
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
}

/// Runs it, for the native and the Python nop.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start(programs, stop)?;
    let mut rows = Vec::new();
    for function in [Function::NativeNop, Function::PythonNop] {
        let target = deploy_and_warm(&node, function, stop)?;
        let processes = || process::tree(node.pid()).map(|tree| tree.len()).map_err(process_error("spryd"));
        let before = processes()?;
        let time = Duration::from_secs_f64(options.seconds);
        let plan = Plan {
            connections: options.connections,
            pace: Pace::Closed,
            until: Until::Elapsed(time),
            timeout: TIMEOUT,
        };
        let mut deploys = 0u32;
        let mut longest = Duration::ZERO;
        let outcome = std::thread::scope(|scope| {
            let load = scope.spawn(|| load::run(&target, &plan, stop));
            let begin = Instant::now();
            while begin.elapsed() < time && !stop.is_set() && !load.is_finished() {
                let deploy = Instant::now();
                node.deploy(function, function.name())?;
                longest = longest.max(deploy.elapsed());
                deploys += 1;
            }
            let outcome = load.join().expect("the load generator does not panic");
            outcome.map_err(SuiteError::from)
        })?;
        if stop.is_set() {
            return Err(LoadError::Interrupted.into());
        }
        let name = function.name();
        eprintln!("{name}: {deploys} deploys, {} calls, failures: {}", outcome.done, outcome.failures);
        eprintln!("{name}: processes of spryd {before} -> {}", processes()?);
        let failures = outcome.failures.total() as f64;
        rows.push(Row::new(BENCH, name, "deploys", f64::from(deploys), "").must(Bar::AtLeast(1.0)));
        rows.push(Row::new(BENCH, name, "longest deploy", longest.as_secs_f64() * 1e3, "ms"));
        rows.push(Row::new(BENCH, name, "requests", outcome.done as f64, ""));
        rows.push(Row::new(BENCH, name, "failures", failures, "requests").must(Bar::AtMost(0.0)));
        rows.push(Row::new(BENCH, name, "p50", outcome.latency_us(0.5), "us"));
        rows.push(Row::new(BENCH, name, "p99", outcome.latency_us(0.99), "us"));
        rows.push(Row::new(BENCH, name, "max", outcome.latency_us(1.0) / 1e3, "ms"));
    }
    Ok(rows)
}
