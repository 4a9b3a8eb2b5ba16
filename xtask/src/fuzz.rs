//! `cargo xtask fuzz`: the fuzz targets of `shm-bus/fuzz`, for a bounded time.
//!
//! cargo-fuzz wants a nightly compiler for its sanitizer flags; `RUSTC_BOOTSTRAP=1` lets the pinned stable
//! one take them. What a target finds is kept in `shm-bus/fuzz/artifacts`.

use std::path::Path;
use std::process::Command;

use crate::cli::FuzzOptions;
use crate::failure::Failure;
use crate::process;
use crate::setup::{self, Tool};

const FOLDER: &str = "shm-bus/fuzz";

/// Fuzzes one target or all; returns how many ran.
pub(crate) fn run(options: &FuzzOptions) -> Result<u64, Failure> {
    if !Path::new(FOLDER).join("Cargo.toml").exists() {
        return Err(Failure::Expectation { what: "fuzz", found: format!("{FOLDER} has no Cargo.toml") });
    }
    setup::packages()?;
    let program = setup::tool(Tool::CargoFuzz)?;
    let targets = match &options.target {
        Some(target) => vec![target.clone()],
        None => list(&program)?,
    };
    for target in &targets {
        let mut command = cargo_fuzz(&program, "run");
        command.args([target, "--", "-print_final_stats=1", "-verbosity=0"]);
        process::run(command.arg(format!("-max_total_time={}", options.seconds)))?;
    }
    Ok(targets.len() as u64)
}

fn list(program: &Path) -> Result<Vec<String>, Failure> {
    let names = process::output(&mut cargo_fuzz(program, "list"))?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn cargo_fuzz(program: &Path, verb: &str) -> Command {
    let mut command = Command::new(program);
    command.args([verb, "--fuzz-dir", FOLDER]).env("RUSTC_BOOTSTRAP", "1");
    // Its own target folder, whatever the caller's is: other flags, other objects.
    command.env("CARGO_TARGET_DIR", process::target_dir().join("fuzz"));
    command
}
