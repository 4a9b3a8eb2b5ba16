//! Which function serves a step.

use core::arch::asm;

use spry_ebpf_common::{CHAIN_BIT, STEPS_PER_ROUTE, TO_GATEWAY};

use crate::maps::ROUTES;

/// The function at a step of a descriptor's route; `None`: the route ends before it.
#[inline(always)]
pub(crate) fn function_at(route: u16, step: u32) -> Option<u32> {
    if route & CHAIN_BIT == 0 {
        return if step == 0 { Some(route as u32) } else { None };
    }
    let chain = ROUTES.get_ptr((route & !CHAIN_BIT) as u32)?;
    if step as usize >= STEPS_PER_ROUTE {
        return None;
    }
    // SAFETY: a pointer into the map's entry; user space writes it while no run is on the route.
    let function = unsafe {
        let functions = (&raw const (*chain).functions).cast::<u16>();
        functions.add(place(step)).read_volatile()
    };
    if function == TO_GATEWAY { None } else { Some(function as u32) }
}

/// A step as a place in a table of all steps.
///
/// An instruction, not an operator: where the compiler knows that the mask changes nothing it leaves it out, and
/// the verifier, which doesn't know, then refuses the access.
#[inline(always)]
pub(crate) fn place(step: u32) -> usize {
    const { assert!(STEPS_PER_ROUTE == 32) };
    let mut place = step as u64;
    // SAFETY: changes this one register.
    unsafe { asm!("{place} &= 31", place = inout(reg) place) };
    place as usize
}
