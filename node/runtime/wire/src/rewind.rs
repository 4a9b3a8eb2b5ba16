//! How an instance goes back to what it was before its request: what spryd, the runtime and the stub have in common.
//!
//! docs/decisions/0010 has the design. The stub is code that spryd has made; the plan is what spryd has found an instance to
//! be when it said [`crate::control::FromInstance::Hold`]. Both are sealed files, mapped at the same addresses everywhere,
//! so that the stub can find everything by itself, whatever the function has left in registers and memory.
//!
//! ```text
//! STUB_AT   code, read and execute
//! ORDERS_AT what of the plan can be left out this time: spryd's to write       read only
//! PLAN_AT   Head | extended registers | lists of ranges | pages to copy back          read only
//! COMMON_AT pages to copy back that other instances of the zygote copy as well        read only
//! ```

use std::mem::offset_of;

/// Where the stub is mapped. Far from what the kernel gives out by itself.
pub const STUB_AT: u64 = 0x2000_0000_0000;
/// How long it is at most.
pub const STUB_LEN: u64 = 4096;
/// Where its first system call returns to, which is how the kernel says where a call came from.
pub const STUB_ASKS: u64 = STUB_AT + 0x40;
/// Where a page is mapped on which spryd says, each time, what needn't be done. Its first byte: [`NOTHING_TO_DROP`], or 0; the
/// next: [`NOTHING_TO_UNMAP`], or 0. At [`ORDERS_OUTBOX`]: how much of the outbox is zeroed, in words of eight bytes.
pub const ORDERS_AT: u64 = STUB_AT + (1 << 16);
/// How long that is.
pub const ORDERS_LEN: u64 = 4096;
/// See [`ORDERS_AT`].
pub const ORDERS_OUTBOX: u64 = 8;
/// The request has written to no page of the ranges that are dropped otherwise.
pub const NOTHING_TO_DROP: u8 = 1;
/// Nothing is mapped in the gaps.
pub const NOTHING_TO_UNMAP: u8 = 1;
/// Where the plan is mapped.
pub const PLAN_AT: u64 = 0x2000_1000_0000;
/// How long it is at most.
pub const PLAN_MAX: u64 = 64 << 20;
/// Where the pages are mapped that instances of one zygote have in common.
pub const COMMON_AT: u64 = 0x2000_2000_0000;
/// How long they are at most.
pub const COMMON_MAX: u64 = 64 << 20;
/// Where the processor's extended registers lie in the plan.
pub const EXTENDED_AT: u64 = 4096;
/// How long they are at most: what AVX-512 needs, and more.
pub const EXTENDED_MAX: u64 = 12 << 10;
/// Where the lists of ranges begin in the plan.
pub const LISTS_AT: u64 = EXTENDED_AT + EXTENDED_MAX;

/// The descriptors that an instance has between requests: standard input and the log pipes, and this.
pub const BUS_FD: i32 = 3;
/// All from here on are closed.
pub const FDS: u32 = 4;
/// So much of the outbox's beginning is zeroed if a request has written beyond [`OUTBOX_FIRST`]. An instance whose answer
/// needed more is replaced.
pub const OUTBOX_ZEROED: u64 = 64 << 10;
/// So much of it is zeroed else: most answers need no more.
pub const OUTBOX_FIRST: u64 = 8 << 10;

/// The registers that a call keeps, and what else the kernel has for an instance that isn't memory. Written by the instance.
#[repr(C, align(64))]
#[derive(Debug, Clone)]
pub struct Registers {
    /// As `XSAVE` writes them.
    pub extended: [u8; EXTENDED_MAX as usize],
    /// `rbx`, `rbp`, `r12` to `r15`.
    pub kept: [u64; 6],
    /// The stack's end.
    pub stack: u64,
    /// Where it goes on.
    pub goes_on: u64,
    /// The bases of the `fs` and `gs` segments.
    pub bases: [u64; 2],
    /// The signals that are blocked.
    pub mask: u64,
    /// Where the heap ends.
    pub brk: u64,
}

/// Addresses and lengths of a list in the plan.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct List {
    /// Where its first entry lies.
    pub at: u64,
    /// How many there are.
    pub count: u64,
}

/// What the plan begins with.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Head {
    /// All ones: the mask that the stub asks with.
    pub all_signals: u64,
    /// See [`Registers::mask`].
    pub mask: u64,
    /// Zero: a time not to wait.
    pub no_time: [u64; 2],
    /// See [`Registers::brk`].
    pub brk: u64,
    /// Where the outbox lies.
    pub outbox: u64,
    /// See [`Registers::bases`].
    pub bases: [u64; 2],
    /// Ranges in which nothing may be mapped: start and length in bytes.
    pub gaps: List,
    /// Ranges whose private pages are dropped, if there are any: the same.
    pub drops: List,
    /// Ranges that are copied back then. An entry has three words: start, words of eight bytes, and where the bytes lie.
    pub copies: List,
    /// The flags.
    pub flags: u64,
    /// See [`Registers`].
    pub stack: u64,
    /// See [`Registers`].
    pub goes_on: u64,
    /// See [`Registers`].
    pub kept: [u64; 6],
    /// 1: the bases are set by instructions, which the kernel allows; 0: by system calls.
    pub sets_bases: u64,
    /// Ranges that the instance seals (`mseal`) before its first request: start and length in bytes.
    pub seals: List,
}

/// Flags that a process begins with: interrupts on, and the bit that is always set.
pub const PLAIN_FLAGS: u64 = 0x202;

/// Where the stub finds the words of the [`Head`]. Its code has these numbers.
pub mod at {
    use super::{Head, offset_of};
    /// See [`Head`].
    pub const ALL_SIGNALS: usize = offset_of!(Head, all_signals);
    /// See [`Head`].
    pub const MASK: usize = offset_of!(Head, mask);
    /// See [`Head`].
    pub const NO_TIME: usize = offset_of!(Head, no_time);
    /// See [`Head`].
    pub const BRK: usize = offset_of!(Head, brk);
    /// See [`Head`].
    pub const OUTBOX: usize = offset_of!(Head, outbox);
    /// See [`Head`].
    pub const BASES: usize = offset_of!(Head, bases);
    /// See [`Head`].
    pub const GAPS: usize = offset_of!(Head, gaps);
    /// See [`Head`].
    pub const DROPS: usize = offset_of!(Head, drops);
    /// See [`Head`].
    pub const COPIES: usize = offset_of!(Head, copies);
    /// See [`Head`].
    pub const FLAGS: usize = offset_of!(Head, flags);
    /// See [`Head`].
    pub const STACK: usize = offset_of!(Head, stack);
    /// See [`Head`].
    pub const GOES_ON: usize = offset_of!(Head, goes_on);
    /// See [`Head`].
    pub const KEPT: usize = offset_of!(Head, kept);
    /// See [`Head`].
    pub const SETS_BASES: usize = offset_of!(Head, sets_bases);
}

const _: () = assert!(size_of::<Head>() as u64 <= EXTENDED_AT);
const _: () = assert!(offset_of!(Registers, kept) as u64 == EXTENDED_MAX);
