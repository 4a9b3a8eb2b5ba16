//! `cargo xtask test`: set up, build once what the tests start, run every test, count what was skipped.
//!
//! A test that needs root, BPF or a certain kernel prints a line that starts with `SKIP` and says what is
//! missing. With `SPRY_TEST_ALL=1` it fails instead; that is set here on a machine that has all of it.
//! The last line is for machines: `N passed, N failed, N skipped`.

mod pythons;
mod tally;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::artifacts::{self, Profile};
use crate::cli::FuzzOptions;
use crate::failure::Failure;
use crate::{fuzz, process, setup, sys};
pub(crate) use tally::Tally;

/// Capabilities of a machine that has what every test needs (bits of `CapEff`).
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Functions that integration tests deploy.
const EXAMPLES: [&str; 3] = ["example-nop", "example-echo", "example-thumbnail"];

/// Every test, or `cargo test ARGS`.
pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    setup::packages()?;
    let mut tally = Tally::default();
    let outcome = if args.is_empty() { everything(&mut tally) } else { some(args, &mut tally) };
    for reason in tally.skip_reasons() {
        println!("{reason}");
    }
    println!("\n{tally}");
    outcome
}

fn everything(tally: &mut Tally) -> Result<(), Failure> {
    artifacts::build_with_tests()?;
    // Not `--all-targets`: that would leave out the documentation's examples.
    let tests = run_counted(&mut cargo_test(["--workspace", "--no-fail-fast"]), tally);
    tests.and(pythons::run(tally)).and(loom(tally))?;
    let fuzzed = fuzz::run(&FuzzOptions::default())?;
    tally.add_passed(fuzzed);
    Ok(())
}

fn some(args: &[String], tally: &mut Tally) -> Result<(), Failure> {
    artifacts::build(Profile::Dev, &EXAMPLES)?;
    run_counted(&mut cargo_test(args.iter().map(String::as_str)), tally)
}

fn cargo_test<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = process::cargo(["test"]);
    let args: Vec<&str> = args.into_iter().collect();
    command.args(&args);
    if !args.contains(&"--") {
        // libtest keeps back what a successful test prints, and so why it skipped something.
        command.args(["--", "--show-output"]);
    }
    if std::env::var_os("SPRY_TEST_ALL").is_none() && machine_has_everything() {
        command.env("SPRY_TEST_ALL", "1");
    }
    command
}

/// The ring's algorithm under every interleaving that loom can think of.
fn loom(tally: &mut Tally) -> Result<(), Failure> {
    if !Path::new("shm-bus/tests/loom_ring.rs").exists() {
        return Err(Failure::Expectation {
            what: "loom",
            found: "shm-bus/tests/loom_ring.rs is gone".into(),
        });
    }
    let mut command = process::cargo(["test", "--package", "shm-bus", "--release", "--test", "loom_ring"]);
    // A folder of its own: other flags would rebuild everything, there and back.
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", process::target_dir().join("loom"));
    run_counted(&mut command, tally)
}

/// Runs a test command, passes its output on, and counts.
fn run_counted(command: &mut Command, tally: &mut Tally) -> Result<(), Failure> {
    println!("$ {}", process::shown(command));
    count_into(tally, command, &mut std::io::stdout())
}

fn count_into(tally: &mut Tally, command: &mut Command, out: &mut impl Write) -> Result<(), Failure> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| process::cannot_start(command, e))?;
    let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).split(b'\n');
    for line in lines.map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if tally.read(&line) {
            // Whoever reads our output may have gone; the tests are still to be waited for.
            let _reader_gone = writeln!(out, "{line}");
        }
    }
    let status = child.wait().map_err(|source| process::cannot_start(command, source))?;
    if status.success() {
        return Ok(());
    }
    tally.note_failure();
    Err(Failure::Ended { command: process::shown(command), status })
}

fn machine_has_everything() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let needed = 1 << CAP_NET_ADMIN | 1 << CAP_SYS_ADMIN | 1 << CAP_BPF;
    sys::is_root()
        && Path::new("/sys/kernel/btf/vmlinux").exists()
        && effective_capabilities(&status).is_some_and(|bits| bits & needed == needed)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        assert_eq!(effective_capabilities("CapPrm:\tff\nCapEff:\t000001fffeffffff\n"), Some(0x1ff_feff_ffff));
        assert_eq!(effective_capabilities("Name: x\n"), None);
    }

    #[test]
    fn a_failing_test_command_is_counted_and_reported() {
        let mut tally = Tally::default();
        let script = "echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured'; exit 101";
        count_into(&mut tally, Command::new("sh").args(["-c", script]), &mut Vec::new())
            .expect_err("it failed");
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn what_ends_badly_without_a_count_is_still_a_failure() {
        let mut tally = Tally::default();
        count_into(&mut tally, Command::new("sh").args(["-c", "exit 1"]), &mut Vec::new())
            .expect_err("it failed");
        assert_eq!(tally.to_string(), "0 passed, 1 failed, 0 skipped");
    }
}
