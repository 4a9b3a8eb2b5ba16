//! Programs under test: the runtimes, by cargo; functions in C and Rust, by their compilers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Set where all of it was built beforehand, and no cargo is.
const IS_BUILT: &str = "SPRY_TEST_IS_BUILT";

/// Where cargo puts what the tests run (`target/debug`).
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let test = std::env::current_exe().expect("own path");
        let folder = test.ancestors().nth(2).expect("tests are in target/<profile>/deps").to_owned();
        if std::env::var_os(IS_BUILT).is_some() {
            return folder;
        }
        let packages = ["spry-runtime-native", "spry-runtime-python", "example-nop", "example-echo"];
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        for package in packages {
            cargo.args(["--package", package]);
        }
        assert!(cargo.status().expect("start cargo").success(), "{cargo:?}");
        let mut faults = Command::new(env!("CARGO"));
        faults.args(["build", "--quiet", "--package", "spry-fn", "--example", "faults"]);
        assert!(faults.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("start cargo").success());
        folder
    })
}

/// The runtimes: of `SPRY_TEST_RUNTIMES` when set (a release build, for measuring), else cargo's.
pub(super) fn native_loader() -> PathBuf {
    runtimes().join("spry-native")
}

pub(super) fn python_module() -> PathBuf {
    runtimes().join("lib_spry.so")
}

fn runtimes() -> PathBuf {
    std::env::var_os("SPRY_TEST_RUNTIMES").map_or_else(|| built().to_owned(), PathBuf::from)
}

/// The SDK's example that fails in every way.
pub(crate) fn faults_library() -> PathBuf {
    built().join("examples/libfaults.so")
}

/// An example function of the workspace, such as `example_nop`.
pub(crate) fn rust_library(name: &str) -> PathBuf {
    built().join(format!("lib{name}.so"))
}

/// Compiles `tests/functions/<name>.c` into `dir`.
pub(crate) fn c_library(dir: &Path, name: &str) -> PathBuf {
    c_library_without(dir, name, &[])
}

/// The same, with compiler options.
pub(crate) fn c_library_without(dir: &Path, name: &str, options: &[&str]) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = dir.join(format!("{name}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"]).arg(&library);
    cc.arg("-I").arg(here.join("../../sdk/include")).arg(here.join(format!("tests/functions/{name}.c")));
    cc.args(options);
    assert!(cc.status().expect("start cc").success(), "{cc:?}");
    library
}
