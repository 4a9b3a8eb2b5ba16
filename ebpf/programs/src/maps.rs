//! The tables that the program shares with user space. The loader sets how many entries each has.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, SockMap},
};
use spry_ebpf_common::{Counter, Function, Port, Route, Slot, Trail};

use crate::atomic;

/// The bus sockets: gateway ports, then one per slot.
#[map]
pub(crate) static SOCKETS: SockMap = SockMap::with_max_entries(1, 0);
/// One entry per instance.
#[map]
pub(crate) static SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// One entry per gateway port.
#[map]
pub(crate) static PORTS: Array<Port> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// One entry per function.
#[map]
pub(crate) static FUNCTIONS: Array<Function> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// One entry per chain's route.
#[map]
pub(crate) static ROUTES: Array<Route> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// `TRAILS_PER_PORT` entries per gateway port.
#[map]
pub(crate) static TRAILS: Array<Trail> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// One entry per [`Counter`].
#[map]
pub(crate) static COUNTERS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Counts an event.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(word) = COUNTERS.get_ptr_mut(counter as u32) {
        atomic::count(word);
    }
}
