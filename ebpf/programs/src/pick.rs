//! Which instance of a function gets an invocation.
//!
//! `Function::idle` says who is probably free. Of those, the ones at home on the CPU that we run on come
//! first: waking a process on another core costs several times as much. The mask is a hint; the slot's state
//! decides, by compare-and-swap. A failed swap leaves the mask alone: clearing the bit here
//! could undo what the instance, idle again by now, has just set.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use spry_ebpf_common::{Function, HOME_CPUS, SLOTS_PER_FUNCTION};

use crate::maps::FUNCTIONS;

/// Slots that are worth trying, the ones at home here first.
pub(crate) struct Candidates {
    function: *mut Function,
    first_slot: u32,
    rest: u64,
    home: u64,
}

impl Candidates {
    /// Whoever is probably idle now.
    #[inline(always)]
    pub(crate) fn of(function_index: u32) -> Option<Self> {
        let function = FUNCTIONS.get_ptr_mut(function_index)?;
        // SAFETY: the helper has no preconditions.
        let cpu = unsafe { bpf_get_smp_processor_id() } as usize % HOME_CPUS;
        // SAFETY: a pointer into the map's entry; others write these words whole.
        let (rest, home) = unsafe { ((&raw const (*function).idle).read_volatile(), (*function).home[cpu]) };
        Some(Self { function, first_slot: function_index * SLOTS_PER_FUNCTION, rest, home })
    }

    /// The next one, as a bit of the mask.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<u64> {
        let near = self.rest & self.home;
        let set = if near != 0 { near } else { self.rest };
        let bit = set & set.wrapping_neg();
        self.rest &= !bit;
        if bit == 0 { None } else { Some(bit) }
    }

    /// The slot that `bit` stands for.
    #[inline(always)]
    pub(crate) fn slot(&self, bit: u64) -> u32 {
        self.first_slot + place(bit)
    }

    /// The idle mask.
    #[inline(always)]
    pub(crate) fn mask(&self) -> *mut u64 {
        // SAFETY: only computes an address within the entry.
        unsafe { &raw mut (*self.function).idle }
    }
}

/// The place of the one bit that is set.
///
/// BPF has no instruction for it, and what the compiler would put in its place is a table in memory:
/// so, a bit of the place at a time.
#[inline(always)]
fn place(bit: u64) -> u32 {
    const HALVES: [u64; 6] = [
        0xaaaa_aaaa_aaaa_aaaa,
        0xcccc_cccc_cccc_cccc,
        0xf0f0_f0f0_f0f0_f0f0,
        0xff00_ff00_ff00_ff00,
        0xffff_0000_ffff_0000,
        0xffff_ffff_0000_0000,
    ];
    let mut place = 0;
    let mut power = 0;
    while power < 6 {
        let upper = bit & HALVES[power];
        place |= (((upper | upper.wrapping_neg()) >> 63) as u32) << power;
        power += 1;
    }
    place
}
