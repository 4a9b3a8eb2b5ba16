//! `spry doctor`: what this kernel and these rights give, found by trying.
//!
//! Each check has one of three outcomes: yes; no, why, and what is used instead; or an error, when it could not be
//! found out. "Not permitted" is a no with that reason, never "not there". The checks are the daemon's own
//! when it runs (asked over the control socket), else those of whoever calls.

mod kernel;
mod python;
mod show;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use show::text;

/// What the checks need to know of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// The configured Python interpreter.
    pub python: Option<PathBuf>,
    /// The user that the interpreter must be open to; `None`: whoever calls.
    pub function_uid: Option<u32>,
}

impl Options {
    /// As a daemon with this configuration would check, under the calling process's rights.
    pub fn of(config: &crate::config::Config) -> Self {
        let root = nix::unistd::geteuid().is_root();
        Self { python: config.python.clone(), function_uid: root.then_some(config.uid_base) }
    }
}

/// How a check went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It is there.
    Yes {
        /// Which version, which kind; may be empty.
        detail: String,
    },
    /// It isn't, or not for us.
    No {
        /// Why not.
        why: String,
        /// What is used instead.
        instead: String,
    },
    /// It could not be found out.
    Error {
        /// What went wrong.
        what: String,
    },
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was tried.
    pub name: String,
    /// spry can't run at all without it.
    pub required: bool,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether spry can run here, if not at its best.
    pub usable: bool,
    /// In the order in which they are shown.
    pub checks: Vec<Check>,
}

/// Makes all checks. Starts and ends a few processes; blocks for some hundred milliseconds.
pub fn examine(options: &Options) -> Report {
    let mut checks = vec![kernel::version()];
    checks.extend([kernel::memfd_seals(), kernel::huge_pages()]);
    checks.extend([kernel::btf(), kernel::bpf()]);
    checks.extend(kernel::transports());
    checks.extend([kernel::futex_by_io_uring(), kernel::sched_ext(), kernel::signals(), kernel::levels()]);
    checks.extend(crate::sandbox::probe::probe().into_iter().map(of_sandbox));
    checks.extend([python::interpreter(options), python::packages(options)]);
    let usable = checks.iter().all(|check| !check.required || matches!(check.outcome, Outcome::Yes { .. }));
    Report { usable, checks }
}

/// Without these two no process could be made or told apart.
const REQUIRED_OF_SANDBOX: [&str; 2] = ["clone3", "pidfd"];

fn of_sandbox(probe: crate::sandbox::probe::Probe) -> Check {
    use crate::sandbox::probe::Outcome as Found;
    let outcome = match probe.outcome {
        Found::Yes { detail } => Outcome::Yes { detail },
        Found::No { why, instead } => Outcome::No { why, instead: instead.into() },
        Found::Error { what } => Outcome::Error { what },
    };
    Check { name: probe.name.into(), required: REQUIRED_OF_SANDBOX.contains(&probe.name), outcome }
}

fn check(name: &str, outcome: Outcome) -> Check {
    Check { name: name.into(), required: false, outcome }
}

fn required(name: &str, outcome: Outcome) -> Check {
    Check { name: name.into(), required: true, outcome }
}

fn yes(detail: impl Into<String>) -> Outcome {
    Outcome::Yes { detail: detail.into() }
}

fn no(why: impl Into<String>, instead: impl Into<String>) -> Outcome {
    Outcome::No { why: why.into(), instead: instead.into() }
}

fn error(what: impl Into<String>) -> Outcome {
    Outcome::Error { what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_run_spry_and_every_line_says_something() {
        let report = examine(&Options::default());
        assert!(report.usable, "{report:#?}");
        let names: Vec<&str> = report.checks.iter().map(|check| check.name.as_str()).collect();
        for wanted in [
            "kernel",
            "memfd seals",
            "huge pages",
            "BTF",
            "BPF",
            "io_uring futex wait",
            "sched_ext",
            "scheduler signals",
            "scheduler levels",
            "clone3",
            "pidfd",
            "user namespaces",
            "network namespaces",
            "landlock",
            "seccomp",
            "cgroup layout",
            "python",
            "python packages",
        ] {
            assert!(names.contains(&wanted), "no check \"{wanted}\" among {names:?}");
        }
        for check in &report.checks {
            match &check.outcome {
                Outcome::No { why, instead } => {
                    assert!(!why.is_empty() && !instead.is_empty(), "{check:?}");
                }
                Outcome::Error { what } => assert!(!what.is_empty(), "{check:?}"),
                Outcome::Yes { .. } => {}
            }
        }
        let json = serde_json::to_string(&report).expect("prints");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("reads back"), report);
    }

    #[test]
    fn a_missing_requirement_makes_it_unusable_in_words() {
        let checks = vec![
            required("memfd seals", error("refused")),
            check("landlock", no("not in this kernel", "file permissions")),
        ];
        let shown = text(&Report { usable: false, checks });
        assert!(shown.contains("error  memfd seals"), "{shown}");
        assert!(shown.contains("no     landlock"), "{shown}");
        assert!(shown.contains("not in this kernel; instead: file permissions"), "{shown}");
        assert!(shown.contains("spry can't run here"), "{shown}");
    }
}
