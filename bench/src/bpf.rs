//! What BPF programs cost by the kernel's own account: how often they ran, and for how long.
//!
//! The kernel counts only while somebody holds [`Account`], and counting costs more than a short program does: what is
//! measured beside it isn't to be compared with runs without it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

/// Runs of some programs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Runs {
    /// How often.
    pub count: u64,
    /// How long, in all.
    pub time: Duration,
}

/// The kernel counts as long as this is there.
#[derive(Debug)]
pub struct Account {
    _counting: OwnedFd,
}

impl Account {
    /// Begins to count.
    pub fn open() -> io::Result<Self> {
        let counting = enable_stats(Stats::RunTime).map_err(|error| error.io_error)?;
        Ok(Self { _counting: counting })
    }

    /// What all programs with these names have done since each was loaded, as far as it was counted.
    pub fn runs(&self, names: &[&str]) -> io::Result<Runs> {
        let mut runs = Runs::default();
        for program in loaded_programs() {
            let program = program.map_err(io::Error::other)?;
            if program.name_as_str().is_some_and(|name| names.contains(&name)) {
                runs.count += program.run_count();
                runs.time += program.run_time();
            }
        }
        Ok(runs)
    }
}
