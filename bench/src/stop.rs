//! Ctrl-C, as a flag. Every loop of the benchmarks looks at it and returns, so that the handles of spryd, the
//! floor and the temporary folders are dropped in order and nothing is left behind.
//!
//! It is a handler and not a blocked signal with a waiting thread: processes started by
//! `std::process::Command` inherit blocked signals, and then spryd would not hear its SIGTERM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::sys;

/// Set once, when the user wants the run to end.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    signals: bool,
}

impl Stop {
    /// A flag that SIGINT, SIGTERM and SIGHUP set.
    pub fn on_signals() -> nix::Result<Self> {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            sys::note_signal(signal)?;
        }
        Ok(Self { signals: true, ..Self::default() })
    }

    /// Asks everything that looks at the flag to end.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
    }

    /// Whether the run shall end.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed) || (self.signals && sys::signalled())
    }
}
