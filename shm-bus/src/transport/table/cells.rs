//! The table's words, as atomics: the layout of `ebpf/common`, proven here.

use std::io;
use std::mem::{align_of, offset_of, size_of};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use spry_ebpf_common::{
    DEFAULT_ROUTES, Function, HOME_CPUS, Hop, Route, SLOTS_PER_FUNCTION, STEPS_PER_ROUTE, Slot,
    TRAILS_PER_PORT, Trail,
};

use crate::sys::Zeroed;

/// A [`Slot`], shared; the fields mean what they mean there.
#[repr(C, align(64))]
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "documented where both sides find it, in `Slot`")]
pub struct SlotCell {
    pub state: AtomicU64,
    pub claimed: AtomicU64,
    pub port: AtomicU32,
    pub generation: AtomicU32,
    pub route: AtomicU16,
    pub step: AtomicU8,
    pub fault: AtomicU8,
    pub connection: AtomicU32,
    pub violations: AtomicU64,
    pub single_use: AtomicU32,
    pub owner: AtomicU32,
    pub trail: AtomicU32,
    pub emitted: AtomicU32,
    pub seats: AtomicU32,
    pub seats_closed: AtomicU32,
}

/// A [`Function`], shared.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct FunctionCell {
    pub(super) idle: AtomicU64,
    pub(super) waiting: AtomicU64,
    reserved: [AtomicU64; 6],
    pub(super) home: [AtomicU64; HOME_CPUS],
}

/// A [`Route`], shared.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct RouteCell {
    pub(super) functions: [AtomicU16; STEPS_PER_ROUTE],
}

/// A [`Trail`], shared.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct TrailCell {
    pub(super) deadline_ns: AtomicU64,
    pub(super) invocation: AtomicU64,
    pub(super) hop: [HopCell; STEPS_PER_ROUTE],
    reserved: [AtomicU64; 6],
}

/// A [`Hop`], shared.
#[repr(C)]
#[derive(Debug, Default)]
pub struct HopCell {
    pub(super) sent_ns: AtomicU64,
    pub(super) answered_ns: AtomicU64,
    pub(super) slot: AtomicU32,
    pub(super) slot_generation: AtomicU32,
    pub(super) segment: AtomicU32,
    pub(super) generation: AtomicU32,
    pub(super) offset: AtomicU32,
    pub(super) length: AtomicU32,
}

const _: () = {
    assert!(size_of::<SlotCell>() == size_of::<Slot>() && align_of::<SlotCell>() == align_of::<Slot>());
    assert!(offset_of!(SlotCell, state) == offset_of!(Slot, state));
    assert!(offset_of!(SlotCell, claimed) == offset_of!(Slot, claimed));
    assert!(offset_of!(SlotCell, port) == offset_of!(Slot, port));
    assert!(offset_of!(SlotCell, single_use) == offset_of!(Slot, single_use));
    assert!(offset_of!(SlotCell, generation) == offset_of!(Slot, generation));
    assert!(offset_of!(SlotCell, route) == offset_of!(Slot, route));
    assert!(offset_of!(SlotCell, step) == offset_of!(Slot, step));
    assert!(offset_of!(SlotCell, fault) == offset_of!(Slot, fault));
    assert!(offset_of!(SlotCell, connection) == offset_of!(Slot, connection));
    assert!(offset_of!(SlotCell, violations) == offset_of!(Slot, violations));
    assert!(offset_of!(SlotCell, trail) == offset_of!(Slot, trail));
    assert!(offset_of!(SlotCell, emitted) == offset_of!(Slot, emitted));
    assert!(offset_of!(SlotCell, owner) == offset_of!(Slot, owner));
    assert!(offset_of!(SlotCell, seats) == offset_of!(Slot, seats));
    assert!(offset_of!(SlotCell, seats_closed) == offset_of!(Slot, seats_closed));
    assert!(size_of::<FunctionCell>() == size_of::<Function>());
    assert!(align_of::<FunctionCell>() == align_of::<Function>());
    assert!(offset_of!(FunctionCell, idle) == offset_of!(Function, idle));
    assert!(offset_of!(FunctionCell, waiting) == offset_of!(Function, waiting));
    assert!(offset_of!(FunctionCell, home) == offset_of!(Function, home));
    assert!(size_of::<RouteCell>() == size_of::<Route>() && align_of::<RouteCell>() == align_of::<Route>());
    assert!(size_of::<TrailCell>() == size_of::<Trail>() && align_of::<TrailCell>() == align_of::<Trail>());
    assert!(offset_of!(TrailCell, deadline_ns) == offset_of!(Trail, deadline_ns));
    assert!(offset_of!(TrailCell, invocation) == offset_of!(Trail, invocation));
    assert!(offset_of!(TrailCell, hop) == offset_of!(Trail, hop));
    assert!(size_of::<HopCell>() == size_of::<Hop>());
    assert!(offset_of!(HopCell, answered_ns) == offset_of!(Hop, answered_ns));
    assert!(offset_of!(HopCell, slot) == offset_of!(Hop, slot));
    assert!(offset_of!(HopCell, slot_generation) == offset_of!(Hop, slot_generation));
    assert!(offset_of!(HopCell, segment) == offset_of!(Hop, segment));
    assert!(offset_of!(HopCell, generation) == offset_of!(Hop, generation));
    assert!(offset_of!(HopCell, offset) == offset_of!(Hop, offset));
    assert!(offset_of!(HopCell, length) == offset_of!(Hop, length));
};

/// Where the cells lie. There are `SLOTS_PER_FUNCTION` slots to each function.
pub trait Cells: Send + Sync {
    /// All slots.
    fn slots(&self) -> &[SlotCell];
    /// All functions.
    fn functions(&self) -> &[FunctionCell];
    /// All routes.
    fn routes(&self) -> &[RouteCell];
    /// `TRAILS_PER_PORT` trails of each port that can be opened.
    fn trails(&self) -> &[TrailCell];
}

/// Cells in this process's own memory; no page is used before one of its cells is.
#[derive(Debug)]
pub struct Heap {
    slots: Zeroed<SlotCell>,
    functions: Zeroed<FunctionCell>,
    routes: Zeroed<RouteCell>,
    trails: Zeroed<TrailCell>,
}

impl Heap {
    /// All slots detached. Fails when there is no memory.
    pub fn new(functions: usize, ports: usize) -> io::Result<Self> {
        Ok(Self {
            slots: Zeroed::new(functions * SLOTS_PER_FUNCTION as usize)?,
            functions: Zeroed::new(functions)?,
            routes: Zeroed::new(DEFAULT_ROUTES as usize)?,
            trails: Zeroed::new(ports * TRAILS_PER_PORT as usize)?,
        })
    }
}

impl Cells for Heap {
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
