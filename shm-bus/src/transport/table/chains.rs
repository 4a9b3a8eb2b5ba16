//! Routes of chains, and the trails that runs leave on them.

use std::sync::atomic::{Ordering, fence};

use spry_ebpf_common::{Descriptor, Hop, STEPS_PER_ROUTE, TO_GATEWAY, invocation_of};

use super::{Cells, Claim, HopCell, Stamp, Table, TrailCell};
use crate::ids::{FunctionIndex, InvocationId, PeerId, RouteIndex, TrailIndex};
use crate::sys::monotonic_ns;
use crate::transport::BusError;

impl<C: Cells> Table<C> {
    /// Sets which functions a route goes through. No run may be on it.
    pub fn set_route(&self, route: RouteIndex, steps: &[FunctionIndex]) -> Result<(), BusError> {
        let refused = |why| Err(BusError::Route { route: route.0, why });
        let Some(cell) = self.cells.routes().get(usize::from(route.0)) else {
            return refused(format!("there are {} routes", self.cells.routes().len()));
        };
        if steps.is_empty() || steps.len() > STEPS_PER_ROUTE {
            return refused(format!("it has {} steps, and may have 1 to {STEPS_PER_ROUTE}", steps.len()));
        }
        if let Some(step) = steps.iter().find(|step| usize::from(step.0) >= self.functions()) {
            return refused(format!(
                "function {} is not among the {} that there are",
                step.0,
                self.functions()
            ));
        }
        for (index, function) in cell.functions.iter().enumerate() {
            function.store(steps.get(index).map_or(TO_GATEWAY, |step| step.0), Ordering::Release);
        }
        Ok(())
    }

    /// The function that serves a step; `None`: the route ends before it.
    pub fn function_at(&self, route: RouteIndex, step: u8) -> Option<FunctionIndex> {
        let cell = self.cells.routes().get(usize::from(route.0))?;
        let function = cell.functions.get(usize::from(step))?.load(Ordering::Acquire);
        (function != TO_GATEWAY).then_some(FunctionIndex(function))
    }

    /// Begins a trail: no step of it is done yet.
    pub fn begin_trail(&self, trail: TrailIndex, invocation: InvocationId, deadline_ns: u64) {
        debug_assert!(invocation_of(invocation.0).is_some(), "{invocation:?}");
        let Some(cell) = self.trail_cell(trail) else { return };
        // While the hops are wiped, it is nobody's.
        cell.invocation.store(0, Ordering::Release);
        for hop in &cell.hop {
            hop.sent_ns.store(0, Ordering::Relaxed);
            hop.answered_ns.store(0, Ordering::Relaxed);
        }
        cell.deadline_ns.store(deadline_ns, Ordering::Relaxed);
        // SYNC(trail-begun): pairs with the load in `trail_of` and the kernel's.
        cell.invocation.store(invocation.0, Ordering::Release);
    }

    /// No step of this trail starts from now on.
    pub fn cancel_trail(&self, trail: TrailIndex) {
        if let Some(cell) = self.trail_cell(trail) {
            cell.deadline_ns.store(0, Ordering::Release);
            // SYNC(trail-cancelled): the store before whatever the caller looks at next. Either the looker in `may_go_on` (or the
            // kernel's, in `note_answered`) sees it, or the caller sees that the step has been answered.
            fence(Ordering::SeqCst);
        }
    }

    /// Appends the first `steps` hops.
    pub fn trail(&self, trail: TrailIndex, steps: usize, out: &mut Vec<Hop>) {
        if let Some(cell) = self.trail_cell(trail) {
            out.extend(cell.hop.iter().take(steps).map(copy));
        }
    }

    /// Whether the next step of this run may start now: the trail is still its, and there is time left.
    pub fn may_go_on(&self, trail: TrailIndex, invocation: u64) -> bool {
        // SYNC(trail-cancelled): after the answer was noted; see `cancel_trail`.
        fence(Ordering::SeqCst);
        self.trail_of(trail, invocation)
            .is_some_and(|cell| monotonic_ns() < cell.deadline_ns.load(Ordering::Acquire))
    }

    /// A step was put into a slot.
    pub(super) fn note_sent(&self, Claim { invocation, stamp }: &Claim) {
        if let Some(hop) = self.hop(stamp, invocation.0) {
            hop.sent_ns.store(monotonic_ns(), Ordering::Relaxed);
        }
    }

    /// A step's answer was accepted.
    pub(super) fn note_answered(&self, peer: PeerId, stamp: &Stamp, answer: &Descriptor) {
        let Some(hop) = self.hop(stamp, answer.invocation) else { return };
        hop.slot.store(peer.slot, Ordering::Relaxed);
        hop.slot_generation.store(peer.generation, Ordering::Relaxed);
        hop.segment.store(answer.segment, Ordering::Relaxed);
        hop.generation.store(answer.generation, Ordering::Relaxed);
        hop.offset.store(answer.offset, Ordering::Relaxed);
        hop.length.store(answer.length, Ordering::Relaxed);
        // SYNC(hop-answered): pairs with the load in `copy`.
        hop.answered_ns.store(monotonic_ns(), Ordering::Release);
    }

    fn trail_cell(&self, trail: TrailIndex) -> Option<&TrailCell> {
        self.cells.trails().get(trail.global() as usize)
    }

    fn trail_of(&self, trail: TrailIndex, invocation: u64) -> Option<&TrailCell> {
        // SYNC(trail-begun): see `begin_trail`.
        self.trail_cell(trail).filter(|cell| cell.invocation.load(Ordering::Acquire) == invocation)
    }

    /// The hop of a chain's step, if the trail is this run's.
    fn hop(&self, stamp: &Stamp, invocation: u64) -> Option<&HopCell> {
        stamp.chain()?;
        self.trail_of(stamp.trail, invocation)?.hop.get(usize::from(stamp.step))
    }
}

fn copy(hop: &HopCell) -> Hop {
    // SYNC(hop-answered): see `note_answered`.
    let answered_ns = hop.answered_ns.load(Ordering::Acquire);
    Hop {
        sent_ns: hop.sent_ns.load(Ordering::Relaxed),
        answered_ns,
        slot: hop.slot.load(Ordering::Relaxed),
        slot_generation: hop.slot_generation.load(Ordering::Relaxed),
        segment: hop.segment.load(Ordering::Relaxed),
        generation: hop.generation.load(Ordering::Relaxed),
        offset: hop.offset.load(Ordering::Relaxed),
        length: hop.length.load(Ordering::Relaxed),
    }
}
