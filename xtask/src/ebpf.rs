//! `cargo xtask ebpf`: builds what runs in the kernel from source: the bus and the scheduler's signals, on stable Rust, and the
//! scheduler ([`scx`]).
//!
//! The objects are checked in ([`OBJECTS`]), so that a plain `cargo build` needs none of this. This command
//! makes them anew, byte for byte: with `--check` it compares instead of copying, and CI does that.
//!
//! Stable Rust comes without a core library for the BPF target, and no linker for it is a component of the
//! toolchain. So, once, under `target/ebpf`:
//!
//! | step | what | where |
//! |---|---|---|
//! | [`toolchain::sources`] | Debian's package of the sources of core, of exactly our compiler | `rust-src` |
//! | [`toolchain::sysroot`] | core and compiler_builtins for `bpfel-unknown-none` | `sysroot` |
//! | [`toolchain::linker`] | bpf-linker, against the LLVM that rustc itself brings | `linker`, `llvm` |
//! | [`build`] | `ebpf/programs`, `ebpf/signals` | `programs` |
//!
//! The first three are done once and found again; nothing of the machine's toolchain or apt is changed.
//! `RUSTC_BOOTSTRAP=1` lets the stable compiler build core, and use `asm!` for BPF, in these steps only.

mod scx;
mod toolchain;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::process;

/// The checked-in objects, from the repository's root, and the programs that they are made of.
const OBJECTS: [(&str, &str); 2] =
    [("ebpf/spry-bus.bpf.o", "spry-bus"), ("ebpf/spry-signals.bpf.o", "spry-signals")];
/// What the programs are compiled for: little-endian BPF.
const TARGET: &str = "bpfel-unknown-none";
/// The instruction set: with atomic compare-and-swap (Linux 5.12).
const CPU: &str = "v3";

/// What the build needs beside this repository.
struct Tools {
    work: PathBuf,
    sysroot: PathBuf,
    linker: PathBuf,
}

/// Gets what the build needs, once; later calls find it.
pub(crate) fn setup() -> Result<(), Failure> {
    tools().map(|_| ())
}

fn tools() -> Result<Tools, Failure> {
    let work = process::target_dir().join("ebpf");
    fs::create_dir_all(&work).map_err(|source| Failure::io("create", &work, source))?;
    let work = work.canonicalize().map_err(|source| Failure::io("find", &work, source))?;
    toolchain::compiler_is_the_pinned_one()?;
    let sources = toolchain::sources(&work)?;
    let sysroot = toolchain::sysroot(&work, &sources)?;
    let linker = toolchain::linker(&work)?;
    Ok(Tools { work, sysroot, linker })
}

/// Rebuilds all objects. `check`: fails unless they are those checked in; otherwise puts them there.
pub(crate) fn run(check: bool) -> Result<(), Failure> {
    // All, so that one run says what is wrong with any.
    let scheduler = scx::build().and_then(|built| compare(&built, scx::OBJECT, check));
    let folder = build(&tools()?)?;
    let programs = OBJECTS.map(|(object, program)| compare(&folder.join(program), object, check));
    programs.into_iter().collect::<Result<(), _>>().and(scheduler)
}

/// Compares a built object with the one checked in. `check`: fails when they differ; otherwise puts it there.
fn compare(built: &Path, name: &str, check: bool) -> Result<(), Failure> {
    let checked_in = process::root().join(name);
    let new = fs::read(built).map_err(|source| Failure::io("read", built, source))?;
    let old = fs::read(&checked_in).unwrap_or_default();
    if new == old {
        eprintln!("ebpf: {name} is what its sources give ({} bytes)", new.len());
        return Ok(());
    }
    if check {
        let found = format!(
            "{name} ({} bytes) is not what its sources give ({} bytes, {}). Run `cargo xtask ebpf` and commit it",
            old.len(),
            new.len(),
            built.display()
        );
        return Err(Failure::Expectation { what: "compare the eBPF object", found });
    }
    fs::write(&checked_in, &new).map_err(|source| Failure::io("write", &checked_in, source))?;
    eprintln!("ebpf: wrote {name} ({} bytes)", new.len());
    Ok(())
}

/// Compiles and links the programs; the folder that they are in.
fn build(Tools { work, sysroot, linker }: &Tools) -> Result<PathBuf, Failure> {
    let root = process::root();
    let target_dir = work.join("programs");
    let manifest = root.join("ebpf/Cargo.toml");
    let mut flags: Vec<OsString> =
        ["-Cdebuginfo=2", "-Clink-arg=--btf"].into_iter().map(OsString::from).collect();
    flags.push(format!("-Ctarget-cpu={CPU}").into());
    // The kernel registers' layout differs between machines; our programs don't look at it. Fixed, so that
    // every machine builds the same bytes.
    flags.push("--cfg=bpf_target_arch=\"x86_64\"".into());
    flags.push(joined("--sysroot=", sysroot));
    flags.push(joined("-Clinker=", linker));
    // Later ones win, so the narrower paths come last.
    for (from, to) in remapped(root, work) {
        let mut flag = joined("--remap-path-prefix=", &from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    }
    let mut cargo = process::cargo(["build", "--release", "--workspace", "--locked", "--target", TARGET]);
    cargo.arg("--manifest-path").arg(&manifest).arg("--target-dir").arg(&target_dir);
    cargo.current_dir(root.join("ebpf"));
    for variable in ["RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(variable);
    }
    // Whoever has set it for other builds would get other bytes here.
    cargo.env("CARGO_INCREMENTAL", "0");
    cargo
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(std::ffi::OsStr::new("\x1f")));
    eprintln!("ebpf: building ebpf/programs");
    process::run_step(&mut cargo)?;
    Ok(target_dir.join(TARGET).join("release"))
}

/// Folders whose names must not get into the object, and what stands there instead.
fn remapped(root: &Path, work: &Path) -> Vec<(PathBuf, &'static str)> {
    let mut paths = vec![(root.to_owned(), "/spry"), (work.to_owned(), "/spry/target/ebpf")];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    if let Some(home) = home {
        // The folder below `src` is named after the registry, which may be a mirror.
        let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
        paths.extend(registries.map(|registry| (registry.path(), "/crates")));
    }
    paths
}

fn joined(flag: &str, path: &Path) -> OsString {
    let mut word = OsString::from(flag);
    word.push(path);
    word
}
