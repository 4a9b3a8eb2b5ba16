//! What processes do, as the kernel's scheduler sees it: CPU time, waiting for a core, blocking.
//!
//! Two programs (`ebpf/signals`) at the kernel's context switches and wake-ups keep a table that is mapped here: reading it
//! takes no system call. Events (who blocks, who wakes) come through a ring buffer, of those processes only that are
//! [watched](Tracked::watch).
//!
//! Where BPF isn't to be had, [`crate::backend::Process::cpu_ns`] reads the process's CPU clock, a system call, and
//! whoever wants to know about blocking finds it out by looking twice ([`crate::engine`]).
//!
//! The table is by pid, and pids are reused: whoever tracks a process stops ([`Tracked`] dropped) before it is reaped, or
//! soon after. Until then a stranger with that pid would be counted, and harm nothing but a statistic.

mod btf;
mod sys;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Map, MapData, RingBuf};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfLoader};
use spry_ebpf_common::signals::{SIGNAL_PIDS, SIGNALS, SignalEvent, signal_entry, state};

use sys::{Mapped, SignalCell, monotonic_ns};

/// `cargo xtask ebpf` makes it from `ebpf/signals`.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/spry-signals.bpf.o"));

/// Why there are no signals.
#[derive(Debug, thiserror::Error)]
pub enum SignalsError {
    /// The kernel doesn't describe its types.
    #[error("the kernel's types aren't to be had (/sys/kernel/btf/vmlinux): {0}")]
    Types(String),
    /// The programs or their maps were refused.
    #[error("{operation}: {why}")]
    Program {
        /// What was being done.
        operation: &'static str,
        /// What the kernel said.
        why: String,
    },
}

/// The loaded programs. Dropped: they are detached.
pub struct Signals {
    _bpf: Ebpf,
    pids: Mapped<AtomicU64>,
    table: Mapped<SignalCell>,
    events: Mutex<RingBuf<MapData>>,
    free: Mutex<Vec<u32>>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

/// Who blocks or wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// What was given to [`Tracked::watch`].
    pub owner: u64,
    /// It woke; otherwise it blocks.
    pub woke: bool,
    /// When, by `CLOCK_MONOTONIC`.
    pub at_ns: u64,
}

/// What one process has done since it was first tracked, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// On a core, all threads.
    pub cpu_ns: u64,
    /// Its main thread could run and had no core.
    pub wait_ns: u64,
    /// Its main thread waited for something else.
    pub blocked_ns: u64,
}

impl Signals {
    /// Loads and attaches the programs.
    pub fn load() -> Result<Arc<Self>, SignalsError> {
        let types = std::fs::read("/sys/kernel/btf/vmlinux");
        let types = types.map_err(|error| SignalsError::Types(error.to_string()))?;
        // `__state` since 5.14; `state` before.
        let offsets = btf::offsets(&types, "task_struct", ["pid", "tgid", "__state"])
            .or_else(|| btf::offsets(&types, "task_struct", ["pid", "tgid", "state"]));
        let Some([pid, tgid, state]) = offsets else {
            return Err(SignalsError::Types("task_struct isn't described".into()));
        };
        drop(types);
        let mut bpf = EbpfLoader::new()
            .btf(None)
            .override_global("PID_OFFSET", &pid, true)
            .override_global("TGID_OFFSET", &tgid, true)
            .override_global("STATE_OFFSET", &state, true)
            .load(OBJECT)
            .map_err(|error| refused("load the maps", &error))?;
        let events = bpf.take_map("EVENTS").ok_or_else(|| missing("EVENTS"))?;
        let events = RingBuf::try_from(events).map_err(|error| refused("open the events", &error))?;
        for (name, tracepoint) in [("spry_switch", "sched_switch"), ("spry_wakeup", "sched_wakeup")] {
            let program = bpf.program_mut(name).ok_or_else(|| missing(name))?;
            let program: &mut RawTracePoint =
                program.try_into().map_err(|error| refused("find a program", &error))?;
            program.load().map_err(|error| refused("verify a program", &error))?;
            program.attach(tracepoint).map_err(|error| refused("attach a program", &error))?;
        }
        let pids = mapped(&bpf, "PIDS", SIGNAL_PIDS)?;
        let table = mapped(&bpf, "SIGNALS", SIGNALS)?;
        let free = Mutex::new((0..SIGNALS).rev().collect());
        Ok(Arc::new(Self { _bpf: bpf, pids, table, events: Mutex::new(events), free }))
    }

    /// Notes from now on what a process does. `None`: there is no room, or another with the same low bits of its pid.
    pub fn track(self: &Arc<Self>, pid: i32) -> Option<Tracked> {
        let pid = u32::try_from(pid).ok()?;
        let index = lock(&self.free).pop()?;
        let mut tracked = Tracked { signals: Arc::clone(self), index, pid: None };
        let cell = tracked.cell();
        for word in [
            &cell.cpu_ns,
            &cell.wait_ns,
            &cell.blocked_ns,
            &cell.since_ns,
            &cell.watched,
            &cell.owner,
            &cell.switches,
        ] {
            word.store(0, Ordering::Relaxed);
        }
        cell.state.store(state::UNKNOWN, Ordering::Relaxed);
        let place = self.pids.get((pid % SIGNAL_PIDS) as usize)?;
        // SYNC(signal-entry): publishes the cleared cell to the programs, which look here first.
        place.compare_exchange(0, signal_entry(pid, index), Ordering::AcqRel, Ordering::Relaxed).ok()?;
        tracked.pid = Some(pid);
        Some(tracked)
    }

    /// Takes in what has been told.
    pub fn told(&self, out: &mut Vec<Told>) {
        let mut events = lock(&self.events);
        while let Some(item) = events.next() {
            // As `SignalEvent` lies in memory: four words.
            let word = |index: usize| {
                let bytes = item.get(index * 8..index * 8 + 8)?;
                Some(u64::from_ne_bytes(bytes.try_into().ok()?))
            };
            if item.len() == size_of::<SignalEvent>()
                && let (Some(at_ns), Some(owner), Some(now)) = (word(0), word(1), word(2))
            {
                out.push(Told { owner, woke: now == state::RUNNABLE, at_ns });
            }
        }
    }

    /// Readable when something has been told.
    pub fn events_fd(&self) -> std::io::Result<OwnedFd> {
        let events = lock(&self.events);
        sys::duplicate(events.as_raw_fd())
    }
}

/// A process that is tracked; no more when this is dropped.
#[derive(Debug)]
pub struct Tracked {
    signals: Arc<Signals>,
    index: u32,
    pid: Option<u32>,
}

impl Tracked {
    fn cell(&self) -> &SignalCell {
        self.signals.table.get(self.index as usize).expect("indices come from the table's own list")
    }

    /// What it has done until now.
    pub fn times(&self) -> Times {
        let cell = self.cell();
        let since_ns = cell.since_ns.load(Ordering::Acquire);
        let now = cell.state.load(Ordering::Acquire);
        let mut times = Times {
            cpu_ns: cell.cpu_ns.load(Ordering::Relaxed),
            wait_ns: cell.wait_ns.load(Ordering::Relaxed),
            blocked_ns: cell.blocked_ns.load(Ordering::Relaxed),
        };
        // (Between two words the program may have written: then a stretch counts twice or not at all, once.)
        let passed_ns = if since_ns == 0 { 0 } else { monotonic_ns().saturating_sub(since_ns) };
        match now {
            state::RUNNING => times.cpu_ns += passed_ns,
            state::RUNNABLE => times.wait_ns += passed_ns,
            state::BLOCKED => times.blocked_ns += passed_ns,
            _ => {}
        }
        times
    }

    /// Tells of its blocking and waking from now on, as of `owner`'s. Whether it is blocked now is for [`Self::is_blocked`].
    pub fn watch(&self, owner: u64) {
        let cell = self.cell();
        cell.owner.store(owner, Ordering::Release);
        cell.watched.store(1, Ordering::Release);
    }

    /// Tells no more of it as of `owner`'s, if it does. Not beside another call of this or of [`Self::watch`].
    pub fn unwatch(&self, owner: u64) {
        let cell = self.cell();
        if cell.owner.load(Ordering::Acquire) == owner {
            cell.watched.store(0, Ordering::Release);
        }
    }

    /// Whether its main thread waits for something else than a core.
    pub fn is_blocked(&self) -> bool {
        self.cell().state.load(Ordering::Acquire) == state::BLOCKED
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(pid) = self.pid
            && let Some(place) = self.signals.pids.get((pid % SIGNAL_PIDS) as usize)
        {
            let _ =
                place.compare_exchange(signal_entry(pid, self.index), 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        self.cell().watched.store(0, Ordering::Release);
        lock(&self.signals.free).push(self.index);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn mapped<T: sys::Cell>(bpf: &Ebpf, name: &'static str, count: u32) -> Result<Mapped<T>, SignalsError> {
    let Some(Map::Array(array)) = bpf.map(name) else { return Err(missing(name)) };
    Mapped::new(array.fd().as_fd(), count as usize)
        .map_err(|error| SignalsError::Program { operation: "map a table", why: error.to_string() })
}

fn missing(name: &str) -> SignalsError {
    SignalsError::Program { operation: "find a part of the object", why: format!("there is no {name}") }
}

fn refused(operation: &'static str, error: &dyn std::error::Error) -> SignalsError {
    let mut why = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        why.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    SignalsError::Program { operation, why }
}

#[cfg(test)]
mod tests;
