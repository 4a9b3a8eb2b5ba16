//! `sched`: policies on a real node. The same trace, request by request in real time, under each policy; beside it what the
//! simulator says of that trace, and SRPT that knows every size.
//!
//! Each policy has a spryd of its own, started afresh, so none profits from what another has learnt; all
//! it knows when the trace begins is one call of each function. The functions are `bench/functions/burn.rs`: fib(n) for as much
//! CPU time as the trace says.

mod bound;
mod overhead;
mod replay;

use std::path::PathBuf;
use std::time::Duration;

use spry_sched::policy::SrptPlusConfig;
use spry_sched::sim::{Job, Machine, OfflineSrpt};

use super::{SuiteError, process_error};
use crate::http1;
use crate::load::Target;
use crate::node::{Node, NodeError, Programs};
use crate::process;
use crate::report::{Bar, Row};
use crate::sched::tally::{self, Tally};
use crate::sched::workload::{Arrivals, Plan, Workload};
use crate::sched::{self, Name, Ran, SimError, in_folder, plot, trace};
use crate::stop::Stop;

const BENCH: &str = "sched";
/// How long the first call of a function may take.
const WARM_PATIENCE: Duration = Duration::from_secs(90);
/// For the mean CPU time of a workload.
const SAMPLE: usize = 20_000;

/// What is to be run.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Which workload.
    #[arg(long, value_enum, default_value = "bimodal")]
    pub workload: Workload,
    /// How invocations come.
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrivals: Arrivals,
    /// CPU time asked for, in parts of what the cores have.
    #[arg(long, default_value_t = 0.95)]
    pub load: f64,
    /// Every other function sleeps between parts of its work.
    #[arg(long)]
    pub io: bool,
    /// How many functions share the short invocations of `bimodal`, and how many the long ones. (The fair class shares among
    /// functions: with few of them the long invocations are among themselves, and do short ones little harm.)
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub functions: u32,
    /// Seconds in which invocations come, for each policy. At load 0.95 a queue needs minutes to become as long as it is on average:
    /// in short runs there is little to put in order.
    #[arg(long, default_value_t = 180.0)]
    pub seconds: f64,
    /// A tenth of that.
    #[arg(long)]
    pub quick: bool,
    /// All CPU times are multiplied by this (unless said otherwise: azure 0.02, huawei 0.05, others 1).
    #[arg(long)]
    pub scale: Option<f64>,
    /// Where the random numbers start.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Runs the trace in FILE (JSON lines, see docs/scheduler.md) instead of making one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "arrivals", "load", "io", "seconds", "scale", "seed"])]
    pub trace: Option<PathBuf>,
    /// Writes the trace to FOLDER, to be run again.
    #[arg(long, value_name = "FOLDER")]
    pub save: Option<PathBuf>,
    /// Invocations with less CPU time than this count as short (default: the workload's own; 100 for a trace).
    #[arg(long, value_name = "MS")]
    pub short_below: Option<f64>,
    /// Which policies; eevdf is always the first.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["srpt+"])]
    pub policy: Vec<Name>,
    /// Measures instead what the first of the policies costs where there is nothing to decide.
    #[arg(long)]
    pub overhead: bool,
    /// Lets the node use the real-time class.
    #[arg(long)]
    pub realtime: bool,
    /// Writes pictures (SVG) to FOLDER: turnarounds by policy, and who ran when.
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
}

pub(crate) fn function_name(function: u32) -> String {
    format!("burn-{function}")
}

/// Runs it.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let cores = process::allowed_cpus().map_err(process_error("this program"))?.len();
    if options.overhead {
        let policy = options.policy.iter().copied().find(|name| *name != Name::Eevdf && name.on_a_node());
        return overhead::run(policy.unwrap_or(Name::SrptPlus), options.quick, programs, stop);
    }
    let (name, trace, short_below_ns) = prepare(options, cores)?;
    if let Some(folder) = &options.save {
        trace::write(&in_folder(folder, &format!("{name}.jsonl"))?, &trace)?;
    }
    let machine = Machine { switch_ns: 5_000, ..Machine::new(cores) };
    let policies = options.policy.iter().copied().filter(|name| *name != Name::Eevdf && name.on_a_node());
    let (mut ran, mut simulated) = (Vec::new(), Vec::new());
    for policy in std::iter::once(Name::Eevdf).chain(policies) {
        eprintln!("{name}: {} invocations under {}", trace.len(), policy.text());
        let outcome = one(options, programs, &trace, policy, stop)?;
        let tally = Tally::of(&trace, &outcome, short_below_ns);
        ran.push(Ran { name: policy, outcome, tally });
        let outcome =
            machine.run(&trace, sched::made(policy, cores, &trace).as_mut()).map_err(SimError::from)?;
        simulated.push(Tally::of(&trace, &outcome, short_below_ns));
    }
    let baseline = ran[0].tally.clone();
    let mut rows = rows(&name, &ran, &simulated, &baseline);
    if let Some(ours) = ran.iter().find(|ran| ran.name == Name::SrptPlus) {
        let part = bound::worst_part(SrptPlusConfig::default(), &trace, &ours.outcome);
        let row = Row::new(BENCH, format!("{name} srpt+"), "worst turnaround", part, "of its bound");
        rows.push(row.must(Bar::AtMost(1.0)));
    }
    let outcome = machine.run(&trace, &mut OfflineSrpt::new(&trace)).map_err(SimError::from)?;
    let tally = Tally::of(&trace, &outcome, short_below_ns);
    ran.push(Ran { name: Name::Offline, outcome, tally });
    println!("{name}: {} invocations, {cores} cores, real processes (offline: simulated)", trace.len());
    println!("{}", tally::table(&ran, &baseline));
    rows.extend(tally::rows(BENCH, &name, &ran, &baseline).into_iter().map(|row| row.shown(false)));
    if let Some(folder) = &options.plots {
        for (kind, text) in [
            ("turnaround", plot::turnaround(&name, &trace, &ran)),
            ("timeline", plot::timeline(&name, &trace, &ran[..ran.len() - 1], cores, short_below_ns)),
        ] {
            let path = in_folder(folder, &format!("{name}-{kind}.svg"))?;
            std::fs::write(&path, text).map_err(sched::file_error("write", &path))?;
        }
    }
    Ok(rows)
}

/// The trace, its name, and what counts as short in it.
fn prepare(options: &Options, cores: usize) -> Result<(String, Vec<Job>, u64), SuiteError> {
    let short_ns = |ms: f64| (ms * 1e6) as u64;
    if let Some(path) = &options.trace {
        let trace = trace::read(path)?;
        let name = path.file_stem().map_or("trace".into(), |stem| stem.to_string_lossy().into_owned());
        return Ok((name, trace, short_ns(options.short_below.unwrap_or(100.0))));
    }
    let scale = options.scale.unwrap_or_else(|| options.workload.usual_scale());
    let mut plan = Plan {
        workload: options.workload,
        arrivals: options.arrivals,
        load: options.load,
        io: options.io,
        functions: options.functions,
        jobs: SAMPLE,
        scale,
        cores,
        seed: options.seed,
    };
    let sample = plan.trace();
    let mean_s = sample.iter().map(|job| job.cpu_ns() as f64).sum::<f64>() / sample.len() as f64 / 1e9;
    let seconds = if options.quick { options.seconds / 10.0 } else { options.seconds };
    plan.jobs = ((seconds * options.load * cores as f64 / mean_s).ceil() as usize).max(1);
    let short_below = options.short_below.unwrap_or(options.workload.short_below_ms() * scale);
    Ok((plan.to_string(), plan.trace(), short_ns(short_below)))
}

fn settings(policy: Name, realtime: bool) -> String {
    // Nothing is refused here: everything waits, as it does in the simulator.
    format!(
        "[scheduler]\npolicy = \"{}\"\nrealtime = {realtime}\n[queue]\nper_function = 1000000\nnode = 1000000\n",
        policy.text()
    )
}

/// The trace on a node of its own.
fn one(
    options: &Options,
    programs: &Programs,
    trace: &[Job],
    policy: Name,
    stop: &Stop,
) -> Result<spry_sched::sim::Outcome, SuiteError> {
    let node = Node::start_with(programs, &settings(policy, options.realtime), stop)?;
    let mut functions: Vec<&Job> = trace.iter().collect();
    functions.sort_by_key(|job| job.function);
    functions.dedup_by_key(|job| job.function);
    let library = programs.bin_dir.join("examples").join("libbench_burn.so");
    for job in functions {
        let name = function_name(job.function.0);
        node.deploy_file(&library, &name, &["scale.max=64", "limits.timeout=10m", "limits.memory=16MiB"])?;
        let path = format!("/function/{name}");
        // One call ahead, so that no zygote is started while it counts; as long as one of the trace's own, since
        // policies remember it.
        let bursts = replay::request_body(job);
        let call = Target::new(node.address, "POST", &path, &bursts, b"".as_slice().into()).request;
        let (head, body) = http1::call(node.address, &call, WARM_PATIENCE)?;
        if head.status != 200 {
            let what = format!("status {}: {}", head.status, String::from_utf8_lossy(&body));
            return Err(NodeError::Warm { path, what }.into());
        }
    }
    let outcome = replay::run(node.address, trace, stop)?;
    eprint!(
        "{}",
        node.spry(&["status"])?.lines().filter(|line| line.contains("scheduler")).collect::<String>()
    );
    eprintln!();
    Ok(outcome)
}

/// Means against eevdf's, with the bars, and how far the simulator was off.
fn rows(name: &str, ran: &[Ran], simulated: &[Tally], baseline: &Tally) -> Vec<Row> {
    let mut rows = Vec::new();
    for (Ran { name: policy, tally, .. }, simulated) in ran.iter().zip(simulated) {
        let case = format!("{name} {}", policy.text());
        let of = |tally: &Tally| [tally.short.mean_ms, tally.long.mean_ms, tally.all.mean_ms];
        let bars = [0.333, 1.3, 0.75].map(Bar::RatioAtMost);
        let classes = ["short mean", "long mean", "all mean"].into_iter().zip(bars);
        for (((metric, bar), value), base) in classes.zip(of(tally)).zip(of(baseline)) {
            if value == 0.0 {
                continue; // no invocation of that class
            }
            let row = Row::new(BENCH, case.as_str(), metric, value, "ms").against(base);
            rows.push(if *policy == Name::SrptPlus { row.must(bar) } else { row });
        }
        let metric = "all mean, simulated";
        rows.push(Row::new(BENCH, case, metric, simulated.all.mean_ms, "ms").against(tally.all.mean_ms));
    }
    rows
}
