//! Which function serves a step.

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
        functions.add(step as usize % STEPS_PER_ROUTE).read_volatile()
    };
    if function == TO_GATEWAY { None } else { Some(function as u32) }
}
