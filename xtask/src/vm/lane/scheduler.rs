//! The sched_ext scheduler: its conformance suite, the node that uses it, and its trace.

use std::path::PathBuf;

use super::node::{self, Node};
use super::{SUITE_TIMEOUT, ended_well, shown, suite, test_programs};
use crate::failure::Failure;
use crate::suite::Tally;
use crate::vm::guest::{Clock, Guest};
use crate::vm::parts::{self, Kernel};
use crate::{process, setup};

/// Where the scheduler's figures are taken.
const BENCH_KERNEL: &str = "6.18";
/// What is taken along is in the guest's memory.
const MEMORY_MIB: u32 = 2048;
const PACKAGE: [&str; 4] = ["--package", "spry-scx", "--features", "loader"];

/// What was built for the guests.
pub(super) struct Programs {
    conformance: PathBuf,
    loader: PathBuf,
    trace: PathBuf,
}

/// The same, and the node.
pub(super) struct Suites {
    scheduler: Programs,
    node: Node,
}

/// The scheduler beside the fair class and beside SRPT that knows the future; `args` go to the program.
pub(crate) fn bench(args: &[String]) -> Result<(), Failure> {
    programs()?.trace(args)
}

pub(super) fn build() -> Result<Suites, Failure> {
    Ok(Suites { scheduler: programs()?, node: node::build()? })
}

/// Builds them; plain builds leave the loader out, so it is looked over by clippy here.
fn programs() -> Result<Programs, Failure> {
    setup::packages()?;
    setup::scheduler()?;
    let mut clippy = process::cargo(["clippy"]);
    process::run(clippy.args(PACKAGE).args(["--all-targets", "--", "-D", "warnings"]))?;
    let mut programs = process::cargo(["build", "--bin", "spry-scx", "--example", "trace"]);
    process::run(programs.args(PACKAGE))?;
    let arguments = [&PACKAGE[..], &["--test", "conformance"]].concat();
    let [conformance] = test_programs(&arguments, ["conformance"])?;
    let debug = process::target_dir().join("debug");
    Ok(Programs { conformance, loader: debug.join("spry-scx"), trace: debug.join("examples/trace") })
}

impl Suites {
    /// In the guest `SPRY_TEST_SCHED_EXT` says that sched_ext must be there.
    pub(super) fn run(&self, kernel: &'static Kernel, tally: &mut Tally) -> Result<(), Failure> {
        let mut guest = Guest::new(kernel);
        guest.files = vec![self.scheduler.conformance.clone(), self.scheduler.loader.clone()];
        guest.env = vec![("SPRY_TEST_SCHED_EXT".into(), "1".into())];
        guest.timeout = SUITE_TIMEOUT;
        guest.memory_mib = MEMORY_MIB;
        self.node.equip(&mut guest);
        // One boot for both.
        let programs = [(self.scheduler.conformance.as_path(), ""), self.node.tests(kernel)];
        let commands = programs.map(|(program, tests)| {
            format!("{} --test-threads=1 --show-output {tests} || failed=1", shown(program))
        });
        let script = format!("failed=0; {}; exit $failed", commands.join("; "));
        let command = ["/bin/sh".into(), "-c".into(), script];
        suite(&guest, "the sched_ext scheduler, and the node with it,", &command, tally)
    }

    /// The scheduler's bar.
    pub(super) fn run_trace(&self, tally: &mut Tally) -> Result<(), Failure> {
        println!();
        let outcome = self.scheduler.trace(&[]);
        match outcome {
            Ok(()) => tally.add_passed(1),
            Err(_) => tally.note_failure(),
        }
        outcome
    }
}

impl Programs {
    fn trace(&self, args: &[String]) -> Result<(), Failure> {
        let kernel = parts::find(BENCH_KERNEL)?;
        println!("vm: one CPU whose clock counts instructions, Linux {BENCH_KERNEL}");
        let mut guest = Guest::new(kernel);
        guest.clock = Clock::Instructions;
        guest.files = vec![self.trace.clone()];
        guest.timeout = SUITE_TIMEOUT;
        let command: Vec<String> = std::iter::once(shown(&self.trace)).chain(args.iter().cloned()).collect();
        let status = guest.run(&command, &mut |line| println!("{line}"));
        ended_well(status, "the scheduler's trace", kernel)
    }
}
