//! `chain`: what a hop from function to function costs, whatever is passed on, on which transport, and whether
//! every result is the right one.
//!
//! - [`hop`]: the cost of a hop beside half a round trip of the bare bus, everything on one core;
//! - [`payload`]: the same hop with small and large values;
//! - [`transports`]: a chain of eight steps on every transport, beside eight HTTP calls;
//! - [`soak`]: many runs of a chain, each with an input of its own.
//!
//! Every step is a function of its own name, though they have the same code: a step that is served by the process
//! that served the one before costs no switch, and real steps do.

mod hop;
mod payload;
mod soak;
mod transports;

use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;

use super::SuiteError;
use crate::load::Target;
use crate::node::{Node, NodeError, Programs};
use crate::report::Row;
use crate::stop::Stop;

const BENCH: &str = "chain";
/// Warm answers in a row before anything is measured.
const WARM_ANSWERS: usize = 20;

/// What to measure, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Seconds per subject and round.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Three rounds of half a second, and a tenth of the soak.
    #[arg(long)]
    pub quick: bool,
    /// Which parts.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "hop,payload,transports,soak")]
    pub only: Vec<Part>,
    /// Runs of the soak.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub soak: u64,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// A hop beside the bare bus.
    Hop,
    /// Hops with small and large values.
    Payload,
    /// All transports beside HTTP calls.
    Transports,
    /// Many runs, each checked.
    Soak,
}

impl Options {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Runs it; `binary` is this program, for the bare bus.
pub fn run(
    options: &Options,
    programs: &Programs,
    binary: &Path,
    stop: &Stop,
) -> Result<Vec<Row>, SuiteError> {
    let mut options = options.clone();
    if options.quick {
        (options.seconds, options.rounds, options.soak) = (0.5, 3, options.soak.div_ceil(10));
    }
    let mut rows = Vec::new();
    let wanted = |part| options.only.contains(&part);
    // The parts that pin this thread come last.
    if wanted(Part::Transports) {
        rows.extend(transports::run(&options, programs, stop)?);
    }
    if wanted(Part::Soak) {
        rows.extend(soak::run(&options, programs, stop)?);
    }
    if wanted(Part::Hop) {
        rows.extend(hop::run(&options, programs, binary, stop)?);
    }
    if wanted(Part::Payload) {
        rows.extend(payload::run(&options, programs, stop)?);
    }
    Ok(rows)
}

/// What the steps are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// Passes its input on: a descriptor, no byte of the value.
    Pass,
    /// Answers a constant of 27 bytes.
    Nop,
    /// Checks a seal and adds one.
    Checksum,
    /// Notes the time, or says how long ago it was noted.
    Stamp,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Nop => "nop",
            Self::Checksum => "checksum",
            Self::Stamp => "stamp",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Pass => "libexample_echo.so",
            Self::Nop => "libexample_nop.so",
            Self::Checksum => "examples/libbench_checksum.so",
            Self::Stamp => "examples/libbench_stamp.so",
        }
    }

    /// The names of the first `count` functions of this code.
    fn names(self, count: usize) -> Vec<String> {
        (1..=count).map(|number| format!("{}-{number}", self.name())).collect()
    }

    fn deploy(
        self,
        node: &Node,
        programs: &Programs,
        names: &[String],
        settings: &[&str],
    ) -> Result<(), NodeError> {
        let file = programs.bin_dir.join(self.file());
        names.iter().try_for_each(|name| node.deploy_file(&file, name, settings))
    }
}

/// Applies a chain of these functions, one after the other.
fn apply(node: &Node, name: &str, steps: &[String], payload: &str) -> Result<(), NodeError> {
    let mut toml = format!("name = {name:?}\ntimeout = \"10s\"\npayload = {payload:?}\n");
    for step in steps {
        toml.push_str(&format!("\n[[step]]\nfunction = {step:?}\n"));
    }
    node.apply_chain(name, &toml)
}

/// A request to a chain or a function with `body`, whose right answer is `expect`, once it is answered by warm
/// instances only.
fn warm(node: &Node, name: &str, body: &[u8], expect: &[u8], stop: &Stop) -> Result<Target, SuiteError> {
    let path = format!("/function/{name}");
    let target = Target::new(node.address, "POST", &path, body, expect.into());
    let got = node.warm(&target, WARM_ANSWERS, stop)?;
    if got != expect {
        let what =
            format!("another body than expected: {}", String::from_utf8_lossy(&got[..got.len().min(200)]));
        return Err(NodeError::Warm { path, what }.into());
    }
    Ok(target)
}
