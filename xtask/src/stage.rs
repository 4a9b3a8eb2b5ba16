//! Announced steps with their durations, for runs that take minutes.

use std::time::{Duration, Instant};

use crate::failure::Failure;

/// Runs `work`, says what it is about to do and how long it took; a failure carries the stage's name.
pub(crate) fn stage(
    log: &mut Vec<(&'static str, Duration)>,
    name: &'static str,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    println!("\n=== {name}");
    let started = Instant::now();
    let outcome = work();
    let took = started.elapsed();
    log.push((name, took));
    match outcome {
        Ok(()) => {
            println!("=== {name}: ok, {}", seconds(took));
            Ok(())
        }
        Err(cause) => {
            println!("=== {name}: FAILED after {}", seconds(took));
            Err(Failure::Stage { name, cause: Box::new(cause) })
        }
    }
}

/// The table at the end of a run.
pub(crate) fn print_table(log: &[(&'static str, Duration)]) {
    println!("\n{:<12} {:>9}", "stage", "time");
    for (name, took) in log {
        println!("{name:<12} {:>9}", seconds(*took));
    }
    println!("{:<12} {:>9}", "total", seconds(log.iter().map(|(_, took)| *took).sum()));
}

fn seconds(took: Duration) -> String {
    let whole = took.as_secs();
    if whole >= 60 {
        format!("{}m{:02}s", whole / 60, whole % 60)
    } else {
        format!("{:.1}s", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_cause_and_exit_code() {
        let mut log = Vec::new();
        let failure = stage(&mut log, "fmt", || Err(Failure::NeedsRoot { command: "x".into() }))
            .expect_err("a failing stage succeeded");
        assert!(failure.to_string().starts_with("stage `fmt` failed: packages are missing"), "{failure}");
        assert_eq!(failure.exit_code(), 2);
        assert_eq!(log.len(), 1);
    }

    #[test]
    fn durations_are_short_to_read() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2s");
        assert_eq!(seconds(Duration::from_secs(125)), "2m05s");
    }
}
