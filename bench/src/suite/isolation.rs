//! `isolation`: what a process of its own for every request costs.
//!
//! Three parts, each in one run with what it is compared with:
//!
//! - `open`: 50 requests/s that don't wait for each other, `isolation = "request"` against `"instance"`. Single-use
//!   instances are ready ahead of the requests; the fork is off the way.
//! - `ceiling`: as much as 32 connections get, against the bare hyper floor, with a CGI-like server beside it that
//!   starts a program for each request. Here a fork is on the way of every request.
//! - `leaks`: ten thousand requests; afterwards there is no process, descriptor, segment, control group or mount more
//!   than before.

use std::path::Path;
use std::time::{Duration, Instant};

use super::compare::{P50, REQUESTS, Subject, report, rounds};
use super::http::RuntimeName;
use super::{SuiteError, TIMEOUT, pause, process_error};
use crate::floor::{Floor, NOP_JSON, Shape};
use crate::load::{self, Pace, Plan, Target, Until};
use crate::node::{Function, Node, Programs};
use crate::process::{self, Holdings};
use crate::report::{Bar, Row};
use crate::stop::Stop;

const BENCH: &str = "isolation";
/// Seed of the open loop's arrival times.
const SEED: u64 = 5;
/// What a fresh WebAssembly instance per request reaches on the build machine (wasmtime serve), of the floor's
/// requests per second: the bar for native functions.
const WASM_SHARE: f64 = 0.11;
/// What a CGI process per request reaches there. Python's bar is the middle of the two.
const CGI_SHARE: f64 = 0.018;
/// How long what has ended may take to be cleared away, and pools to shrink.
const SETTLING: Duration = Duration::from_secs(30);

/// What to measure, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Which runtimes.
    #[arg(long, value_delimiter = ',', default_value = "native,python")]
    pub runtimes: Vec<RuntimeName>,
    /// Which parts.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "open,ceiling,leaks")]
    pub parts: Vec<Part>,
    /// The open loop's requests per second.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Connections of the ceiling and of the leaks.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Seconds per server and round.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Requests of the leaks.
    #[arg(long, default_value_t = 10_000)]
    pub requests: u64,
    /// Has every request forked for, rather than processes rewound.
    #[arg(long)]
    pub forked: bool,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// 50 requests/s.
    Open,
    /// As many as 32 connections get.
    Ceiling,
    /// Ten thousand requests, and what is left of them.
    Leaks,
}

/// Runs the benchmark; `binary` is this program, for the floor.
pub fn run(
    options: &Options,
    programs: &Programs,
    binary: &Path,
    stop: &Stop,
) -> Result<Vec<Row>, SuiteError> {
    let rewind = if options.forked { "off" } else { "auto" };
    let node = Node::start_with(programs, &format!("[zygotes]\nrewind = {rewind:?}\n"), stop)?;
    let mut rows = Vec::new();
    if options.parts.contains(&Part::Open) {
        for runtime in &options.runtimes {
            rows.extend(open(&node, *runtime, options, stop)?);
        }
    }
    if options.parts.contains(&Part::Ceiling) {
        rows.extend(ceiling(&node, options, binary, stop)?);
    }
    if options.parts.contains(&Part::Leaks) {
        for runtime in &options.runtimes {
            rows.extend(leaks(&node, *runtime, options, stop)?);
        }
    }
    Ok(rows)
}

fn nop(runtime: RuntimeName) -> (Function, &'static str) {
    match runtime {
        RuntimeName::Native => (Function::NativeNop, "native"),
        RuntimeName::Python => (Function::PythonNop, "python"),
    }
}

/// Deploys the runtime's nop with this isolation, and calls it until it answers.
fn target(node: &Node, runtime: RuntimeName, isolation: &str, stop: &Stop) -> Result<Target, SuiteError> {
    let (function, label) = nop(runtime);
    let name = format!("{label}-{isolation}");
    node.deploy_with(function, &name, &[&format!("isolation={isolation}")])?;
    let mut target = Target::new(node.address, "GET", &format!("/function/{name}"), b"", NOP_JSON.into());
    // How a runtime spells a JSON value (spaces) is its own affair.
    target.body = node.first_answer(&target, stop)?.into();
    Ok(target)
}

/// The same rate for both kinds of isolation.
fn open(node: &Node, runtime: RuntimeName, options: &Options, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let (_, label) = nop(runtime);
    let mut subjects = Vec::new();
    for (isolation, floor) in [("instance", true), ("request", false)] {
        let target = target(node, runtime, isolation, stop)?;
        let label = format!("{label} {isolation}");
        subjects.push(Subject { label, target, root: node.pid(), floor });
    }
    let case = format!("open {}/s", options.rate);
    eprintln!("{label}, {case}");
    let pace = Pace::Poisson { per_second: options.rate, seed: SEED };
    let results = rounds(&subjects, &plan(options, 8, pace), options.rounds, stop)?;
    Ok(report(BENCH, &subjects, &results, &case, 8, &|subject, metric| {
        (subject.ends_with("request") && metric == P50).then_some(Bar::RatioAtMost(1.4))
    }))
}

fn plan(options: &Options, connections: usize, pace: Pace) -> Plan {
    let until = Until::Elapsed(Duration::from_secs_f64(options.seconds));
    Plan { connections, pace, until, timeout: TIMEOUT }
}

fn ceiling(node: &Node, options: &Options, binary: &Path, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let floors = [Floor::start(binary, Shape::MultiThread)?, Floor::start(binary, Shape::PerCore)?];
    let mut subjects = Vec::new();
    for floor in &floors {
        let target = Target::new(floor.address, "GET", "/function/nop", b"", NOP_JSON.into());
        let label = format!("floor ({})", floor.shape.name());
        subjects.push(Subject { label, target, root: floor.pid(), floor: true });
    }
    let cgi = Floor::start(binary, Shape::MultiThread)?;
    let target_of_cgi = Target::new(cgi.address, "GET", "/cgi", b"", NOP_JSON.into());
    subjects.push(Subject { label: "cgi".to_owned(), target: target_of_cgi, root: cgi.pid(), floor: false });
    for runtime in &options.runtimes {
        let label = format!("{} request", nop(*runtime).1);
        let target = target(node, *runtime, "request", stop)?;
        subjects.push(Subject { label, target, root: node.pid(), floor: false });
    }
    eprintln!("ceiling, {} connections", options.connections);
    let results = rounds(&subjects, &plan(options, options.connections, Pace::Closed), options.rounds, stop)?;
    Ok(report(BENCH, &subjects, &results, "ceiling", options.connections, &|subject, metric| match subject {
        "native request" if metric == REQUESTS => Some(Bar::RatioAtLeast(WASM_SHARE)),
        "python request" if metric == REQUESTS => Some(Bar::RatioAtLeast((WASM_SHARE + CGI_SHARE) / 2.0)),
        _ => None,
    }))
}

/// What must not grow with the number of requests.
#[derive(Debug, Clone, Copy)]
struct Census {
    held: Holdings,
    zombies: usize,
    control_groups: usize,
    mounts: usize,
}

impl Census {
    fn of(node: &Node) -> Result<Self, SuiteError> {
        let pid = node.pid();
        let count = || -> std::io::Result<Self> {
            let record = std::fs::read_to_string(node.folder().join("state/cgroups"))?;
            Ok(Self {
                held: process::holdings(pid)?,
                zombies: process::tree(pid)?.iter().filter(|process| process.zombie).count(),
                control_groups: record.lines().map(|root| folders(Path::new(root))).sum(),
                mounts: std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?.lines().count(),
            })
        };
        count().map_err(process_error("spryd"))
    }

    fn numbers(&self) -> [(&'static str, usize); 7] {
        let Holdings { fds, memfds, memfd_maps, processes } = self.held;
        [
            ("fds", fds),
            ("segments held", memfds),
            ("segments mapped", memfd_maps),
            ("processes", processes),
            ("zombies", self.zombies),
            ("control groups", self.control_groups),
            ("mounts", self.mounts),
        ]
    }

    fn has_grown_since(&self, before: &Self) -> bool {
        self.numbers().iter().zip(before.numbers()).any(|((_, now), (_, before))| *now > before)
    }
}

/// Folders below one.
fn folders(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let inner = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    inner.map(|path| 1 + folders(&path)).sum()
}

fn leaks(node: &Node, runtime: RuntimeName, options: &Options, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let target = target(node, runtime, "request", stop)?;
    let case = format!("{} leaks", nop(runtime).1);
    let plan = |requests| Plan {
        connections: options.connections,
        pace: Pace::Closed,
        until: Until::Requests(requests),
        timeout: TIMEOUT,
    };
    // The same load first, so that "before" has what such a load leaves to be used again.
    load::run(&target, &plan(options.requests.div_ceil(10)), stop)?;
    let before = settled(node, None, stop)?;
    let outcome = load::run(&target, &plan(options.requests), stop)?;
    let after = settled(node, Some(&before), stop)?;
    eprintln!("{case}: {} done, failures: {}", outcome.done, outcome.failures);
    let failures = outcome.failures.total() as f64;
    let mut rows = vec![
        Row::new(BENCH, case.as_str(), "requests", outcome.done as f64, ""),
        Row::new(BENCH, case.as_str(), "failures", failures, "requests").must(Bar::AtMost(0.0)),
    ];
    for ((metric, after), (_, before)) in after.numbers().into_iter().zip(before.numbers()) {
        let row = Row::new(BENCH, case.as_str(), metric, after as f64, "").against(before as f64);
        rows.push(row.must(Bar::AtMost(before as f64)));
    }
    Ok(rows)
}

/// What is there when nothing more goes: the pool has shrunk, the dead are cleared away.
fn settled(node: &Node, before: Option<&Census>, stop: &Stop) -> Result<Census, SuiteError> {
    let deadline = Instant::now() + SETTLING;
    let mut last = Census::of(node)?;
    let mut unchanged = 0;
    loop {
        pause(Duration::from_millis(500), stop)?;
        let now = Census::of(node)?;
        let changed = now.has_grown_since(&last) || last.has_grown_since(&now);
        unchanged = if changed { 0 } else { unchanged + 1 };
        last = now;
        // Longer than a pool waits before it shrinks.
        let done = unchanged >= 16 && before.is_none_or(|before| !now.has_grown_since(before));
        if done || Instant::now() > deadline {
            return Ok(now);
        }
    }
}
