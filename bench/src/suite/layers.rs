//! `layers`: what it saves that functions' packages are imported once.
//!
//! In one run, on two nodes that differ in `zygotes.layers_memory` alone: many functions with NumPy, each deployed (its zygote
//! imports by itself) and deployed again (with layers: its zygote begins from one), then called once. All ask for the same set of
//! packages, or for one of several: NumPy, and other small ones beside it, which they import too. Times are of zygotes'
//! starts, from the wish to a loaded function, as spryd measures them; memory is PSS, so that what is shared counts in parts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::density::{call, pids, pss_kib};
use super::{SuiteError, pause, process_error};
use crate::node::{Node, NodeError, Programs};
use crate::report::{Bar, Row};
use crate::stop::Stop;

const BENCH: &str = "layers";
const WITHOUT: &str = "[zygotes]\nlayers_memory = 0\n";
/// What sets differ in: packages of one module that is called the same, each in every second set.
const OTHERS: [&str; 3] = ["six", "idna", "colorama"];
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
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    pub functions: u16,
    /// Different sets of packages that they ask for; each number is a case of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,8",
        value_parser = clap::value_parser!(u8).range(1..=8))]
    pub sets: Vec<u8>,
}

/// What one node shows.
struct Shown {
    /// Milliseconds, sorted.
    starts: Vec<f64>,
    pss_mib: f64,
    layers_mib: f64,
    layers: usize,
}

impl Shown {
    fn median(&self) -> f64 {
        self.starts.get(self.starts.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// Runs it.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let wheels = wheels()?;
    let mut rows = Vec::new();
    for sets in &options.sets {
        let work = Work { functions: options.functions.into(), sets: *sets, wheels: wheels.path() };
        let without = node(&work, programs, WITHOUT, stop)?;
        let with = node(&work, programs, "", stop)?;
        let what = match sets {
            1 => "NumPy".to_owned(),
            _ => format!("NumPy in {sets} sets"),
        };
        let row = |how, metric, value, unit| Row::new(BENCH, format!("{what}, {how}"), metric, value, unit);
        let (start, memory) = ("start of a zygote, p50", "PSS of all zygotes and instances");
        rows.extend([
            row("by itself", start, without.median(), "ms"),
            row("from a layer", start, with.median(), "ms")
                .against(without.median())
                .must(Bar::RatioAtMost(0.5)),
            row("by itself", memory, without.pss_mib, "MiB"),
            row("from a layer", memory, with.pss_mib, "MiB").against(without.pss_mib),
            row("from a layer", "memory of the layers", with.layers_mib, "MiB"),
            row("from a layer", "layers", with.layers as f64, ""),
        ]);
    }
    Ok(rows)
}

/// What is deployed.
struct Work<'a> {
    functions: usize,
    sets: u8,
    wheels: &'a Path,
}

/// All packages, fetched once for all nodes.
fn wheels() -> Result<tempfile::TempDir, SuiteError> {
    let failed = || process_error("pip download");
    let folder = tempfile::Builder::new().prefix("spry-bench-wheels-").tempdir().map_err(failed())?;
    // Whoever installs them must be able to read them.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).map_err(failed())?;
    let words = "-m pip download --only-binary=:all: --no-deps --quiet --disable-pip-version-check -d";
    let mut pip = Command::new("python3");
    pip.args(words.split(' ')).arg(folder.path()).arg("numpy").args(OTHERS);
    let output = pip.output().map_err(failed())?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(failed()(std::io::Error::other(why)));
    }
    Ok(folder)
}

/// A function that imports NumPy and what else is in that set.
fn function(parent: &Path, set: u8) -> Result<PathBuf, SuiteError> {
    let folder = parent.join(format!("set-{set}"));
    let others = OTHERS.iter().enumerate().filter(|(bit, _)| set & (1 << bit) != 0).map(|(_, name)| *name);
    let names: Vec<&str> = ["numpy"].into_iter().chain(others).collect();
    let manifest = format!(
        "name = \"numbers\"\nruntime = \"python\"\nhandler = \"numbers_:main\"\npackages = {names:?}\n"
    );
    let code = format!(
        "import {}\n\ndef main():\n    return {{\"sum\": float(numpy.arange(10).sum())}}\n",
        names.join(", ")
    );
    let write = || {
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("spry.toml"), manifest)?;
        fs::write(folder.join("numbers_.py"), code)
    };
    write().map_err(process_error("a function's folder"))?;
    Ok(folder)
}

fn node(work: &Work<'_>, programs: &Programs, settings: &str, stop: &Stop) -> Result<Shown, SuiteError> {
    let packages = format!("[packages]\nindex = \"none\"\nfind_links = {:?}\n", work.wheels);
    let node = Node::start_with(programs, &(packages + settings), stop)?;
    let folders = (0..work.sets).map(|set| function(node.folder(), set));
    let folders: Vec<PathBuf> = folders.collect::<Result<_, _>>()?;
    let names: Vec<(String, &PathBuf)> =
        (0..work.functions).map(|at| (format!("f{at}"), &folders[at % folders.len()])).collect();
    for (name, folder) in &names {
        node.deploy_file(folder, name, &[])?;
        pause(Duration::ZERO, stop)?;
    }
    let on_layers = settings.is_empty();
    if on_layers {
        let began = Instant::now();
        while !have_all(&layers(&node)?, &names) {
            if began.elapsed() > PATIENCE {
                let what = format!("no layer was made: {:?}", layers(&node)?);
                return Err(NodeError::Warm { path: "spry status".to_owned(), what }.into());
            }
            pause(LOOK, stop)?;
        }
    }
    let mut starts = Vec::with_capacity(names.len());
    for (name, folder) in &names {
        node.deploy_file(folder, name, &[])?;
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
    let layers = layers(&node)?;
    let layers_mib = layers.iter().map(bytes).sum();
    Ok(Shown { starts, pss_mib: pss_kib / 1024.0, layers_mib, layers: layers.len() })
}

/// Whether there is one for each of the functions.
fn have_all(layers: &[Value], functions: &[(String, &PathBuf)]) -> bool {
    let made = layers.iter().filter(|layer| layer.get("problem").is_none());
    let users = made.filter_map(|layer| layer["functions"].as_array()).flatten();
    let users: Vec<&str> = users.filter_map(Value::as_str).collect();
    functions.iter().all(|(name, _)| users.contains(&name.as_str()))
}

fn layers(node: &Node) -> Result<Vec<Value>, SuiteError> {
    let status = json(node, &["--output", "json", "status"])?;
    Ok(status["layers"].as_array().cloned().unwrap_or_default())
}

fn json(node: &Node, arguments: &[&str]) -> Result<Value, SuiteError> {
    let text = node.spry(arguments)?;
    serde_json::from_str(&text).map_err(|error| process_error("spry's answer")(error.into()))
}
