//! The sched_ext scheduler's object: C, compiled by Debian's clang 19 (14 gets the signatures of kernel functions wrong).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::failure::Failure;
use crate::process::{self, run_step};
use crate::setup;

/// The checked-in object, from the repository's root.
pub(super) const OBJECT: &str = "ebpf/spry-scx.bpf.o";
const COMPILER: &str = "clang-19";

/// Compiles it, without a path of this machine in it.
pub(super) fn build() -> Result<PathBuf, Failure> {
    setup::scheduler()?;
    let folder = process::target_dir().join("ebpf");
    fs::create_dir_all(&folder).map_err(|source| Failure::io("create", &folder, source))?;
    let object = folder.join("spry-scx.bpf.o");
    let mut clang = Command::new(COMPILER);
    clang.args(["-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"]);
    clang.args(["-fdebug-compilation-dir=/spry/ebpf", "-c", "scx/bpf/spry.bpf.c", "-o"]).arg(&object);
    eprintln!("ebpf: building ebpf/scx");
    run_step(clang.current_dir(process::root().join("ebpf")))?;
    Ok(object)
}
