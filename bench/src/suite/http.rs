//! `http`: warm functions against the floor, in one run.
//!
//! Every case is measured in rounds, by [`compare`](super::compare). The floor of a metric is the best floor for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::compare::{P50, Place, REQUESTS, Subject, best_floor, report, rounds};
use super::{SuiteError, TIMEOUT, process_error, warm};
use crate::floor::{Floor, NOP_JSON, Shape};
use crate::load::{self, Pace, Plan, Target, Until};
use crate::node::{Function, Node, Programs};
use crate::report::{Bar, Row};
use crate::stop::Stop;
use crate::{perf, process};

const BENCH: &str = "http";
/// Seed of the open loop's arrival times.
const SEED: u64 = 2;

/// What to measure, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    pub connections: Vec<usize>,
    /// Seconds per server and round.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Three rounds of half a second.
    #[arg(long)]
    pub quick: bool,
    /// Only cases whose name contains this: nop, echo-1KiB, echo-1MiB, open.
    #[arg(long)]
    pub only: Option<String>,
    /// Which runtimes.
    #[arg(long, value_delimiter = ',', default_value = "native,python")]
    pub runtimes: Vec<RuntimeName>,
    /// The open loop's rate, as a share of what the floor can do.
    #[arg(long, default_value_t = 0.25)]
    pub open_share: f64,
    /// Where client and servers run. A request at one connection costs three times as much between two cores as on
    /// one, and the kernel's choice changes from second to second: fix it to compare, leave it free to report.
    #[arg(long, value_enum, default_value = "free")]
    pub place: Place,
    /// The floor against a second one of its own kind: shows the noise; needs no spryd.
    #[arg(long)]
    pub self_check: bool,
    /// Also records a profile of spryd in each case, into FILE and then FILE.1 and so on, and prints it.
    #[arg(long, value_name = "FILE")]
    pub perf: Option<PathBuf>,
}

/// A runtime to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RuntimeName {
    /// A shared library.
    Native,
    /// CPython.
    Python,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Nop,
    Echo(usize),
}

impl Payload {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Nop, "nop"), (Self::Echo(1024), "echo-1KiB"), (Self::Echo(1 << 20), "echo-1MiB")];

    fn body(self) -> Vec<u8> {
        match self {
            Self::Nop => Vec::new(),
            // Not one byte repeated: a shifted or stale answer shall be noticed.
            Self::Echo(len) => (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect(),
        }
    }
}

/// The bars.
fn bar(subject: &str, case: &str, connections: usize, metric: usize) -> Option<Bar> {
    match (subject, case, connections, metric) {
        ("native", "nop", 1, P50) | ("native", "echo-1MiB", 1, P50) => Some(Bar::RatioAtMost(1.4)),
        ("native", "nop", 32, REQUESTS) => Some(Bar::RatioAtLeast(0.4)),
        ("python", "nop", 1, P50) => Some(Bar::RatioAtMost(1.6)),
        ("python", "nop", 32, REQUESTS) => Some(Bar::RatioAtLeast(0.3)),
        _ => None,
    }
}

/// All that runs during the benchmark.
struct Servers {
    cpus: Vec<usize>,
    floors: Vec<Floor>,
    again: Option<Floor>,
    node: Option<Node>,
}

/// Runs the benchmark; `binary` is this program, for the floor.
pub fn run(
    options: &Options,
    programs: &Programs,
    binary: &Path,
    stop: &Stop,
) -> Result<Vec<Row>, SuiteError> {
    let mut options = options.clone();
    if options.quick {
        (options.seconds, options.rounds) = (0.5, 3);
    }
    let servers = start(&options, programs, binary, stop)?;
    let mut rows = Vec::new();
    let mut capacity = None;
    let mut perf_files = 0;
    for (payload, name) in Payload::ALL {
        if !options.only.as_ref().is_none_or(|only| name.contains(only.as_str())) {
            continue;
        }
        let subjects = subjects(&servers, &options, payload, stop)?;
        for &connections in &options.connections {
            eprintln!("{name}, {connections} connections");
            let plan = plan(&options, connections, Pace::Closed);
            let results = rounds(&subjects, &plan, options.rounds, stop)?;
            if payload == Payload::Nop {
                let best = best_floor(&subjects, &results, REQUESTS).map_or(0.0, |(_, value)| value);
                capacity = Some(capacity.map_or(best, |before: f64| before.max(best)));
            }
            rows.extend(report(BENCH, &subjects, &results, name, connections, &|subject, metric| {
                bar(subject, name, connections, metric)
            }));
            for subject in subjects.iter().filter(|subject| !subject.floor) {
                if let Some(file) = &options.perf {
                    let mut numbered = file.clone().into_os_string();
                    if perf_files > 0 {
                        numbered.push(format!(".{perf_files}"));
                    }
                    perf_files += 1;
                    profile(subject, &plan, Path::new(&numbered), name, stop)?;
                }
            }
        }
    }
    if options.only.as_ref().is_none_or(|only| "open".contains(only.as_str())) {
        rows.extend(open_loop(&servers, &options, capacity, stop)?);
    }
    if rows.is_empty() { Err(SuiteError::NoCase(options.only.unwrap_or_default())) } else { Ok(rows) }
}

fn start(options: &Options, programs: &Programs, binary: &Path, stop: &Stop) -> Result<Servers, SuiteError> {
    let mut servers = Servers {
        cpus: process::allowed_cpus().map_err(process_error("this program"))?,
        floors: Vec::new(),
        again: None,
        node: None,
    };
    for shape in [Shape::MultiThread, Shape::PerCore] {
        servers.floors.push(Floor::start(binary, shape)?);
    }
    if options.self_check {
        servers.again = Some(Floor::start(binary, Shape::PerCore)?);
        return Ok(servers);
    }
    let node = Node::start(programs, stop)?;
    for runtime in &options.runtimes {
        let (nop, echo) = functions(*runtime);
        for function in [nop, echo] {
            node.deploy(function, function.name())?;
        }
    }
    servers.node = Some(node);
    Ok(servers)
}

fn functions(runtime: RuntimeName) -> (Function, Function) {
    match runtime {
        RuntimeName::Native => (Function::NativeNop, Function::NativeEcho),
        RuntimeName::Python => (Function::PythonNop, Function::PythonEcho),
    }
}

fn floor_target(floor: &Floor, payload: Payload, echo: &str) -> Target {
    match payload {
        Payload::Nop => Target::new(floor.address, "GET", "/function/nop", b"", NOP_JSON.into()),
        Payload::Echo(_) => {
            let body = payload.body();
            Target::new(floor.address, "POST", &format!("/function/{echo}"), &body, body.as_slice().into())
        }
    }
}

fn subjects(
    servers: &Servers,
    options: &Options,
    payload: Payload,
    stop: &Stop,
) -> Result<Vec<Subject>, SuiteError> {
    let mut subjects = Vec::new();
    let echoes: &[&str] = if payload == Payload::Nop { &["nop"] } else { &["echo", "echo-stream"] };
    for floor in &servers.floors {
        for echo in echoes {
            let way = if *echo == "echo-stream" { ", streamed" } else { "" };
            subjects.push(Subject {
                label: format!("floor ({}{way})", floor.shape.name()),
                target: floor_target(floor, payload, echo),
                root: floor.pid(),
                floor: true,
            });
        }
    }
    if let Some(floor) = &servers.again {
        let target = floor_target(floor, payload, echoes[echoes.len() - 1]);
        subjects.push(Subject { label: "floor again".to_owned(), target, root: floor.pid(), floor: false });
    }
    if let Some(node) = &servers.node {
        for runtime in &options.runtimes {
            let (nop, echo) = functions(*runtime);
            let function = if payload == Payload::Nop { nop } else { echo };
            let target = warm(node, function, &payload.body(), stop)?;
            let label = if *runtime == RuntimeName::Native { "native" } else { "python" };
            subjects.push(Subject { label: label.to_owned(), target, root: node.pid(), floor: false });
        }
    }
    options.place.apply(&servers.cpus, &subjects).map_err(process_error("the servers"))?;
    Ok(subjects)
}

fn plan(options: &Options, connections: usize, pace: Pace) -> Plan {
    let until = Until::Elapsed(Duration::from_secs_f64(options.seconds));
    Plan { connections, pace, until, timeout: TIMEOUT }
}

/// All at the same rate, which the floor has no trouble with: what a caller sees who doesn't wait for others.
fn open_loop(
    servers: &Servers,
    options: &Options,
    capacity: Option<f64>,
    stop: &Stop,
) -> Result<Vec<Row>, SuiteError> {
    let connections = options.connections.iter().copied().max().unwrap_or(1);
    let subjects = subjects(servers, options, Payload::Nop, stop)?;
    let capacity = match capacity {
        Some(capacity) => capacity,
        None => {
            let closed = rounds(&subjects[..2], &plan(options, connections, Pace::Closed), 1, stop)?;
            best_floor(&subjects[..2], &closed, REQUESTS).map_or(0.0, |(_, value)| value)
        }
    };
    let per_second = (capacity * options.open_share).round();
    eprintln!("open loop, {per_second} requests a second, {connections} connections");
    let plan = plan(options, connections, Pace::Poisson { per_second, seed: SEED });
    let results = rounds(&subjects, &plan, options.rounds, stop)?;
    let case = format!("nop open {per_second}/s");
    let mut rows = report(BENCH, &subjects, &results, &case, connections, &|_, _| None);
    for (subject, runs) in subjects.iter().zip(&results) {
        let name = format!("{} {case} c{connections}", subject.label);
        rows.push(Row::new(BENCH, name, "backlog max", runs.backlog_max as f64, "requests").shown(false));
    }
    Ok(rows)
}

fn profile(subject: &Subject, plan: &Plan, file: &Path, case: &str, stop: &Stop) -> Result<(), SuiteError> {
    let recording = perf::Recording::start(subject.root, file).map_err(SuiteError::Perf)?;
    load::run(&subject.target, plan, stop)?;
    recording.finish().map_err(SuiteError::Perf)?;
    let symbols = perf::symbols(file).map_err(SuiteError::Perf)?;
    println!("profile of {} {case}, {} connections", subject.label, plan.connections);
    println!("{}", perf::summary(&symbols, 40));
    Ok(())
}
