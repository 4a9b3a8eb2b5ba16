//! The trail of a run: until when it may go on, and what each of its steps did.
//!
//! A trail that is another invocation's by now is left alone. The run's own hops are written by whoever moves the
//! invocation, so by one program at a time.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use spry_ebpf_common::{CHAIN_BIT, Descriptor, Hop, Trail};

use crate::{atomic, claim::Claim, maps::TRAILS, route::place};

/// A step is put into a slot.
#[inline(always)]
pub(crate) fn note_sent(claim: &Claim) {
    if claim.route & CHAIN_BIT == 0 {
        return;
    }
    let Some(trail) = of(claim.trail, claim.invocation) else { return };
    let hop = hop(trail, claim.step);
    // SAFETY: a pointer into the map's entry; the helper has no preconditions.
    unsafe { (&raw mut (*hop).sent_ns).write_volatile(bpf_ktime_get_ns()) };
}

/// A step's answer, which lies where `answer` says, was accepted. True: the run has time left for another step.
#[inline(always)]
pub(crate) fn note_answered(
    index: u32,
    step: u8,
    slot: u32,
    slot_generation: u32,
    answer: &Descriptor,
) -> bool {
    let Some(trail) = of(index, answer.invocation) else { return false };
    let hop = hop(trail, step);
    // SAFETY: pointers into the map's entry; the helper has no preconditions.
    unsafe {
        let now = bpf_ktime_get_ns();
        (*hop).slot = slot;
        (*hop).slot_generation = slot_generation;
        (*hop).segment = answer.segment;
        (*hop).generation = answer.generation;
        (*hop).offset = answer.offset;
        (*hop).length = answer.length;
        // SYNC(hop-answered): whoever sees the time sees where the answer lies; pairs with the load in the hub's `copy`. A
        // plain store may be seen before those above it where memory is weakly ordered (arm64).
        atomic::swap(&raw mut (*hop).answered_ns, now);
        now < (&raw const (*trail).deadline_ns).read_volatile()
    }
}

/// The trail, if it is this invocation's.
#[inline(always)]
fn of(index: u32, invocation: u64) -> Option<*mut Trail> {
    let trail = TRAILS.get_ptr_mut(index)?;
    // SAFETY: a pointer into the map's entry.
    let is_its = unsafe { (&raw const (*trail).invocation).read_volatile() } == invocation;
    is_its.then_some(trail)
}

#[inline(always)]
fn hop(trail: *mut Trail, step: u8) -> *mut Hop {
    // SAFETY: only computes an address within the entry.
    unsafe { (&raw mut (*trail).hop).cast::<Hop>().add(place(step as u32)) }
}
