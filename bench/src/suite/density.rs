//! `density`: what an idle instance takes, alone and among others of its function, and a node full of them: functions deployed,
//! each called once, then each called again.
//!
//! Memory is PSS (`smaps_rollup`): a page that several processes map counts for each by its share. So it depends on who else is
//! there: a function that is alone on a node pays for half of the interpreter's code, and its first instance for all pages of the
//! frozen file that its zygote hasn't looked at since, though these are there once. What is a process's own whoever
//! else is there is told beside it (`Anonymous`), and what an instance takes on a full node.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::{SuiteError, TIMEOUT, pause, process_error};
use crate::load::Target;
use crate::node::{Function, Node, NodeError, Programs};
use crate::report::{Bar, Row};
use crate::stop::Stop;
use crate::{http1, process};

const BENCH: &str = "density";
/// Of `smaps_rollup`.
const PSS: &str = "Pss:";
const ANONYMOUS: &str = "Anonymous:";
/// Instances of one function side by side.
const SEVERAL: usize = 10;
/// What a call leaves to do is done by then.
const SETTLE: Duration = Duration::from_secs(1);
/// Room for the Python functions beside the many, whose limits together are far beyond any machine.
const SETTINGS: &str = "[queue]\nnode = 8192\n[node]\nmemory_budget = \"4TiB\"\n";

/// How much.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Functions on the full node (native ones).
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    pub functions: u16,
}

/// Runs it.
pub fn run(options: &Options, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let mut rows = singles(programs, stop)?;
    rows.extend(full(usize::from(options.functions), programs, stop)?);
    Ok(rows)
}

/// One function at a time: its zygote, and its idle instance after one call.
fn singles(programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let mut rows = Vec::new();
    for (case, bar) in [("native", Some(400.0)), ("Python", None), ("Python with NumPy", Some(2560.0))] {
        let node = Node::start_with(programs, SETTINGS, stop)?;
        let before = pids(&node)?;
        let mut numpy = None;
        match case {
            "native" => node.deploy(Function::NativeNop, "one")?,
            "Python" => node.deploy(Function::PythonNop, "one")?,
            _ => {
                let folder = with_numpy(node.folder())?;
                if let Err(error) = node.deploy_file(&folder, "one", &[]) {
                    eprintln!("{BENCH}: {case} is left out: {error}");
                    continue;
                }
                numpy = Some(folder);
            }
        }
        let with_zygote = pids(&node)?;
        call(&node, "one")?;
        pause(SETTLE, stop)?;
        let with_instance = pids(&node)?;
        let kib = |from: &BTreeSet<i32>, to: &BTreeSet<i32>, what: &str| -> f64 {
            to.difference(from).filter_map(|pid| rollup_kib(*pid, what)).sum()
        };
        let row = |metric, value| Row::new(BENCH, case, metric, value, "KiB");
        let pss = row("PSS of an idle instance, alone", kib(&with_zygote, &with_instance, PSS));
        rows.push(bar.map_or(pss.clone(), |bar| pss.must(Bar::AtMost(bar))));
        rows.push(row("of which nobody else has", kib(&with_zygote, &with_instance, ANONYMOUS)));
        rows.push(row("PSS of its zygote and their init", kib(&before, &with_zygote, PSS)));
        node.spry(&["remove", "one"])?;
        let least = format!("scale.min={SEVERAL}");
        match &numpy {
            None if case == "native" => node.deploy_with(Function::NativeNop, "ten", &[&least])?,
            None => node.deploy_with(Function::PythonNop, "ten", &[&least])?,
            Some(folder) => node.deploy_file(folder, "ten", &[&least])?,
        }
        let all = settled(&node, before.len() + SEVERAL + 1, stop)?;
        // What they come from is older.
        let born: BTreeSet<i32> =
            all.iter().rev().copied().filter(|pid| !before.contains(pid)).take(SEVERAL).collect();
        let row = |metric, value| Row::new(BENCH, case, metric, value / born.len().max(1) as f64, "KiB");
        let pss = row("PSS of an idle instance, one of ten, not called yet", kib(&before, &born, PSS));
        rows.push(bar.map_or(pss.clone(), |bar| pss.must(Bar::AtMost(bar))));
        rows.push(row(
            "of which nobody else has, one of ten, not called yet",
            kib(&before, &born, ANONYMOUS),
        ));
    }
    Ok(rows)
}

fn full(functions: usize, programs: &Programs, stop: &Stop) -> Result<Vec<Row>, SuiteError> {
    let node = Node::start_with(programs, SETTINGS, stop)?;
    let empty = pss_kib(node.pid().as_raw()).unwrap_or(0.0);
    let available = available_mib();
    let began = Instant::now();
    for index in 0..functions {
        node.deploy(Function::NativeNop, &format!("f{index}"))?;
        call(&node, &format!("f{index}"))?;
        pause(Duration::ZERO, stop)?;
    }
    let took = began.elapsed().as_secs_f64();
    pause(SETTLE, stop)?;
    let tree = pids(&node)?;
    let total: f64 = tree.iter().filter_map(|pid| pss_kib(*pid)).sum();
    let instances: f64 = instances(&node, &tree, functions).into_iter().filter_map(pss_kib).sum();
    let of_functions = total - pss_kib(node.pid().as_raw()).unwrap_or(0.0);
    let mut times = Vec::with_capacity(functions);
    for index in 0..functions {
        let at = Instant::now();
        call(&node, &format!("f{index}"))?;
        times.push(at.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    let case = format!("{functions} functions, {functions} instances");
    let row = |metric, value, unit| Row::new(BENCH, case.as_str(), metric, value, unit);
    Ok(vec![
        row("processes", tree.len() as f64, "").must(Bar::AtLeast((2 * functions) as f64)),
        row("PSS of all", total / 1024.0, "MiB"),
        row("PSS of a zygote, its idle instance and their init", of_functions / functions as f64, "KiB"),
        row("PSS of an idle instance, among all", instances / functions as f64, "KiB")
            .must(Bar::AtMost(400.0)),
        row("PSS of spryd", pss_kib(node.pid().as_raw()).unwrap_or(0.0) / 1024.0, "MiB")
            .against(empty / 1024.0),
        // page tables, kernel stacks, control groups and sockets as well
        row("memory that is gone", available - available_mib(), "MiB"),
        row("deploy and first call", took * 1e3 / functions as f64, "ms"),
        row("call, p50, a connection each", times[times.len() / 2], "us"),
        row("call, p99, a connection each", times[times.len() * 99 / 100], "us"),
    ])
}

/// The last of each function's processes, which were begun one function after the other.
fn instances(node: &Node, tree: &BTreeSet<i32>, functions: usize) -> Vec<i32> {
    let of_functions: Vec<i32> = tree.iter().copied().filter(|pid| *pid != node.pid().as_raw()).collect();
    let each = (of_functions.len() / functions.max(1)).max(1);
    of_functions.chunks(each).filter_map(|one| one.last().copied()).collect()
}

/// Waits until so many processes are there; returns them.
fn settled(node: &Node, processes: usize, stop: &Stop) -> Result<BTreeSet<i32>, SuiteError> {
    let until = Instant::now() + TIMEOUT;
    loop {
        let now = pids(node)?;
        if now.len() >= processes || Instant::now() > until {
            pause(SETTLE, stop)?;
            return pids(node);
        }
        pause(Duration::from_millis(20), stop)?;
    }
}

pub(super) fn call(node: &Node, name: &str) -> Result<(), SuiteError> {
    let path = format!("/function/{name}");
    let request = Target::new(node.address, "GET", &path, b"", b"".as_slice().into()).request;
    let what = match http1::call(node.address, &request, TIMEOUT) {
        Ok((head, _)) if head.status == 200 => return Ok(()),
        Ok((head, body)) => format!("status {}: {}", head.status, String::from_utf8_lossy(&body)),
        Err(error) => error.to_string(),
    };
    Err(NodeError::Warm { path, what }.into())
}

pub(super) fn pids(node: &Node) -> Result<BTreeSet<i32>, SuiteError> {
    let tree = process::tree(node.pid()).map_err(process_error("spryd"))?;
    Ok(tree.into_iter().map(|process| Pid::as_raw(process.pid)).collect())
}

/// `None`: it has ended.
pub(super) fn pss_kib(pid: i32) -> Option<f64> {
    rollup_kib(pid, PSS)
}

fn rollup_kib(pid: i32, what: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(what))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

fn available_mib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

/// A function that imports NumPy, which spryd installs.
pub(super) fn with_numpy(parent: &Path) -> Result<std::path::PathBuf, SuiteError> {
    let folder = parent.join("with-numpy");
    let files = [
        (
            "spry.toml",
            "name = \"numbers\"\nruntime = \"python\"\nhandler = \"numbers_:main\"\npackages = [\"numpy\"]\n",
        ),
        ("numbers_.py", "import numpy\n\ndef main():\n    return {\"sum\": float(numpy.arange(10).sum())}\n"),
    ];
    let write = || {
        fs::create_dir_all(&folder)?;
        files.iter().try_for_each(|(name, text)| fs::write(folder.join(name), text))
    };
    write().map_err(process_error("a function's folder"))?;
    Ok(folder)
}
