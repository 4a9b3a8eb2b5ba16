//! `spry-bench sim`: scheduling policies on a simulated machine, side by side on the same trace.
//!
//! - [`workload`]: traces made from a seed; [`trace`]: traces as files.
//! - [`tally`]: turnarounds and slowdowns by class; [`plot`]: the same as pictures.
//!
//! The policies are those of `spry_sched`, the same that drive a node. Real time is measured by another benchmark; here
//! a second is what the trace says.

pub mod plot;
pub mod tally;
pub mod trace;
pub mod workload;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use spry_sched::policy::{Alps, AlpsConfig, Eevdf, Policy, Sfs, SfsConfig, Srpt, SrptPlus, SrptPlusConfig};
use spry_sched::predict::Predictor;
use spry_sched::sim::{BadTrace, Fifo, Job, Machine, OfflineSrpt, Outcome, RoundRobin};

use crate::report::Row;
use tally::Tally;
use workload::{Arrivals, Plan, Workload};

/// What is to be simulated.
#[derive(Debug, Args)]
pub struct Options {
    /// Which workloads.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["bimodal", "fib", "azure"])]
    workload: Vec<Workload>,
    /// How the invocations come.
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: Arrivals,
    /// CPU time asked for, in parts of what the cores have.
    #[arg(long, value_delimiter = ',', default_value = "0.95", value_parser = positive)]
    load: Vec<f64>,
    /// Every other function sleeps between parts of its work.
    #[arg(long)]
    io: bool,
    /// How many functions share the short invocations of `bimodal`, and how many the long ones.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    functions: u32,
    /// Invocations of a trace.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    jobs: u32,
    /// All CPU times are multiplied by this.
    #[arg(long, default_value = "1", value_parser = positive)]
    scale: f64,
    /// Where the random numbers start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs the trace in FILE (JSON lines, see docs/scheduler.md) instead of making one.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["workload", "arrivals", "load", "io", "jobs", "scale"])]
    trace: Option<PathBuf>,
    /// Writes the traces to FOLDER, to be run again.
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Invocations with less CPU time than this count as short (default: the workload's own; 100 for a trace).
    #[arg(long, value_name = "MS", value_parser = positive)]
    short_below: Option<f64>,
    /// Cores.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    cores: u16,
    /// What a context switch costs, in microseconds.
    #[arg(long, value_name = "US", default_value_t = 5)]
    switch: u32,
    /// The fair class's slice, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    slice: u16,
    /// Which policies; eevdf is always among them.
    #[arg(long, value_enum, value_delimiter = ',')]
    policy: Vec<Name>,
    /// srpt+: after how many times its size a task is overdue.
    #[arg(long, default_value_t = SrptPlusConfig::default().stretch)]
    stretch: u32,
    /// srpt+: after how many seconds at most.
    #[arg(long, value_name = "S", default_value_t = SrptPlusConfig::default().patience_ns / 1_000_000_000,
        value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    patience: u64,
    /// srpt+: what the overdue ones have for themselves, in percent of one core.
    #[arg(long, value_name = "PERCENT", default_value_t = SrptPlusConfig::default().share_percent,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    share: u32,
    /// Writes pictures (SVG) to FOLDER: turnarounds by policy, and who ran when.
    #[arg(long, value_name = "FOLDER")]
    plots: Option<PathBuf>,
}

/// The policies, in the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The kernel's fair class.
    Eevdf,
    /// First come, first served.
    Fifo,
    /// In turns, of the fair class's slice.
    Rr,
    /// SFS.
    Sfs,
    /// ALPS.
    Alps,
    /// SRPT by prediction.
    Srpt,
    /// SRPT by Gittins index, with a share for the overdue.
    #[value(name = "srpt+")]
    SrptPlus,
    /// SRPT that knows every size.
    Offline,
}

impl Name {
    /// Whether a node can be told to use it.
    pub fn on_a_node(self) -> bool {
        !matches!(self, Self::Fifo | Self::Rr | Self::Offline)
    }

    /// As on the command line.
    pub fn text(self) -> &'static str {
        match self {
            Self::Eevdf => "eevdf",
            Self::Fifo => "fifo",
            Self::Rr => "rr",
            Self::Sfs => "sfs",
            Self::Alps => "alps",
            Self::Srpt => "srpt",
            Self::SrptPlus => "srpt+",
            Self::Offline => "offline",
        }
    }
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A file can't be read or written.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line of a trace isn't one.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// Of which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The jobs of a trace make none.
    #[error(transparent)]
    Trace(#[from] BadTrace),
}

/// A policy's outcome.
pub struct Ran {
    /// Whose.
    pub name: Name,
    /// What came of it.
    pub outcome: Outcome,
    /// In numbers.
    pub tally: Tally,
}

/// Simulates all that was asked for; prints as it goes. Returns the rows for `--json`.
pub fn run(options: &Options) -> Result<Vec<Row>, SimError> {
    let mut rows = Vec::new();
    if let Some(path) = &options.trace {
        let trace = trace::read(path)?;
        let short_below_ns = nanoseconds(options.short_below.unwrap_or(100.0));
        let name = path.file_stem().map_or("trace".into(), |stem| stem.to_string_lossy().into_owned());
        one(options, &name, &trace, short_below_ns, &mut rows)?;
        return Ok(rows);
    }
    for &workload in &options.workload {
        for &load in &options.load {
            let plan = Plan {
                workload,
                arrivals: options.arrivals,
                load,
                io: options.io,
                functions: options.functions,
                jobs: options.jobs as usize,
                scale: options.scale,
                cores: options.cores.into(),
                seed: options.seed,
            };
            let short_below = options.short_below.unwrap_or(workload.short_below_ms() * options.scale);
            one(options, &plan.to_string(), &plan.trace(), nanoseconds(short_below), &mut rows)?;
        }
    }
    Ok(rows)
}

/// All policies on one trace.
fn one(
    options: &Options,
    name: &str,
    trace: &[Job],
    short_below_ns: u64,
    rows: &mut Vec<Row>,
) -> Result<(), SimError> {
    if let Some(folder) = &options.save {
        trace::write(&in_folder(folder, &format!("{name}.jsonl"))?, trace)?;
    }
    let machine = Machine {
        switch_ns: u64::from(options.switch) * 1_000,
        fair_slice_ns: u64::from(options.slice) * 1_000_000,
        record: options.plots.is_some(),
        ..Machine::new(options.cores.into())
    };
    let mut ran = Vec::new();
    for name in Name::value_variants().iter().copied().filter(|name| wanted(options, *name)) {
        let outcome = machine.run(trace, make(name, options, trace).as_mut())?;
        let tally = Tally::of(trace, &outcome, short_below_ns);
        ran.push(Ran { name, outcome, tally });
    }
    let Some(baseline) = ran.first().map(|eevdf| eevdf.tally.clone()) else { return Ok(()) };
    println!("{name}: {} invocations, {} cores", trace.len(), options.cores);
    println!("{}", tally::table(&ran, &baseline));
    rows.extend(tally::rows("sim", name, &ran, &baseline));
    if let Some(folder) = &options.plots {
        for (kind, text) in [
            ("turnaround", plot::turnaround(name, trace, &ran)),
            ("timeline", plot::timeline(name, trace, &ran, machine.cores, short_below_ns)),
        ] {
            let path = in_folder(folder, &format!("{name}-{kind}.svg"))?;
            std::fs::write(&path, text).map_err(file_error("write", &path))?;
        }
    }
    Ok(())
}

fn wanted(options: &Options, name: Name) -> bool {
    name == Name::Eevdf || options.policy.is_empty() || options.policy.contains(&name)
}

/// A policy with its defaults, for so many cores.
pub(crate) fn made(name: Name, cores: usize, trace: &[Job]) -> Box<dyn Policy> {
    let cores = cores as u32;
    match name {
        Name::Eevdf => Box::new(Eevdf),
        Name::Fifo => Box::<Fifo>::default(),
        Name::Rr => Box::new(RoundRobin::new(3_000_000)),
        Name::Sfs => Box::new(Sfs::new(SfsConfig::new(cores))),
        Name::Alps => Box::new(Alps::new(AlpsConfig::new(cores))),
        Name::Srpt => Box::new(Srpt::new(Predictor::default())),
        Name::SrptPlus => Box::new(SrptPlus::new(SrptPlusConfig::default(), Predictor::default())),
        Name::Offline => Box::new(OfflineSrpt::new(trace)),
    }
}

fn make(name: Name, options: &Options, trace: &[Job]) -> Box<dyn Policy> {
    let config = SrptPlusConfig {
        stretch: options.stretch,
        patience_ns: options.patience * 1_000_000_000,
        share_percent: options.share,
        ..SrptPlusConfig::default()
    };
    match name {
        Name::Rr => Box::new(RoundRobin::new(u64::from(options.slice) * 1_000_000)),
        Name::SrptPlus => Box::new(SrptPlus::new(config, Predictor::default())),
        other => made(other, options.cores.into(), trace),
    }
}

/// A file in a folder that is made if need be; what a name may not have becomes `-`.
pub(crate) fn in_folder(folder: &Path, name: &str) -> Result<PathBuf, SimError> {
    std::fs::create_dir_all(folder).map_err(file_error("make", folder))?;
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    Ok(folder.join(name.chars().map(plain).collect::<String>()))
}

pub(crate) fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SimError {
    let path = path.to_owned();
    move |source| SimError::File { operation, path, source }
}

fn nanoseconds(ms: f64) -> u64 {
    (ms * 1e6) as u64
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        _ => Err("must be a number above 0 and at most 1000000".into()),
    }
}
