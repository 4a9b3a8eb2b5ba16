//! The memory limit where no control group counts memory: a thread that reads what each process has resident and
//! in swap, and kills the one that has too much.
//!
//! It must not run on an idle node, so it sleeps for good once no watched process has used CPU time between two
//! looks, and [`Watchdog::nudge`] wakes it: at every new process, and whenever work is handed to one. While it is
//! awake a nudge is one atomic load.
//!
//! It is a stand-in, not an equal: between two looks a process can pass its limit (by `RLIMIT_DATA` at most), and what
//! a process's own children use isn't counted.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::stat::Stat;
use crate::sys;

/// Time between two looks: a process that touches 4 GB/s passes its limit by 100 MB.
const INTERVAL: Duration = Duration::from_millis(25);

/// See the module.
#[derive(Debug)]
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    asleep: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<i32, Watched>,
    nudged: bool,
    stop: bool,
}

#[derive(Debug)]
struct Watched {
    pidfd: Arc<OwnedFd>,
    limit_bytes: u64,
    cpu_ticks: u64,
    killed: bool,
}

impl Watchdog {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread =
            std::thread::Builder::new().name("spry-watchdog".to_owned()).spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Watches a process until [`Self::forget`]; the caller keeps `pid` from being reused until then.
    pub fn watch(&self, pid: i32, pidfd: Arc<OwnedFd>, limit_bytes: u64) {
        let watched = Watched { pidfd, limit_bytes, cpu_ticks: 0, killed: false };
        self.shared.state.lock().watched.insert(pid, watched);
        self.nudge();
    }

    /// Stops watching; true when the watchdog had killed it.
    pub fn forget(&self, pid: i32) -> bool {
        self.shared.state.lock().watched.remove(&pid).is_some_and(|watched| watched.killed)
    }

    /// Something is going to run.
    pub fn nudge(&self) {
        // SYNC(asleep): after what is going to run was handed out; pairs with the fence in `run`. A nudge that sees it waits for
        // the lock, so it can't fall between the thread's last look and its wait.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) {
            self.shared.state.lock().nudged = true;
            self.shared.wake.notify_one();
        }
    }

    /// Is the thread waiting for a nudge?
    pub fn is_asleep(&self) -> bool {
        self.shared.asleep.load(Ordering::Acquire)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.stop {
            // SYNC(asleep): announced before the look, so that work nudged during it isn't missed. Only a full barrier keeps the
            // look's loads behind the store.
            self.asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let busy = state.look();
            if busy {
                self.asleep.store(false, Ordering::Release);
                self.wake.wait_for(&mut state, INTERVAL);
            } else if !std::mem::take(&mut state.nudged) {
                self.wake.wait(&mut state);
                self.asleep.store(false, Ordering::Release);
                if !state.stop {
                    // what was just handed out has hardly begun
                    self.wake.wait_for(&mut state, INTERVAL);
                }
            }
        }
    }
}

impl State {
    /// Kills what is over its limit; true when something has run since the last look.
    fn look(&mut self) -> bool {
        let mut busy = false;
        for (pid, watched) in &mut self.watched {
            let Some(ticks) = Stat::of(*pid).and_then(|stat| stat.cpu_ticks()) else { continue };
            busy |= std::mem::replace(&mut watched.cpu_ticks, ticks) != ticks;
            if !watched.killed && private_bytes(*pid).is_some_and(|bytes| bytes > watched.limit_bytes) {
                watched.killed = sys::pidfd_signal(watched.pidfd.as_fd(), libc::SIGKILL).is_ok();
            }
        }
        busy
    }
}

/// Anonymous memory, resident and swapped. Shared memory is left out: a function's segments are spryd's to count.
fn private_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((kilobytes("RssAnon:")? + kilobytes("VmSwap:").unwrap_or(0)) * 1024)
}
