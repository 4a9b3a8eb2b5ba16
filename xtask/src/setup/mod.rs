//! Making a bare Debian 12 with a Rust toolchain able to build, test and demonstrate spry.
//!
//! Everything is looked at first and only what is missing is installed, so that a second run costs
//! milliseconds. Debian packages need root; cargo tools go to `target/tools`, for this clone alone.
//!
//! What can't be had this way: a C linker, without which this very program could not have been
//! linked (`.ci/run` installs it when it is missing, and so does `apt-get install gcc libc6-dev`).

mod apt;
mod photo;
mod tools;

pub(crate) use photo::{Photo, photo};
pub(crate) use tools::{Tool, tool};

use crate::failure::Failure;
use crate::{ebpf, process};

/// `cargo xtask setup`: all that any other command needs.
pub(crate) fn everything() -> Result<(), Failure> {
    packages()?;
    for each in [Tool::CargoDeny, Tool::CargoFuzz] {
        tool(each)?;
    }
    ebpf::setup()?;
    photo()?;
    println!("setup: this machine has everything");
    Ok(())
}

/// The Debian packages, and a word when the compiler is not the pinned one.
pub(crate) fn packages() -> Result<(), Failure> {
    let version = process::output(std::process::Command::new("rustc").arg("--version"))?;
    let pinned = "1.95.";
    if !version.starts_with(&format!("rustc {pinned}")) {
        println!("setup: this is {}; the project is built and tested with {pinned}x", version.trim());
    }
    apt::install_missing(&apt::NEEDS)
}

/// What the sched_ext scheduler is built with, and nothing else: plain builds of spry go without.
pub(crate) fn scheduler() -> Result<(), Failure> {
    apt::install_missing(&apt::SCHEDULER_NEEDS)
}

/// What programs for arm64 are built with on another machine: `cargo xtask vm test arm64` alone needs it.
pub(crate) fn cross() -> Result<(), Failure> {
    apt::install_missing(&apt::CROSS_NEEDS)
}

/// What the disk of a guest with systemd is made with: `cargo xtask vm test` alone needs it.
pub(crate) fn guests() -> Result<(), Failure> {
    apt::install_missing(&apt::GUEST_NEEDS)
}
