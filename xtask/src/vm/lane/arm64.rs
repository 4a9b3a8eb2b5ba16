//! The tests on arm64: the same programs as everywhere, compiled for it, on two machines that gateways are made of.
//!
//! An emulated processor keeps the order of memory accesses of the machine that emulates it, which is stronger than its own.
//! What only weak order brings to light, no test here finds: loom does, for the ring, and reading.

use std::path::PathBuf;
use std::time::Duration;

use super::{named, shown, suite};
use crate::cross::Cross;
use crate::failure::Failure;
use crate::process;
use crate::suite::Tally;
use crate::vm::guest::Guest;
use crate::vm::parts::{ARM64_KERNELS, Kernel};

/// What is taken along, and what the tests write, is in the guest's memory.
const MEMORY_MIB: u32 = 3072;

/// Emulation on two cores takes its time: the longest took a quarter of an hour.
const TIMEOUT: Duration = Duration::from_secs(2400);
/// Of the tests of the whole node, those of chains, on each transport: each takes about a minute here.
const END_TO_END: &str = "chains::";
/// On the second machine, whose pages are larger: what lays out memory, and what confines.
const WHERE_PAGES_MATTER: [&str; 4] = ["shm_bus", "conformance", "runtime", "process_isolation"];

/// The packages that have the test programs.
const PACKAGES: [&str; 5] = ["shm-bus", "spry-sched", "spry-wire", "spry-runtime", "spry-node"];
/// The programs, by cargo's names.
const PROGRAMS: [&str; 11] = [
    "shm_bus",
    "conformance",
    "hostile_bus",
    "sockmap_kernel",
    "spry_sched",
    "spry_wire",
    "spry_runtime",
    "runtime",
    "spry_node",
    "process_isolation",
    "e2e",
];
/// What the tests start and deploy: packages, and what comes of them.
const PARTS: [&str; 6] = [
    "spry-node",
    "spry-runtime-native",
    "spry-runtime-python",
    "example-nop",
    "example-echo",
    "example-thumbnail",
];
const BUILT: [&str; 8] = [
    "spryd",
    "spry",
    "spry-native",
    "lib_spry.so",
    "libexample_nop.so",
    "libexample_echo.so",
    "libexample_thumbnail.so",
    "examples/libfaults.so",
];
/// Files of the repository that tests compile, deploy or compare.
const SOURCES: [&str; 6] = [
    "node/tests",
    "node/sdk/include",
    "node/runtime/core/tests/functions",
    "examples",
    "packaging",
    "docs/schema",
];

/// What was built for the guests.
pub(super) struct Programs {
    tests: [PathBuf; PROGRAMS.len()],
    along: Vec<PathBuf>,
}

pub(super) fn build() -> Result<Programs, Failure> {
    let cross = Cross::ready()?;
    let of = |packages: &[&'static str]| -> Vec<&str> {
        packages.iter().flat_map(|package| ["--package", package]).collect()
    };
    process::run(cross.cargo(&["build"]).args(of(&PARTS)))?;
    process::run(&mut cross.cargo(&["build", "--package", "spry-fn", "--example", "faults"]))?;
    let mut tests = cross.cargo(&["test", "--no-run", "--message-format=json"]);
    let tests = named(&process::output(tests.args(of(&PACKAGES)))?, PROGRAMS)?;
    let along = BUILT.map(|name| cross.built(name)).into_iter();
    let along = along.chain(SOURCES.map(|name| process::root().join(name))).collect();
    Ok(Programs { tests, along })
}

impl Programs {
    pub(super) fn run(&self, kernel: &'static Kernel, tally: &mut Tally) -> Result<(), Failure> {
        let mut outcome = Ok(());
        let is_first = kernel.series == ARM64_KERNELS[0].series;
        for (name, program) in PROGRAMS.iter().zip(&self.tests) {
            if !is_first && !WHERE_PAGES_MATTER.contains(name) {
                continue;
            }
            let mut guest = Guest::new(kernel);
            guest.memory_mib = MEMORY_MIB;
            guest.timeout = TIMEOUT;
            guest.files = self.along.iter().chain([program]).cloned().collect();
            guest.env = vec![("SPRY_TEST_IS_BUILT".into(), "1".into())];
            let mut command = vec![shown(program), "--test-threads=1".into(), "--show-output".into()];
            if *name == "e2e" {
                command.push(END_TO_END.to_owned());
            }
            outcome = outcome.and(suite(&guest, name, &command, tally));
        }
        outcome
    }
}
