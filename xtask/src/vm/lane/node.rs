//! The node and the sched_ext scheduler together: `node/tests/sched_ext`, with both programs as a user gets them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{shown, test_programs};
use crate::artifacts::{self, Profile};
use crate::failure::Failure;
use crate::process;
use crate::vm::guest::Guest;
use crate::vm::parts::Kernel;

const TARGET: [&str; 4] = ["--package", "spry-node", "--test", "sched_ext"];
const PROGRAMS: [&str; 3] = ["spryd", "spry", "spry-scx"];
/// What the tests deploy: the packages that have them, and the libraries that come of those.
const ECHO: (&str, &str) = ("example-echo", "libexample_echo.so");
const BURN: (&str, &str) = ("bench-functions", "examples/libbench_burn.so");
/// Where all tests run. On the other kernels only those whose outcome depends on the kernel.
const KERNEL: &str = "6.18";
const DEPENDS_ON_THE_KERNEL: &str = "falls::";

/// What was built for the guests.
pub(super) struct Node {
    tests: PathBuf,
    programs: PathBuf,
}

pub(super) fn build() -> Result<Node, Failure> {
    // No plain `cargo test` runs these, nor does a plain clippy see them.
    let mut clippy = process::cargo(["clippy"]);
    process::run(clippy.args(TARGET).args(["--", "-D", "warnings"]))?;
    let [tests] = test_programs(&TARGET, ["sched_ext"])?;
    artifacts::build(Profile::Release, &[ECHO.0])?;
    artifacts::build_functions(&[BURN.0])?;
    artifacts::build_scheduler(Profile::Release)?;
    let programs = process::target_dir().join("vm/programs");
    fs::create_dir_all(&programs).map_err(|source| Failure::io("create", &programs, source))?;
    for name in PROGRAMS {
        stripped(&artifacts::release(name), &programs.join(name))?;
    }
    Ok(Node { tests, programs })
}

/// A copy without what only debuggers read, which is most of it: the guest unpacks it into its memory.
fn stripped(program: &Path, copy: &Path) -> Result<(), Failure> {
    if process::find_program("strip").is_none() {
        return fs::copy(program, copy).map(drop).map_err(|source| Failure::io("copy", program, source));
    }
    process::run(Command::new("strip").arg("-o").arg(copy).arg(program))
}

impl Node {
    /// Takes along what the tests need.
    pub(super) fn equip(&self, guest: &mut Guest) {
        let libraries = [BURN, ECHO].map(|(_, library)| artifacts::release(library));
        guest.files.push(self.tests.clone());
        guest.files.extend(PROGRAMS.iter().map(|name| self.programs.join(name)));
        guest.files.extend(libraries.clone());
        let variables = ["SPRY_TEST_BURN", "SPRY_TEST_ECHO"].into_iter().zip(libraries.iter());
        guest.env.extend(variables.map(|(name, library)| (name.to_owned(), shown(library))));
        guest.env.push(("SPRY_TEST_PROGRAMS".into(), shown(&self.programs)));
    }

    /// The program, and which of its tests are run on this kernel.
    pub(super) fn tests(&self, kernel: &Kernel) -> (&Path, &'static str) {
        (&self.tests, if kernel.series == KERNEL { "" } else { DEPENDS_ON_THE_KERNEL })
    }
}
