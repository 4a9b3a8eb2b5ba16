//! What the kernel notes about a process for the scheduler: shared between `ebpf/signals` and `spry-sched`.

/// One process: what it has done so far, and what its main thread does now. Written by the program, but for `watched`
/// and `owner`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// CPU time of all its threads, up to when they were last taken off a core.
    pub cpu_ns: u64,
    /// For how long its main thread could run and had no core.
    pub wait_ns: u64,
    /// For how long its main thread waited for something else.
    pub blocked_ns: u64,
    /// When its main thread's state last changed (`CLOCK_MONOTONIC`).
    pub since_ns: u64,
    /// One of [`state`].
    pub state: u64,
    /// Whether its blocking and waking is to be told. Written by spryd.
    pub watched: u64,
    /// Whose it is; told with events. Written by spryd.
    pub owner: u64,
    /// How often its main thread got a core.
    pub switches: u64,
}

/// What a main thread does.
pub mod state {
    /// Not seen yet.
    pub const UNKNOWN: u64 = 0;
    /// It has a core.
    pub const RUNNING: u64 = 1;
    /// It could run.
    pub const RUNNABLE: u64 = 2;
    /// It waits for something else.
    pub const BLOCKED: u64 = 3;
}

/// What is told of a process that is watched.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SignalEvent {
    /// When.
    pub at_ns: u64,
    /// [`Signal::owner`].
    pub owner: u64,
    /// [`state::BLOCKED`] or [`state::RUNNABLE`] (it woke).
    pub state: u64,
    /// [`Signal::cpu_ns`].
    pub cpu_ns: u64,
}

/// Processes are looked up by the low bits of their pid: an array takes a few nanoseconds, a hash table fifty.
pub const SIGNAL_PIDS: u32 = 1 << 16;
/// Processes at once.
pub const SIGNALS: u32 = 4096;
/// Bytes of events that may wait.
pub const SIGNAL_EVENTS_LEN: u32 = 1 << 16;

/// The entry for a pid: whose place it is, and its signal (counted from 1); 0: nobody's.
pub const fn signal_entry(pid: u32, signal: u32) -> u64 {
    (pid as u64) << 32 | (signal + 1) as u64
}

/// The signal of a pid, by the entry in its place.
pub const fn signal_of(entry: u64, pid: u32) -> Option<u32> {
    if (entry >> 32) as u32 == pid && entry as u32 != 0 { Some(entry as u32 - 1) } else { None }
}

const _: () = {
    assert!(size_of::<Signal>() == 64 && align_of::<Signal>() == 64);
    assert!(size_of::<SignalEvent>() == 32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_pids_only() {
        let entry = signal_entry(70_000, 0);
        assert_eq!(signal_of(entry, 70_000), Some(0));
        assert_eq!(signal_of(entry, 70_000 - SIGNAL_PIDS), None);
        assert_eq!(signal_of(0, 0), None);
    }
}
