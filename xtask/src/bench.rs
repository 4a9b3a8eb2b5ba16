//! `cargo xtask bench NAME`: builds everything in release mode and starts the benchmark of that name.
//!
//! The benchmarks themselves are in `bench/`; this only makes sure that what they measure is there and
//! is the same code that a user would run. Two kinds:
//!
//! - whole nodes under load: a command of the program `spry-bench`;
//! - single operations, timed by criterion: `cargo bench`, whose results `spry-bench micro` then makes a table
//!   of. They go to a folder of their own that is emptied before, so that no older run's are among them.

use std::fs;
use std::io::ErrorKind;

use crate::artifacts::{self, Profile};
use crate::failure::Failure;
use crate::{process, setup};

/// Every benchmark, and for criterion's its bench targets.
const BENCHES: [(&str, Kind); 16] = [
    ("ipc", Kind::Criterion(&["transports", "allocator", "descriptor"])),
    ("fork", Kind::Criterion(&["fork"])),
    ("http", Kind::Node),
    ("chain", Kind::Node),
    ("isolation", Kind::Node),
    ("keepalive", Kind::Node),
    ("soak", Kind::Node),
    ("redeploy", Kind::Node),
    ("chaos", Kind::Node),
    ("idle", Kind::Node),
    ("async", Kind::Node),
    ("density", Kind::Node),
    ("layers", Kind::Node),
    ("overload", Kind::Node),
    ("sched", Kind::Node),
    ("load", Kind::Node),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Bench targets of the crate spry-bench.
    Criterion(&'static [&'static str]),
    /// A command of the program spry-bench.
    Node,
}

/// One benchmark and what it is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BenchOptions {
    name: &'static str,
    kind: Kind,
    /// For criterion's benches: where the rows go. (A node's bench takes that from its arguments.)
    json: Option<String>,
    /// What else was given: criterion's or the benchmark's own options.
    args: Vec<String>,
}

impl BenchOptions {
    /// Parses what follows `bench`.
    pub(crate) fn parse(args: Vec<String>) -> Result<Self, Failure> {
        let mut args = args.into_iter();
        let known = || BENCHES.map(|(name, _)| name).join(", ");
        let Some(wanted) = args.next() else {
            return Err(Failure::Usage(format!("bench needs a NAME, one of: {}", known())));
        };
        let Some((name, kind)) = BENCHES.into_iter().find(|(name, _)| *name == wanted) else {
            return Err(Failure::Usage(format!("there is no bench `{wanted}`, only: {}", known())));
        };
        let mut options = Self { name, kind, json: None, args: Vec::new() };
        if kind == Kind::Node {
            options.args.extend(args);
            return Ok(options);
        }
        while let Some(arg) = args.next() {
            if arg == "--json" {
                let file = args.next().ok_or_else(|| Failure::Usage("--json needs a FILE".into()))?;
                options.json = Some(file);
            } else if let Some(file) = arg.strip_prefix("--json=") {
                options.json = Some(file.to_owned());
            } else {
                options.args.push(arg);
            }
        }
        Ok(options)
    }
}

/// Runs one benchmark.
pub(crate) fn run(options: &BenchOptions) -> Result<(), Failure> {
    setup::packages()?;
    artifacts::build(Profile::Release, &["example-nop", "example-echo"])?;
    if matches!(options.name, "chain" | "fork" | "sched") {
        artifacts::build_functions(&["bench-functions"])?;
    }
    match options.kind {
        Kind::Node => process::run(report(options.name).args(&options.args)),
        Kind::Criterion(targets) => criterion(options, targets),
    }
}

fn criterion(options: &BenchOptions, targets: &[&str]) -> Result<(), Failure> {
    let results = process::target_dir().join("criterion-of-xtask").join(options.name);
    match fs::remove_dir_all(&results) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Failure::io("empty", &results, error));
        }
        _ => {}
    }
    fs::create_dir_all(&results).map_err(|error| Failure::io("make", &results, error))?;
    let mut bench = process::cargo(["bench", "--package", "spry-bench"]);
    for target in targets {
        bench.args(["--bench", target]);
    }
    process::run(bench.arg("--").args(&options.args).env("CRITERION_HOME", &results))?;
    let mut report = report("micro");
    report.arg(options.name).arg(&results);
    if let Some(file) = &options.json {
        report.args(["--json", file]);
    }
    process::run(&mut report)
}

/// The program spry-bench with this command.
fn report(command: &str) -> std::process::Command {
    process::cargo(["run", "--release", "--package", "spry-bench", "--", command])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<BenchOptions, Failure> {
        BenchOptions::parse(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn arguments_go_where_they_are_understood() {
        let http = parsed("http --json rows.json --quick").expect("http");
        assert_eq!(http.args, ["--json", "rows.json", "--quick"]);
        for line in ["ipc --json rows.json --quick", "ipc --quick --json=rows.json"] {
            let ipc = parsed(line).expect(line);
            assert_eq!((ipc.json.as_deref(), &*ipc.args), (Some("rows.json"), &["--quick".to_owned()][..]));
        }
    }

    #[test]
    fn without_a_name_or_with_an_unknown_one_all_names_are_listed() {
        for line in ["", "dance", "--json x"] {
            let failure = parsed(line).expect_err(line);
            assert_eq!(failure.exit_code(), 64);
            for (name, _) in BENCHES {
                assert!(failure.to_string().contains(name), "{name}: {failure}");
            }
        }
        assert_eq!(parsed("fork --json").expect_err("no file").exit_code(), 64);
    }

    #[test]
    fn every_benchmark_is_in_the_help_and_on_its_page() {
        let page =
            fs::read_to_string(process::root().join("docs/benchmarks.md")).expect("docs/benchmarks.md");
        for (name, kind) in BENCHES {
            let help = crate::cli::USAGE;
            assert!(help.split_whitespace().any(|word| word == name), "{name} is not in the help");
            assert!(page.contains(&format!("\n| `{name}` |")), "{name} is not in docs/benchmarks.md");
            let Kind::Criterion(targets) = kind else { continue };
            for target in targets {
                let file = process::root().join(format!("bench/benches/{target}.rs"));
                assert!(file.is_file(), "{} is not there", file.display());
            }
        }
    }
}
