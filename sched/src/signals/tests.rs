//! On real processes, where BPF is to be had.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn load() -> Option<Arc<Signals>> {
    match Signals::load() {
        Ok(signals) => Some(signals),
        Err(error) => {
            eprintln!("SKIP: {error}");
            None
        }
    }
}

/// Reads a line and answers with it, again and again: blocked in between.
struct Echo(Child);

impl Echo {
    fn start() -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
        Self(child)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn answer(&mut self) {
        self.0.stdin.as_mut().expect("piped").write_all(b"x\n").expect("a write");
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        assert_eq!(line, "x\n");
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn within(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn blocking_and_waking_are_noted_and_told_of_those_that_are_watched() {
    let Some(signals) = load() else { return };
    let (mut echo, mut other) = (Echo::start(), Echo::start());
    let tracked = signals.track(echo.pid()).expect("room");
    let quiet = signals.track(other.pid()).expect("room");
    echo.answer();
    within("a process that waits for input is blocked", || tracked.is_blocked());
    let before = tracked.times();
    tracked.watch(77);
    echo.answer();
    other.answer();
    within("and again", || tracked.is_blocked() && quiet.is_blocked());
    let after = tracked.times();
    assert!(after.cpu_ns > before.cpu_ns && after.blocked_ns > before.blocked_ns, "{before:?} {after:?}");
    let mut told = Vec::new();
    within("both events", || {
        signals.told(&mut told);
        told.iter().any(|told| told.woke) && told.last().is_some_and(|told| !told.woke)
    });
    assert!(told.iter().all(|told| told.owner == 77), "{told:?}");
    assert!(told.is_sorted_by_key(|told| told.at_ns), "{told:?}");
    // Whoever had it before says so late: that is no word about who has it now.
    tracked.unwatch(76);
    told.clear();
    echo.answer();
    within("and the next time", || tracked.is_blocked());
    within("what is told of it", || {
        signals.told(&mut told);
        told.iter().any(|told| told.woke) && told.last().is_some_and(|told| !told.woke)
    });
    tracked.unwatch(77);
    echo.answer();
    within("and once more", || tracked.is_blocked());
    told.clear();
    signals.told(&mut told);
    assert_eq!(told, []);
}

#[test]
fn a_process_at_work_uses_time_that_its_own_clock_confirms() {
    let Some(signals) = load() else { return };
    let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh");
    let burner = Echo(child);
    let tracked = signals.track(burner.pid()).expect("room");
    within("20 ms of CPU time", || tracked.times().cpu_ns > 20_000_000);
    let cpu_ns = tracked.times().cpu_ns;
    let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", burner.pid())).expect("schedstat");
    let own_ns: u64 = stat.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    // The kernel updates its number at ticks; ours began a little later.
    assert!(own_ns + 50_000_000 > cpu_ns, "{own_ns} {cpu_ns}");
    assert!(!tracked.is_blocked());
}

#[test]
fn a_place_is_one_process_s_until_it_is_given_up() {
    let Some(signals) = load() else { return };
    let first = signals.track(1234).expect("room");
    assert!(signals.track(1234 + SIGNAL_PIDS as i32).is_none(), "the same low bits");
    drop(first);
    let second = signals.track(1234 + SIGNAL_PIDS as i32).expect("room again");
    assert_eq!(second.times(), Times::default());
}
