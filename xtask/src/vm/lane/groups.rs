//! What is built on control groups, where there is cgroup v2 and nothing else: limits and confinement of function
//! processes, and the posix scheduler backend.
//!
//! The same test programs as on the machine itself, whose layout is often another.

use std::path::PathBuf;

use super::{SUITE_TIMEOUT, shown, suite, test_programs};
use crate::failure::Failure;
use crate::suite::Tally;
use crate::vm::guest::Guest;
use crate::vm::parts;

const KERNEL: &str = "6.18";

/// What was built for the guest.
pub(super) struct Programs {
    isolation: PathBuf,
    scheduling: PathBuf,
}

pub(super) fn build() -> Result<Programs, Failure> {
    let [isolation] =
        test_programs(&["--package", "spry-node", "--test", "process_isolation"], ["process_isolation"])?;
    let [scheduling] = test_programs(&["--package", "spry-sched", "--lib"], ["spry_sched"])?;
    Ok(Programs { isolation, scheduling })
}

impl Programs {
    pub(super) fn run(&self, tally: &mut Tally) -> Result<(), Failure> {
        let mut guest = Guest::new(parts::find(KERNEL)?);
        guest.files = vec![self.isolation.clone(), self.scheduling.clone()];
        guest.timeout = SUITE_TIMEOUT;
        // Here is all that they need: what they would skip is a failure.
        guest.env = vec![("SPRY_TEST_ALL".into(), "1".into())];
        let programs =
            [(&self.isolation, "limits:: confinement:: loading::"), (&self.scheduling, "backend::")];
        let commands = programs.map(|(program, tests)| {
            format!("{} --test-threads=1 --show-output {tests} || failed=1", shown(program))
        });
        let script = format!("failed=0; {}; exit $failed", commands.join("; "));
        let command = ["/bin/sh".into(), "-c".into(), script];
        suite(&guest, "control groups and the posix backend", &command, tally)
    }
}
