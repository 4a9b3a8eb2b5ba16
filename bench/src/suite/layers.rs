//! `layers`: what it saves that functions' packages are imported once.
//!
//! In one run, on two nodes that differ in `zygotes.layers_memory` alone: many functions with NumPy, each deployed (its zygote
//! imports by itself) and deployed again (with layers: its zygote begins from one), then called once. Times are of zygotes'
//! starts, from the wish to a loaded function, as spryd measures them; memory is PSS, so that what is shared counts in parts.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::density::{call, pids, pss_kib, with_numpy};
use super::{SuiteError, pause, process_error};
use crate::node::{Node, NodeError, Programs};
use crate::report::{Bar, Row};
use crate::stop::Stop;

const BENCH: &str = "layers";
const WITHOUT: &str = "[zygotes]\nlayers_memory = 0\n";
/// How long a layer may take to be made.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// What a call leaves to do is done by then.
const SETTLE: Duration = Duration::from_secs(1);

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Functions with NumPy.
    #[arg(long, default_value_t = 20)]
    pub functions: usize,
}

/// What one node shows.
struct Shown {
    /// Milliseconds, sorted.
    starts: Vec<f64>,
    pss_mib: f64,
    layers_mib: f64,
}

impl Shown {
    fn median(&self) -> f64 {
        self.starts.get(self.starts.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Runs it.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let without = node(options.functions, programs, WITHOUT, stop)?;
    let with = node(options.functions, programs, "", stop)?;
    let row = |case: &str, metric, value, unit| Row::new(BENCH, case, metric, value, unit);
    let (start, memory) = ("start of a zygote, p50", "PSS of all zygotes and instances");
    Ok(vec![
        row("NumPy, by itself", start, without.median(), "ms"),
        row("NumPy, from a layer", start, with.median(), "ms")
            .against(without.median())
            .must(Bar::RatioAtMost(0.5)),
        row("NumPy, by itself", memory, without.pss_mib, "MiB"),
        row("NumPy, from a layer", memory, with.pss_mib, "MiB").against(without.pss_mib),
        row("NumPy, from a layer", "memory of the layers", with.layers_mib, "MiB"),
    ])
}

fn node(functions: usize, programs: &Programs, settings: &str, stop: &Stop) -> Result<Shown, SuiteError> {
    let node = Node::start_with(programs, settings, stop)?;
    let folder = with_numpy(node.folder())?;
    let names: Vec<String> = (0..functions).map(|index| format!("f{index}")).collect();
    for name in &names {
        node.deploy_file(&folder, name, &[])?;
        pause(Duration::ZERO, stop)?;
    }
    let on_layers = settings.is_empty();
    if on_layers {
        let began = Instant::now();
        while layers(&node)?.iter().all(|layer| layer.get("problem").is_some()) {
            if began.elapsed() > PATIENCE {
                let what = format!("no layer was made: {:?}", layers(&node)?);
                return Err(NodeError::Warm { path: "spry status".to_owned(), what }.into());
            }
            pause(LOOK, stop)?;
        }
    }
    let mut starts = Vec::with_capacity(functions);
    for name in &names {
        node.deploy_file(&folder, name, &[])?;
        let view = json(&node, &["--output", "json", "describe", name])?;
        starts.extend(view["start"]["took_ms"].as_f64());
        call(&node, name)?;
        pause(Duration::ZERO, stop)?;
    }
    starts.sort_by(f64::total_cmp);
    pause(SETTLE, stop)?;
    let own = node.pid().as_raw();
    let tree = pids(&node)?.into_iter().filter(|pid| *pid != own);
    let pss_kib: f64 = tree.filter_map(pss_kib).sum();
    let bytes = |layer: &Value| -> f64 {
        let text = layer["memory"].as_str().unwrap_or_default();
        let digits = text.trim_end_matches(|letter: char| letter.is_alphabetic());
        let factor = match &text[digits.len()..] {
            "GiB" => 1024.0,
            "MiB" => 1.0,
            "KiB" => 1.0 / 1024.0,
            _ => 1.0 / 1_048_576.0,
        };
        digits.parse::<f64>().unwrap_or(0.0) * factor
    };
    let layers_mib = layers(&node)?.iter().map(bytes).sum();
    Ok(Shown { starts, pss_mib: pss_kib / 1024.0, layers_mib })
}

fn layers(node: &Node) -> Result<Vec<Value>, SuiteError> {
    let status = json(node, &["--output", "json", "status"])?;
    Ok(status["layers"].as_array().cloned().unwrap_or_default())
}

fn json(node: &Node, arguments: &[&str]) -> Result<Value, SuiteError> {
    let text = node.spry(arguments)?;
    serde_json::from_str(&text).map_err(|error| process_error("spry's answer")(error.into()))
}
