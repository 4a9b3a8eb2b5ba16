//! The scheduler's signals: runs in the kernel at every context switch and wake-up, and notes what the processes do that
//! it was told of (`spry_ebpf_common::signals`).
//!
//! Both programs are raw tracepoints: they need neither tracefs nor the kernel's types at load time. What they read of a
//! `task_struct` (pid, tgid, state) they find by offsets that the loader took from the kernel's BTF.
//!
//! Everybody pays for these programs at every switch, so the way out for processes that nobody asked about is short: one
//! look into an array by the pid's low bits.
//!
//! `Signal` has one writer at a time but for `cpu_ns`, which threads on several cores add to: the rest is the main
//! thread's, whose switches and wake-ups the run queue's lock puts in order.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, PerCpuArray, RingBuf};
use aya_ebpf::programs::RawTracePointContext;
use spry_ebpf_common::signals::{
    SIGNAL_EVENTS_LEN, SIGNAL_PIDS, SIGNALS, Signal, SignalEvent, signal_of, state,
};

/// Whose signal it is, by the pid's low bits.
#[map(name = "PIDS")]
static PIDS: Array<u64> = Array::with_max_entries(SIGNAL_PIDS, BPF_F_MMAPABLE);
/// One entry per process.
#[map(name = "SIGNALS")]
static TABLE: Array<Signal> = Array::with_max_entries(SIGNALS, BPF_F_MMAPABLE);
/// When a core last went to another thread.
#[map(name = "SWITCHED")]
static SWITCHED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Blocking and waking of those that are watched.
#[map(name = "EVENTS")]
static EVENTS: RingBuf = RingBuf::with_byte_size(SIGNAL_EVENTS_LEN, 0);

/// Where the fields are in this kernel's `task_struct`. Set by the loader.
#[unsafe(no_mangle)]
static PID_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static TGID_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
static STATE_OFFSET: u32 = 0;

/// A global that the loader has set; to the compiler it is 0.
#[inline(always)]
fn offset(global: &'static u32) -> usize {
    // SAFETY: a static.
    unsafe { core::ptr::read_volatile(global) as usize }
}

/// A field of a task; 0 if it can't be read.
#[inline(always)]
fn field(task: *const u8, offset: usize) -> u32 {
    // SAFETY: the helper checks what it reads.
    unsafe { bpf_probe_read_kernel(task.wrapping_add(offset).cast::<u32>()).unwrap_or(0) }
}

/// Adds to a word that several cores may add to.
#[inline(always)]
fn add(word: *mut u64, value: u64) {
    let mut _value = value;
    // SAFETY: one atomic instruction on a word of a map's entry, which the verifier has checked.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word, value = inout(reg) _value);
    }
}

/// The signal of a process, if it was asked for.
#[inline(always)]
fn signal(pid: u32) -> Option<*mut Signal> {
    let entry = PIDS.get_ptr(pid % SIGNAL_PIDS)?;
    // SAFETY: a pointer to a map's entry.
    TABLE.get_ptr_mut(signal_of(unsafe { entry.read_volatile() }, pid)?)
}

/// `sched_switch(preempt, prev, next, …)`. The current task still is the one that leaves.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn spry_switch(ctx: RawTracePointContext) -> i32 {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let Some(switched) = SWITCHED.get_ptr_mut(0) else { return 0 };
    // SAFETY: this core's own entry.
    let ran_ns = unsafe {
        let before_ns = *switched;
        *switched = now_ns;
        if before_ns == 0 { 0 } else { now_ns - before_ns }
    };
    let leaves = bpf_get_current_pid_tgid();
    let (pid, tid) = ((leaves >> 32) as u32, leaves as u32);
    if let Some(signal) = signal(pid) {
        // SAFETY: pointers into the map's entry.
        unsafe { add(&raw mut (*signal).cpu_ns, ran_ns) };
        if pid == tid {
            let preempted = ctx.arg::<u64>(0) as u8 != 0;
            let waits = field(ctx.arg::<*const u8>(1), offset(&STATE_OFFSET)) != 0;
            left(signal, now_ns, waits && !preempted);
        }
    }
    let next = ctx.arg::<*const u8>(2);
    let pid = field(next, offset(&TGID_OFFSET));
    if let Some(signal) = signal(pid)
        && field(next, offset(&PID_OFFSET)) == pid
    {
        // SAFETY: pointers into the map's entry; the main thread's fields are ours now.
        unsafe {
            if (*signal).state == state::RUNNABLE {
                (*signal).wait_ns += now_ns - (*signal).since_ns;
            }
            (*signal).since_ns = now_ns;
            (*signal).state = state::RUNNING;
            (*signal).switches += 1;
        }
    }
    0
}

#[inline(always)]
fn left(signal: *mut Signal, now_ns: u64, blocks: bool) {
    // SAFETY: pointers into the map's entry; the main thread's fields are ours now.
    unsafe {
        (*signal).since_ns = now_ns;
        (*signal).state = if blocks { state::BLOCKED } else { state::RUNNABLE };
        if blocks && (&raw const (*signal).watched).read_volatile() != 0 {
            tell(signal, now_ns, state::BLOCKED);
        }
    }
}

/// `sched_wakeup(task)`.
#[raw_tracepoint(tracepoint = "sched_wakeup")]
pub fn spry_wakeup(ctx: RawTracePointContext) -> i32 {
    let task = ctx.arg::<*const u8>(0);
    let pid = field(task, offset(&TGID_OFFSET));
    let Some(signal) = signal(pid) else { return 0 };
    if field(task, offset(&PID_OFFSET)) != pid {
        return 0;
    }
    // SAFETY: pointers into the map's entry; the main thread's fields are ours now.
    unsafe {
        if (*signal).state == state::BLOCKED {
            let now_ns = bpf_ktime_get_ns();
            (*signal).blocked_ns += now_ns - (*signal).since_ns;
            (*signal).since_ns = now_ns;
            (*signal).state = state::RUNNABLE;
            if (&raw const (*signal).watched).read_volatile() != 0 {
                tell(signal, now_ns, state::RUNNABLE);
            }
        }
    }
    0
}

/// A full buffer loses events; spryd looks at the states themselves now and then.
#[inline(always)]
fn tell(signal: *mut Signal, at_ns: u64, state: u64) {
    let Some(mut entry) = EVENTS.reserve::<SignalEvent>(0) else { return };
    // SAFETY: pointers into the map's entry.
    let (owner, cpu_ns) = unsafe { ((*signal).owner, (*signal).cpu_ns) };
    entry.write(SignalEvent { at_ns, owner, state, cpu_ns });
    entry.submit(0);
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_probe_read_kernel` is for programs under the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
