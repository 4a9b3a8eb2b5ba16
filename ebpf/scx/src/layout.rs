//! What lies in the maps that both sides share; the same structures are at the top of `bpf/spry.bpf.c`.
//!
//! Everything is atomic: the other side writes whenever it likes.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};

/// The layout that this program speaks.
pub const VERSION: u32 = 2;
/// How many processes can have a slot.
pub const SLOTS: u32 = 4096;

/// What spryd says of a process.
#[repr(C)]
#[derive(Debug)]
pub struct Standing {
    /// Goes up with every change. SYNC(standing): written last, with Release.
    pub epoch: AtomicU64,
    /// The smallest goes first.
    pub rank: AtomicU64,
    /// Goes up with every call.
    pub call: AtomicU32,
    /// By how much the rank falls for each nanosecond of CPU.
    pub fall: AtomicU32,
    /// CPU time in each 100 ms; 0: no limit.
    pub quota_ns: AtomicU64,
    /// [`UNORDERED`], or nothing.
    pub flags: AtomicU64,
    /// Goes up with every process that is given the slot.
    pub claim: AtomicU64,
    reserved: [u64; 2],
}

/// Nobody says when this process's calls begin: one begins whenever it has slept.
pub const UNORDERED: u64 = 1;

/// What the kernel knows of it.
#[repr(C)]
#[derive(Debug)]
pub struct Account {
    /// The standing that the rest is about.
    pub epoch: AtomicU64,
    /// CPU time since that standing was set.
    pub used_ns: AtomicU64,
    /// When the call is due.
    pub due_ns: AtomicU64,
    period: AtomicU64,
    period_used_ns: AtomicU64,
    /// CPU time of all calls, threads and children of this slot.
    pub cpu_ns: AtomicU64,
    call: AtomicU32,
    reserved: u32,
    claim: AtomicU64,
}

/// How the scheduler is.
#[repr(C)]
#[derive(Debug)]
pub struct Health {
    /// [`VERSION`].
    pub version: AtomicU32,
    /// 0: not yet; 1: scheduling; 2: over.
    pub state: AtomicU32,
    /// The kernel's `scx_exit_kind`.
    pub exit_kind: AtomicU32,
    reserved: u32,
    /// What an orderly end said.
    pub exit_code: AtomicI64,
    /// When it last chose a task, by CLOCK_MONOTONIC.
    pub heartbeat_ns: AtomicU64,
    /// Tasks that became ready.
    pub enqueued: AtomicU64,
    /// Tasks that took somebody's CPU.
    pub preempted: AtomicU64,
    /// Tasks that had waited for longer than promised.
    pub overdue: AtomicU64,
    /// Tasks whose quota was used up.
    pub spent: AtomicU64,
    /// Tasks that hadn't run for five seconds.
    pub revived: AtomicU64,
    /// Slices after which the same task went on.
    pub kept: AtomicU64,
    /// The kernel's word for the end.
    pub reason: [AtomicU8; 128],
    /// What it added.
    pub message: [AtomicU8; 256],
}

const _: () = assert!(size_of::<Standing>() == 64);
const _: () = assert!(size_of::<Account>() == 64);
const _: () = assert!(size_of::<Health>() == 16 + 8 * 8 + 128 + 256);
const _: () = assert!(std::mem::offset_of!(Standing, quota_ns) == 24);
const _: () = assert!(std::mem::offset_of!(Standing, flags) == 32);
const _: () = assert!(std::mem::offset_of!(Standing, claim) == 40);
const _: () = assert!(std::mem::offset_of!(Account, cpu_ns) == 40);
const _: () = assert!(std::mem::offset_of!(Account, claim) == 56);
const _: () = assert!(std::mem::offset_of!(Health, reason) == 80);
