//! Builds what spryd carries inside itself: the native loader and Python's extension module.
//!
//! They are packages of this workspace, but other programs than spryd, with another profile: always optimised,
//! since they are on every invocation's path, and small, since every function process maps them. Cargo has no
//! stable way to say "this package's artifact, built so, as a file", so this calls cargo once more, with
//! a target folder of their own (the outer one is locked while this runs).
//!
//! What is run on a plain `cargo build` is exactly this; nothing has to be built by hand before.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the sources of the runtimes are, from the workspace's root.
const SOURCES: [&str; 13] = [
    "Cargo.toml",
    "Cargo.lock",
    "ebpf/common/Cargo.toml",
    "ebpf/common/src",
    "node/runtime/core/Cargo.toml",
    "node/runtime/core/src",
    "node/runtime/native",
    "node/runtime/python",
    "node/runtime/wire",
    "node/sdk/Cargo.toml",
    "node/sdk/src",
    "shm-bus/Cargo.toml",
    "shm-bus/src",
];

/// Settings of the outer build that must not reach the inner one: flags (`--cfg loom`, a linter's wrapper) would
/// change what spryd carries, or have everything built again at every other command.
const OUTER: [&str; 6] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_TARGET_DIR",
];

fn main() {
    let root = variable("CARGO_MANIFEST_DIR").parent().expect("node/ is in the workspace").to_owned();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let (out, target) = (variable("OUT_DIR"), env::var("TARGET").expect("cargo sets TARGET"));
    let shared = shared_folder(&out, &target);
    build(&root, &shared, &target);
    for (program, variable) in [("spry-native", "SPRY_NATIVE_LOADER"), ("lib_spry.so", "SPRY_PYTHON_MODULE")]
    {
        let (built, own) = (shared.join(&target).join("release").join(program), out.join(program));
        // (Another command may build them anew at any time.)
        fs::copy(&built, &own).unwrap_or_else(|error| panic!("copy {}: {error}", built.display()));
        println!("cargo::rustc-env={variable}={}", own.display());
    }
}

/// Where the runtimes are built for whatever this package is built for: they are always the same, and take a minute.
/// Beside the folders of cargo's profiles: `OUT_DIR` is `target[/TARGET]/PROFILE/build/NAME/out`.
fn shared_folder(out: &Path, target: &str) -> PathBuf {
    let of_target = out.ancestors().nth(4).expect("cargo's own layout");
    let whole = if of_target.ends_with(target) { of_target.parent().expect("as before") } else { of_target };
    whole.join("runtime")
}

fn build(root: &Path, out: &Path, target: &str) {
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--release", "--quiet", "--target", target, "--target-dir"])
        .arg(out)
        .args(["--package", "spry-runtime-native", "--package", "spry-runtime-python"])
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3");
    if root.join("Cargo.lock").exists() {
        cargo.arg("--locked");
    }
    // What cargo tells a build script about this package means nothing to the inner packages.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if OUTER.contains(&&*name) || name.starts_with("CARGO_FEATURE_") || name.starts_with("CARGO_CFG_") {
            cargo.env_remove(&*name);
        }
    }
    let status = cargo.status().expect("start cargo");
    assert!(status.success(), "the function runtimes don't build ({status}); see above, or run: {cargo:?}");
}

fn variable(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}")).into()
}
