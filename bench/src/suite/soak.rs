//! `soak`: many requests in a row; no error, and afterwards nothing has grown.

use std::time::{Duration, Instant};

use super::{SuiteError, TIMEOUT, deploy_and_warm, pause, process_error};
use crate::load::{self, Pace, Plan, Until};
use crate::node::{Function, Node, Programs};
use crate::process::{self, Holdings};
use crate::report::{Bar, Row};
use crate::stop::Stop;

const BENCH: &str = "soak";

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Requests per function.
    #[arg(long, default_value_t = 100_000)]
    pub requests: u64,
    /// Connections.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
}

/// Runs it, for the native and the Python nop and the native echo.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start(programs, stop)?;
    let mut rows = Vec::new();
    for function in [Function::NativeNop, Function::NativeEcho, Function::PythonNop] {
        let target = deploy_and_warm(&node, function, stop)?;
        let plan = |requests| Plan {
            connections: options.connections,
            pace: Pace::Closed,
            until: Until::Requests(requests),
            timeout: TIMEOUT,
        };
        // The same load first, so that "before" has the instances that the load calls for.
        load::run(&target, &plan(options.requests.div_ceil(10)), stop)?;
        pause(Duration::from_secs(1), stop)?;
        let before = process::holdings(node.pid()).map_err(process_error("spryd"))?;
        let outcome = load::run(&target, &plan(options.requests), stop)?;
        let after = settled(&node, &before, stop)?;
        let name = function.name();
        eprintln!("{name}: {} done, failures: {}, {before:?} -> {after:?}", outcome.done, outcome.failures);
        rows.push(Row::new(BENCH, name, "requests", outcome.done as f64, ""));
        rows.push(Row::new(BENCH, name, "requests per second", outcome.per_second(), "1/s"));
        rows.push(Row::new(BENCH, name, "p99", outcome.latency_us(0.99), "us"));
        let failures = outcome.failures.total() as f64;
        rows.push(Row::new(BENCH, name, "failures", failures, "requests").must(Bar::AtMost(0.0)));
        for (metric, before, after) in [
            ("fds", before.fds, after.fds),
            ("segments held", before.memfds, after.memfds),
            ("segments mapped", before.memfd_maps, after.memfd_maps),
            ("processes", before.processes, after.processes),
        ] {
            let row = Row::new(BENCH, name, metric, after as f64, "").against(before as f64);
            rows.push(row.must(Bar::AtMost(before as f64)));
        }
    }
    Ok(rows)
}

/// What spryd holds once it has noticed that the clients are gone; at the latest after ten seconds.
fn settled(node: &Node, before: &Holdings, stop: &Stop) -> Result<Holdings, SuiteError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = process::holdings(node.pid()).map_err(process_error("spryd"))?;
        let grown = now.fds > before.fds
            || now.memfds > before.memfds
            || now.memfd_maps > before.memfd_maps
            || now.processes > before.processes;
        if !grown || Instant::now() > deadline {
            return Ok(now);
        }
        pause(Duration::from_millis(50), stop)?;
    }
}
