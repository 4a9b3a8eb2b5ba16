//! `cargo xtask vm test`: what only a guest can test, on each of its kernels; and `vm bench`, the scheduler's trace.
//!
//! What can't run on a kernel is skipped with its reason and counted, as everywhere. In the guest `SPRY_TEST_SCHED_EXT`
//! says that sched_ext must be there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::guest::{Clock, Guest};
use super::parts::{self, KERNELS, Kernel};
use crate::failure::Failure;
use crate::suite::Tally;
use crate::{process, setup};

/// Where the scheduler's figures are taken.
const BENCH_KERNEL: &str = "6.18";
/// The longest that one suite may take in an emulated machine.
const SUITE_TIMEOUT: Duration = Duration::from_secs(240);

/// The lane: the scheduler's conformance suite on every kernel, then its bar.
pub(crate) fn test() -> Result<(), Failure> {
    let programs = build()?;
    let mut clippy = process::cargo(["clippy", "--package", "spry-scx", "--features", "loader"]);
    process::run(clippy.args(["--all-targets", "--", "-D", "warnings"]))?;
    let mut tally = Tally::default();
    let mut outcome = Ok(());
    for kernel in &KERNELS {
        println!("\nvm: the sched_ext suite on Linux {}", kernel.series);
        outcome = outcome.and(suite(kernel, &programs, &mut tally));
    }
    println!();
    let trace = trace(&programs, &[]);
    if trace.is_ok() {
        tally.add_passed(1);
    } else {
        tally.note_failure();
    }
    for reason in tally.skip_reasons() {
        println!("{reason}");
    }
    println!("\n{tally}");
    outcome.and(trace)
}

/// The scheduler beside the fair class and beside SRPT that knows the future; `args` go to the program.
pub(crate) fn bench(args: &[String]) -> Result<(), Failure> {
    trace(&build()?, args)
}

/// What was built for the guests.
struct Programs {
    conformance: PathBuf,
    loader: PathBuf,
    trace: PathBuf,
}

fn build() -> Result<Programs, Failure> {
    setup::packages()?;
    setup::scheduler()?;
    let package = ["--package", "spry-scx", "--features", "loader"];
    let mut programs = process::cargo(["build", "--bin", "spry-scx", "--example", "trace"]);
    process::run(programs.args(package))?;
    let mut tests = process::cargo(["test", "--no-run", "--message-format=json", "--test", "conformance"]);
    let messages = process::output(tests.args(package))?;
    let conformance = messages
        .lines()
        .filter_map(executable)
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("conformance-")));
    let debug = process::target_dir().join("debug");
    Ok(Programs {
        conformance: conformance.ok_or_else(|| Failure::Expectation {
            what: "vm: build the suite",
            found: "cargo named no program of the test `conformance`".into(),
        })?,
        loader: debug.join("spry-scx"),
        trace: debug.join("examples/trace"),
    })
}

/// The program that one of cargo's messages is about.
fn executable(message: &str) -> Option<PathBuf> {
    let (_, rest) = message.split_once("\"executable\":\"")?;
    rest.split_once('"').map(|(path, _)| PathBuf::from(path))
}

fn suite(kernel: &'static Kernel, programs: &Programs, tally: &mut Tally) -> Result<(), Failure> {
    let mut guest = Guest::new(kernel);
    guest.files = vec![programs.conformance.clone(), programs.loader.clone()];
    guest.env = vec![("SPRY_TEST_SCHED_EXT".into(), "1".into())];
    guest.timeout = SUITE_TIMEOUT;
    let command = [shown(&programs.conformance), "--test-threads=1".into(), "--show-output".into()];
    let status = guest.run(&command, &mut |line| {
        if tally.read(line) {
            println!("{line}");
        }
    });
    ended_well(status, "the sched_ext suite", kernel).inspect_err(|_| tally.note_failure())
}

fn trace(programs: &Programs, args: &[String]) -> Result<(), Failure> {
    let kernel = parts::find(BENCH_KERNEL)?;
    println!("vm: one CPU whose clock counts instructions, Linux {BENCH_KERNEL}");
    let mut guest = Guest::new(kernel);
    guest.clock = Clock::Instructions;
    guest.files = vec![programs.trace.clone()];
    guest.timeout = SUITE_TIMEOUT;
    let command: Vec<String> = std::iter::once(shown(&programs.trace)).chain(args.iter().cloned()).collect();
    let status = guest.run(&command, &mut |line| println!("{line}"));
    ended_well(status, "the scheduler's trace", kernel)
}

fn ended_well(status: Result<u8, Failure>, what: &str, kernel: &Kernel) -> Result<(), Failure> {
    match status? {
        0 => Ok(()),
        status => Err(Failure::Expectation {
            what: "vm: run the lane",
            found: format!("{what} on Linux {} ended with exit status {status}", kernel.series),
        }),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_messages_name_programs() {
        let message =
            r#"{"reason":"compiler-artifact","executable":"/t/debug/deps/conformance-1a","fresh":true}"#;
        assert_eq!(executable(message), Some(PathBuf::from("/t/debug/deps/conformance-1a")));
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#), None);
    }
}
