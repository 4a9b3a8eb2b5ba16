//! Building what a node consists of, and where it then lies.
//!
//! cargo builds a test's or a program's own package, but not the daemon and the functions' libraries that it
//! starts; so whatever starts a node goes through here first.

use std::path::PathBuf;

use crate::failure::Failure;
use crate::process;

/// How to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As `cargo test` does.
    Dev,
    /// As a user gets it.
    Release,
}

/// Builds the node and these examples.
pub(crate) fn build(profile: Profile, examples: &[&str]) -> Result<(), Failure> {
    let mut build = process::cargo(["build"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    // The runtimes are built by spry-node's build script and travel inside spryd.
    build.args(["--package", "spry-node"]);
    for example in examples {
        build.args(["--package", example]);
    }
    process::run(&mut build)
}

/// The same with all tests, for `cargo test --workspace`: with the features that their dependencies have together, or most of
/// it would be built twice.
pub(crate) fn build_with_tests() -> Result<(), Failure> {
    process::run(&mut process::cargo(["build", "--workspace", "--lib", "--bins", "--tests"]))
}

/// Builds the sched_ext scheduler's loader, which plain builds go without; see [`setup::scheduler`](crate::setup::scheduler).
pub(crate) fn build_scheduler(profile: Profile) -> Result<(), Failure> {
    let mut build =
        process::cargo(["build", "--package", "spry-scx", "--features", "loader", "--bin", "spry-scx"]);
    if profile == Profile::Release {
        build.arg("--release");
    }
    process::run(&mut build)
}

/// Builds, in release mode, all functions of packages that hold several of them, as cargo's example targets.
pub(crate) fn build_functions(packages: &[&str]) -> Result<(), Failure> {
    let mut build = process::cargo(["build", "--release", "--examples"]);
    for package in packages {
        build.args(["--package", package]);
    }
    process::run(&mut build)
}

/// A program or library made by a release build.
pub(crate) fn release(name: &str) -> PathBuf {
    process::target_dir().join("release").join(name)
}
