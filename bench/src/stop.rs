//! Ctrl-C, as a flag. Every loop of the benchmarks looks at it and returns, so that the handles of spryd, the
//! floor and the temporary folders are dropped in order and nothing is left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, Signal};

/// Set once, when the user wants the run to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A flag that SIGINT, SIGTERM and SIGHUP set. Call before any other thread is started: the signals are
    /// blocked here, and threads inherit that (processes started by `std::process::Command` don't).
    pub fn on_signals() -> nix::Result<Self> {
        let stop = Self::default();
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block()?;
        let flag = stop.clone();
        std::thread::spawn(move || {
            while set.wait().is_ok() {
                flag.set();
            }
        });
        Ok(stop)
    }

    /// Asks everything that looks at the flag to end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the run shall end.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
