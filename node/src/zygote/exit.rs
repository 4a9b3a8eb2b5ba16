//! How a process ended, and what it used.

use std::time::Duration;

use crate::sys;
pub use crate::sys::HowEnded as ExitHow;

/// What is known about a process after its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code or the signal that killed it.
    pub how: ExitHow,
    /// User and system time, of itself and those children that it waited for.
    pub cpu_time: Duration,
    /// Its memory ran out: the kernel (or the watchdog) killed something in its group.
    pub out_of_memory: bool,
    /// Largest resident set, shared memory included.
    pub max_rss_bytes: u64,
}

impl Exit {
    /// Killed, and nothing is known about it.
    pub(super) const LOST: Self = Self {
        how: ExitHow::Signal(libc::SIGKILL),
        cpu_time: Duration::ZERO,
        out_of_memory: false,
        max_rss_bytes: 0,
    };

    pub(super) fn new(dead: sys::Dead, out_of_memory: bool) -> Self {
        let sys::Dead { how, cpu_time, max_rss_bytes, .. } = dead;
        Self { how, cpu_time, out_of_memory, max_rss_bytes }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.how {
            ExitHow::Code(code) => write!(f, "exited with code {code}")?,
            ExitHow::Signal(signal) => match nix::sys::signal::Signal::try_from(signal) {
                Ok(signal) => write!(f, "was killed by {signal}")?,
                Err(_) => write!(f, "was killed by signal {signal}")?,
            },
        }
        if self.out_of_memory { write!(f, " (its memory ran out)") } else { Ok(()) }
    }
}
