//! The program's arrays, mapped: where the hub and the kernel meet.

use std::sync::atomic::Ordering;

use spry_ebpf_common::{Counter, SLOTS_PER_FUNCTION, STATE_IDLE};

use super::sys::{CounterCell, MappedArray, MaskCell, PortCell};
use crate::ids::FunctionIndex;
use crate::transport::table::{Cells, FunctionCell, RouteCell, SlotCell, TrailCell};

/// All of them.
#[derive(Debug)]
pub(super) struct Arrays {
    pub(super) slots: MappedArray<SlotCell>,
    pub(super) functions: MappedArray<FunctionCell>,
    /// The same memory as `functions`.
    pub(super) masks: MappedArray<MaskCell>,
    pub(super) ports: MappedArray<PortCell>,
    pub(super) counters: MappedArray<CounterCell>,
    pub(super) routes: MappedArray<RouteCell>,
    pub(super) trails: MappedArray<TrailCell>,
}

impl Cells for Arrays {
    fn slots(&self) -> &[SlotCell] {
        &self.slots
    }
    fn functions(&self) -> &[FunctionCell] {
        &self.functions
    }
    fn routes(&self) -> &[RouteCell] {
        &self.routes
    }
    fn trails(&self) -> &[TrailCell] {
        &self.trails
    }
}

impl Arrays {
    /// Whether some slot of the function is idle. The mask may be out of date, so the states decide:
    /// otherwise a caller that sends for as long as somebody seems idle could go round in circles.
    pub(super) fn has_idle(&self, function: FunctionIndex) -> bool {
        let Some(mask) = self.masks.get(usize::from(function.0)) else { return false };
        let first = usize::from(function.0) * SLOTS_PER_FUNCTION as usize;
        let mut rest = mask.idle.load(Ordering::Acquire);
        while rest != 0 {
            let slot = first + rest.trailing_zeros() as usize;
            if self.slots[slot].state.load(Ordering::Relaxed) == STATE_IDLE {
                return true;
            }
            rest &= rest - 1;
        }
        false
    }

    /// Clears hints of slots that nobody has. (An answer and a detach that cross can leave one set.)
    pub(super) fn forget_hints(&self, function: FunctionIndex, free: u64) {
        self.masks[usize::from(function.0)].idle.fetch_and(!free, Ordering::Relaxed);
    }

    /// How often something has happened since the program was loaded.
    pub(super) fn count(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].0.load(Ordering::Relaxed)
    }
}
