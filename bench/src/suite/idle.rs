//! `idle`: what spryd costs while nobody calls: its CPU with many functions deployed, each called once.

use std::time::{Duration, Instant};

use super::{SuiteError, TIMEOUT, pause, process_error};
use crate::load::Target;
use crate::node::{Function, Node, NodeError, Programs};
use crate::report::{Bar, Row};
use crate::stop::Stop;
use crate::{http1, process};

const BENCH: &str = "idle";
/// After the last call, before the clock starts: what a call leaves to do is done by then.
const SETTLE: Duration = Duration::from_secs(2);

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Functions, native and Python in turn.
    #[arg(long, default_value_t = 20)]
    pub functions: usize,
    /// Seconds to watch.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
}

/// Runs it.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start(programs, stop)?;
    for index in 0..options.functions {
        let function = if index % 2 == 0 { Function::NativeNop } else { Function::PythonNop };
        let name = format!("idle-{index}");
        node.deploy(function, &name)?;
        let path = format!("/function/{name}");
        let request = Target::new(node.address, "GET", &path, b"", b"".as_slice().into()).request;
        let answer = http1::call(node.address, &request, TIMEOUT);
        let what = match answer {
            Ok((head, _)) if head.status == 200 => continue,
            Ok((head, body)) => format!("status {}: {}", head.status, String::from_utf8_lossy(&body)),
            Err(error) => error.to_string(),
        };
        return Err(NodeError::Warm { path, what }.into());
    }
    pause(SETTLE, stop)?;
    let spryd = || process::threads_cpu(node.pid()).map_err(process_error("spryd"));
    let tree = || process::tree_cpu(node.pid()).map_err(process_error("spryd"));
    let (spryd_before, tree_before, begin) = (spryd()?, tree()?, Instant::now());
    pause(Duration::from_secs_f64(options.seconds), stop)?;
    let elapsed = begin.elapsed().as_secs_f64();
    let share =
        |after: Duration, before: Duration| after.saturating_sub(before).as_secs_f64() / elapsed * 100.0;
    let processes = process::tree(node.pid()).map_err(process_error("spryd"))?.len();
    let case = format!("{} functions", options.functions);
    let so_far = spryd_before.as_secs_f64() * 1e3;
    Ok(vec![
        // That the clock works at all: nothing deploys twenty functions in no time.
        Row::new(BENCH, case.as_str(), "cpu of spryd until then", so_far, "ms").must(Bar::AtLeast(0.1)),
        Row::new(BENCH, case.as_str(), "cpu of spryd", share(spryd()?, spryd_before), "% of a core")
            .must(Bar::AtMost(0.5)),
        Row::new(BENCH, case.as_str(), "cpu with all instances", share(tree()?, tree_before), "% of a core"),
        Row::new(BENCH, case, "processes", processes as f64, ""),
    ])
}
