//! The report as text.

use std::fmt::Write;

use super::{Outcome, Report};

/// A line per check, and a verdict.
pub fn text(report: &Report) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for check in &report.checks {
        let (word, detail) = match &check.outcome {
            Outcome::Yes { detail } => ("yes", detail.clone()),
            Outcome::No { why, instead } => ("no", format!("{why}; instead: {instead}")),
            Outcome::Error { what } => ("error", what.clone()),
        };
        let line = format!("{word:<5}  {:<width$}  {}", check.name, detail.replace('\n', " "));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let missing: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| check.required && !matches!(check.outcome, Outcome::Yes { .. }))
        .map(|check| check.name.as_str())
        .collect();
    let verdict = match (report.usable, missing.as_slice()) {
        (true, _) => "\nspry can run here.".to_owned(),
        (false, names) => format!("\nspry can't run here: it needs {}.", names.join(", ")),
    };
    let _ = writeln!(out, "{verdict}");
    out
}
