//! Atomic instructions on map memory, shared with user space and with other CPUs.
//!
//! Written as instructions, not with `core::sync::atomic`: rustc describes the BPF target as
//! single-threaded without compare-and-swap, and so may turn atomic operations into plain ones. All
//! of these return the old value, which on every architecture makes the kernel's JIT order them fully
//! (`Documentation/bpf/standardization/instruction-set.rst`, `atomic_t.txt`).
//!
//! The pointers must point into map values; the verifier checks that.

use core::arch::asm;

/// Writes `new` if the word is `expected`; returns what it was.
#[inline(always)]
pub(crate) fn compare_and_swap(word: *mut u64, expected: u64, new: u64) -> u64 {
    let old;
    // SAFETY: one atomic instruction on a word that the verifier has checked.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word, new = in(reg) new, inout("r0") expected => old);
    }
    old
}

/// Writes `new`; returns what was there.
#[inline(always)]
pub(crate) fn swap(word: *mut u64, new: u64) -> u64 {
    let old;
    // SAFETY: as above.
    unsafe {
        asm!("{new} = xchg_64({word} + 0, {new})", word = in(reg) word, new = inout(reg) new => old);
    }
    old
}

/// Sets `bits`; returns what was there.
#[inline(always)]
pub(crate) fn set_bits(word: *mut u64, bits: u64) -> u64 {
    let old;
    // SAFETY: as above.
    unsafe {
        asm!("{bits} = atomic_fetch_or((u64 *)({word} + 0), {bits})",
            word = in(reg) word, bits = inout(reg) bits => old);
    }
    old
}

/// Clears `bits`; returns what was there.
#[inline(always)]
pub(crate) fn clear_bits(word: *mut u64, bits: u64) -> u64 {
    let old;
    // SAFETY: as above.
    unsafe {
        asm!("{bits} = atomic_fetch_and((u64 *)({word} + 0), {bits})",
            word = in(reg) word, bits = inout(reg) !bits => old);
    }
    old
}

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(word: *mut u64) {
    let mut _one = 1_u64;
    // SAFETY: as above.
    unsafe {
        asm!("{one} = atomic_fetch_add((u64 *)({word} + 0), {one})",
            word = in(reg) word, one = inout(reg) _one);
    }
}
