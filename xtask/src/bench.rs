//! `cargo xtask bench NAME`: builds everything in release mode and starts the benchmark of that name.
//!
//! The benchmarks themselves are in `bench/`; this only makes sure that what they measure is there and
//! is the same code that a user would run.

use crate::artifacts::{self, Profile};
use crate::failure::Failure;
use crate::{process, setup};

/// Runs one benchmark; all arguments go to it.
pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    setup::packages()?;
    artifacts::build(Profile::Release, &["example-nop", "example-echo"])?;
    let mut bench = process::cargo(["run", "--release", "--package", "spry-bench", "--"]);
    process::run(bench.args(args))
}
