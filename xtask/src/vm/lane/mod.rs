//! `cargo xtask vm test`: what only a guest can test; and `vm bench`, the scheduler's trace.
//!
//! | suite | where |
//! |---|---|
//! | the sched_ext scheduler ([`scheduler`]), and the node that uses it ([`node`]) | every kernel; its trace: one CPU that counts instructions |
//! | control groups, the posix backend ([`groups`]) | one kernel, with cgroup v2 alone |
//! | the package, installed ([`service`]) | a Debian that systemd starts, twice |
//! | everything that is not about this machine's instructions ([`arm64`]), by `vm test arm64` alone | two machines of another kind |
//!
//! What can't run on a kernel is skipped with its reason and counted, as everywhere.

mod arm64;
mod groups;
mod node;
mod scheduler;
mod service;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::guest::Guest;
use super::parts::{ARM64_KERNELS, KERNELS, Kernel};
use super::system::Disk;
use crate::failure::Failure;
use crate::process;
use crate::suite::Tally;

pub(crate) use scheduler::bench;

/// The longest that one suite may take in an emulated machine.
const SUITE_TIMEOUT: Duration = Duration::from_secs(900);

/// The lane. A suite that fails keeps none of the others from running.
pub(crate) fn test() -> Result<(), Failure> {
    let scheduler = scheduler::build()?;
    let groups = groups::build()?;
    let mut tally = Tally::default();
    let service = service::build(&mut tally)?;
    let started = Instant::now();
    let mut outcome = Ok(());
    for kernel in &KERNELS {
        outcome = outcome.and(scheduler.run(kernel, &mut tally));
    }
    outcome = outcome.and(groups.run(&mut tally));
    // The trace's clock counts instructions: whatever runs beside it changes nothing. Making a disk takes about as long.
    let (traced, disk) = thread::scope(|scope| {
        let disk = scope.spawn(|| service.as_ref().map(|_| Disk::new()));
        let traced = scheduler.run_trace(&mut tally);
        (traced, disk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    outcome = outcome.and(traced);
    if let Some((service, disk)) = service.zip(disk) {
        outcome = outcome.and(disk.and_then(|disk| service.run(disk, &mut tally)));
    }
    for reason in tally.skip_reasons() {
        println!("{reason}");
    }
    println!("vm: the guests took {:?}", Duration::from_secs(started.elapsed().as_secs()));
    println!("\n{tally}");
    outcome
}

/// The service's suite alone.
pub(crate) fn test_service() -> Result<(), Failure> {
    let mut tally = Tally::default();
    let outcome = match service::build(&mut tally)? {
        Some(service) => Disk::new().and_then(|disk| service.run(disk, &mut tally)),
        None => Ok(()),
    };
    println!("\n{tally}");
    outcome
}

/// All that is there for arm64, on both of its kernels.
pub(crate) fn test_arm64() -> Result<(), Failure> {
    let programs = arm64::build()?;
    let mut tally = Tally::default();
    let started = Instant::now();
    let mut outcome = Ok(());
    for kernel in &ARM64_KERNELS {
        outcome = outcome.and(programs.run(kernel, &mut tally));
    }
    for reason in tally.skip_reasons() {
        println!("{reason}");
    }
    println!("vm: the guests took {:?}", Duration::from_secs(started.elapsed().as_secs()));
    println!("\n{tally}");
    outcome
}

/// The scheduler's suites alone, on every kernel.
pub(crate) fn test_scheduler() -> Result<(), Failure> {
    let scheduler = scheduler::build()?;
    let mut tally = Tally::default();
    let mut outcome = Ok(());
    for kernel in &KERNELS {
        outcome = outcome.and(scheduler.run(kernel, &mut tally));
    }
    println!("\n{tally}");
    outcome
}

/// Runs a test program in a guest, passes on what is worth seeing, counts.
///
/// A guest whose kernel panics is booted once more: Linux 7.2 has died here while sched_ext was switched on and off under load, in the
/// patching of a branch of its own. Whatever tests do, a kernel must not; a second time it is a failure.
fn suite(guest: &Guest, what: &str, command: &[String], tally: &mut Tally) -> Result<(), Failure> {
    println!("\nvm: {what} on Linux {}", guest.kernel.series);
    let started = Instant::now();
    let mut run = || {
        guest.run(command, &mut |line| {
            if tally.read(line) {
                println!("{line}");
            }
        })
    };
    let mut status = run();
    if let Err(failure) = &status
        && failure.to_string().contains("Kernel panic")
    {
        println!("vm: the guest's kernel has died; once more. {failure}");
        status = run();
    }
    println!("vm: {:?}", Duration::from_secs(started.elapsed().as_secs()));
    ended_well(status, what, guest.kernel).inspect_err(|_| tally.note_failure())
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

/// Builds test programs and names the one of each target, in the order asked for.
fn test_programs<const N: usize>(arguments: &[&str], targets: [&str; N]) -> Result<[PathBuf; N], Failure> {
    let mut tests = process::cargo(["test", "--no-run", "--message-format=json"]);
    named(&process::output(tests.args(arguments))?, targets)
}

/// The programs of these targets among those that cargo's messages are about.
fn named<const N: usize>(messages: &str, targets: [&str; N]) -> Result<[PathBuf; N], Failure> {
    let programs: Vec<PathBuf> = messages.lines().filter_map(executable).collect();
    let mut found = targets.map(|_| PathBuf::new());
    for (place, target) in found.iter_mut().zip(targets) {
        let is_it = |file: &&PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            // `name-HASH`
            name.rsplit_once('-').is_some_and(|(name, _)| name == target)
        };
        *place = programs.iter().find(is_it).cloned().ok_or_else(|| Failure::Expectation {
            what: "vm: build a suite",
            found: format!("cargo named no program of the test `{target}`"),
        })?;
    }
    Ok(found)
}

/// The program that one of cargo's messages is about.
fn executable(message: &str) -> Option<PathBuf> {
    let (_, rest) = message.split_once("\"executable\":\"")?;
    rest.split_once('"').map(|(path, _)| PathBuf::from(path))
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
