//! `cargo xtask ci`: what must hold before a change lands, cheapest first.
//!
//! Each stage is announced and timed; the first failure ends the run and names its stage. Stages can be
//! named to run only those. The test stage is `cargo xtask test`, the same code.

use std::process::Command;

use crate::bench::BenchOptions;
use crate::cli::DemoOptions;
use crate::failure::Failure;
use crate::setup::{self, Tool};
use crate::stage::{print_table, stage};
use crate::vm::VmOptions;
use crate::{bench, deb, demo, ebpf, process, suite, vm};

/// A stage's name and its work.
type Stage = (&'static str, fn() -> Result<(), Failure>);

const STAGES: [Stage; 10] = [
    ("fmt", fmt),
    ("clippy", clippy),
    ("doc", doc),
    ("deny", deny),
    ("ebpf", ebpf_check),
    ("test", || suite::run(&[])),
    ("demo", || demo::run(&DemoOptions::default())),
    ("bench", bench_smoke),
    ("deb", || deb::run(deb::Contents::Node)),
    ("vm", || vm::run(&VmOptions::Test)),
];

/// Runs the named stages in their order, or all.
pub(crate) fn run(names: &[String]) -> Result<(), Failure> {
    if let Some(unknown) = names.iter().find(|name| STAGES.iter().all(|(known, _)| known != name)) {
        return Err(Failure::Usage(format!("ci has no stage `{unknown}`")));
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut log = Vec::new();
    let outcome = setup::packages().and_then(|()| {
        STAGES
            .iter()
            .filter(|(name, _)| wanted(name))
            .try_for_each(|(name, work)| stage(&mut log, name, work))
    });
    print_table(&log);
    outcome
}

fn fmt() -> Result<(), Failure> {
    process::run(&mut process::cargo(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<(), Failure> {
    process::run(&mut process::cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn doc() -> Result<(), Failure> {
    let mut doc = process::cargo(["doc", "--workspace", "--no-deps", "--document-private-items"]);
    // Private items are documented too, so a link to one leads somewhere.
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))
}

/// Licences, duplicates, sources. Advisories need a database that lies in a git repository; it is asked
/// for only where the machine can reach it, and the log says so when it can't.
fn deny() -> Result<(), Failure> {
    let program = setup::tool(Tool::CargoDeny)?;
    let mut check = Command::new(&program);
    process::run(check.args(["check", "bans", "licenses", "sources"]))?;
    let mut fetch = Command::new(&program);
    if process::succeeds(fetch.args(["fetch", "db"])) {
        return process::run(Command::new(&program).args(["check", "--disable-fetch", "advisories"]));
    }
    println!("deny: advisories were left out: their database (a git repository) can't be reached from here");
    Ok(())
}

fn ebpf_check() -> Result<(), Failure> {
    ebpf::run(true)
}

fn bench_smoke() -> Result<(), Failure> {
    bench::run(&BenchOptions::parse(vec!["http".into(), "--quick".into()])?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parsed(path: &str) -> toml::Table {
        fs::read_to_string(process::root().join(path)).expect(path).parse().expect(path)
    }

    #[test]
    fn every_member_inherits_the_workspaces_lints() {
        let workspace = parsed("Cargo.toml");
        let members = workspace["workspace"]["members"].as_array().expect("a list of members");
        assert!(members.len() > 10, "{members:?}");
        for member in members {
            let manifest = parsed(&format!("{}/Cargo.toml", member.as_str().expect("a path")));
            let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
            assert_eq!(
                inherits,
                Some(&toml::Value::Boolean(true)),
                "{member} has no `lints.workspace = true`"
            );
        }
    }

    #[test]
    fn every_stage_can_be_named_and_no_other() {
        let failure = run(&["fmt".into(), "dance".into()]).expect_err("there is no such stage");
        assert_eq!(failure.exit_code(), 64);
        for (name, _) in STAGES {
            assert!(crate::cli::USAGE.contains(name), "{name} is not in the help");
        }
    }

    #[test]
    fn cis_script_runs_every_stage() {
        let script = fs::read_to_string(process::root().join(".ci/run")).expect(".ci/run");
        for (name, _) in STAGES {
            let named = script.lines().any(|line| {
                let line = line.trim();
                line == "cargo xtask test" && name == "test"
                    || line.starts_with("cargo xtask ci ") && line.split(' ').any(|word| word == name)
            });
            assert!(named, ".ci/run leaves out `{name}`");
        }
    }
}
