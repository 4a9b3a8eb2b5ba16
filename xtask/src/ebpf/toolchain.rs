//! What stable Rust lacks to build BPF programs: core's sources, a core library, a linker.
//!
//! Each step leaves a stamp with all that its result depends on; a stamp that still fits means that there is
//! nothing to do. A step that is interrupted leaves no stamp and is done again from its beginning.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CPU, TARGET};
use crate::failure::Failure;
use crate::process::{self, run_step, step};
use crate::rust_src;

/// The compiler that the recipe is for.
const RUSTC: &str = "rustc 1.95.0 ";
/// The parts of the library that core is made of.
const PARTS: [&str; 4] =
    ["core", "stdarch/crates/core_arch", "portable-simd/crates/core_simd", "compiler-builtins"];
/// The linker, and the feature that says which LLVM it links against: rustc 1.95's.
const LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVM: &str = "llvm-22";

/// The object is compared byte for byte, so another compiler won't do.
pub(super) fn compiler_is_the_pinned_one() -> Result<(), Failure> {
    let version = process::output(rustc().arg("--version"))?;
    if version.starts_with(RUSTC) {
        return Ok(());
    }
    let found = format!(
        "this is {}; the checked-in object was built by {RUSTC}(install that one to reproduce it)",
        version.trim()
    );
    Err(Failure::Expectation { what: "check the compiler", found })
}

/// The sources of core, from Debian.
pub(super) fn sources(work: &Path) -> Result<PathBuf, Failure> {
    let folder = work.join("rust-src");
    step(&folder, rust_src::SHA256, || rust_src::unpack(&work.join("apt"), &folder, &PARTS))?;
    Ok(folder)
}

/// core and compiler_builtins for the BPF target, as rustc looks for them.
pub(super) fn sysroot(work: &Path, sources: &Path) -> Result<PathBuf, Failure> {
    let folder = work.join("sysroot");
    let mut flags: Vec<String> =
        ["--edition=2024", "--crate-type=rlib", "--cap-lints=allow"].map(str::to_owned).to_vec();
    flags.push(format!("--target={TARGET}"));
    for option in ["panic=abort", "opt-level=3", "codegen-units=1", "debuginfo=2", "embed-bitcode=no"] {
        flags.push(format!("-C{option}"));
    }
    flags.push(format!("-Ctarget-cpu={CPU}"));
    flags.push("-Zforce-unstable-if-unmarked".to_owned());
    let recipe = format!("{RUSTC}{} {}", rust_src::SHA256, flags.join(" "));
    step(&folder, &recipe, || {
        eprintln!("ebpf: compiling core for {TARGET} (about 15 s)");
        let libraries = folder.join("lib/rustlib").join(TARGET).join("lib");
        fs::create_dir_all(&libraries).map_err(|source| Failure::io("create", &libraries, source))?;
        let compile = |name: &str, root: &str, more: &[&str]| {
            let mut compiler = rustc();
            compiler.env("RUSTC_BOOTSTRAP", "1").current_dir(sources);
            compiler.args(["--crate-name", name, root]).args(&flags).args(more);
            // The paths that core's panic messages and debug information name.
            compiler.arg(format!("--remap-path-prefix={}=/rust/library", sources.display()));
            compiler.arg("--out-dir").arg(&libraries);
            if name != "core" {
                compiler.arg("--sysroot").arg(&folder);
            }
            run_step(&mut compiler)
        };
        compile("core", "core/src/lib.rs", &[])?;
        let features = ["--cfg=feature=\"compiler-builtins\"", "--cfg=feature=\"unmangled-names\""];
        compile("compiler_builtins", "compiler-builtins/compiler-builtins/src/lib.rs", &features)
    })?;
    Ok(folder)
}

/// bpf-linker, built against the LLVM library within rustc's own installation.
pub(super) fn linker(work: &Path) -> Result<PathBuf, Failure> {
    let folder = work.join("linker");
    let llvm = work.join("llvm/lib");
    let toolchain = process::output(rustc().args(["--print", "sysroot"]))?;
    let libraries = Path::new(toolchain.trim()).join("lib");
    let name = "libLLVM.so.22.1-rust-1.95.0-stable";
    // The linker is linked with the path of `llvm`, hence both in the stamp.
    let recipe = format!("{LINKER_VERSION} {LINKER_LLVM} {} {}", libraries.display(), llvm.display());
    step(&folder, &recipe, || {
        eprintln!("ebpf: installing bpf-linker {LINKER_VERSION} (about a minute)");
        if !libraries.join(name).is_file() {
            let found = format!("{} has no {name}; is this rustup's toolchain?", libraries.display());
            return Err(Failure::Expectation { what: "find rustc's LLVM", found });
        }
        fs::create_dir_all(&llvm).map_err(|source| Failure::io("create", &llvm, source))?;
        for link in ["libLLVM.so", name] {
            let link = llvm.join(link);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(libraries.join(name), &link)
                .map_err(|source| Failure::io("link", &link, source))?;
        }
        let mut cargo = process::cargo(["install", "bpf-linker", "--locked", "--no-default-features"]);
        cargo.args(["--version", LINKER_VERSION, "--features", LINKER_LLVM, "--root"]).arg(&folder);
        cargo.arg("--target-dir").arg(work.join("linker-build"));
        cargo
            .env("LLVM_PREFIX", work.join("llvm"))
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        run_step(&mut cargo)?;
        let _ = fs::remove_dir_all(work.join("linker-build"));
        Ok(())
    })?;
    Ok(folder.join("bin/bpf-linker"))
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}
