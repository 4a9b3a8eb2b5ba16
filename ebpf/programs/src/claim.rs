//! An invocation looks for an idle slot: from a gateway port, or on from an instance that has answered.

use aya_ebpf::programs::SkMsgContext;
use spry_ebpf_common::{
    MAX_PORTS, SLOTS_PER_FUNCTION, STATE_DETACHED, STATE_IDLE, TRAILS_PER_PORT, port_of, trail_of,
};

use crate::{atomic, maps::SLOTS, message, pick::Candidates, trail};

/// Slots that one message tries at most: all of a function's.
const ATTEMPTS: u32 = SLOTS_PER_FUNCTION;

/// What is written into a slot with an invocation.
pub(crate) struct Claim {
    pub(crate) invocation: u64,
    /// The port that gets the answer.
    pub(crate) port: u32,
    /// Of all ports' trails.
    pub(crate) trail: u32,
    pub(crate) route: u16,
    pub(crate) step: u8,
}

/// What became of it.
pub(crate) enum Placed {
    /// In the slot of this index; the message is on its way there.
    In(u32),
    /// Nobody is idle.
    Nowhere,
    /// The hub has detached the chosen slot and has the invocation: the message must go nowhere.
    WithHub,
}

impl Claim {
    /// Port and trail of a descriptor's `source`, as gateway ports write it.
    #[inline(always)]
    pub(crate) fn from_source(invocation: u64, source: u32, route: u16, step: u8) -> Self {
        let port = port_of(source);
        Self { invocation, port, trail: port * TRAILS_PER_PORT + trail_of(source), route, step }
    }

    /// Gives the message to an idle instance of the function.
    #[inline(always)]
    pub(crate) fn place(&self, ctx: &SkMsgContext, function: u32) -> Placed {
        let Some(mut candidates) = Candidates::of(function) else { return Placed::Nowhere };
        for _ in 0..ATTEMPTS {
            let Some(bit) = candidates.next() else { return Placed::Nowhere };
            let slot = candidates.slot(bit);
            if let Some(owner) = self.try_take(slot, candidates.mask(), bit) {
                if message::redirect(ctx, MAX_PORTS + owner) {
                    return Placed::In(slot);
                }
                if !self.give_back(slot) {
                    return Placed::WithHub;
                }
            }
        }
        Placed::Nowhere
    }

    /// Makes the slot busy with this invocation, if it is idle. Whose socket it is, as a slot.
    #[inline(always)]
    fn try_take(&self, index: u32, mask: *mut u64, bit: u64) -> Option<u32> {
        let slot = SLOTS.get_ptr_mut(index)?;
        // SAFETY: pointers into the map's entry. All but the state is ours to write since the swap succeeded.
        unsafe {
            if atomic::compare_and_swap(&raw mut (*slot).state, STATE_IDLE, self.invocation) != STATE_IDLE {
                return None;
            }
            (*slot).port = self.port;
            (*slot).trail = self.trail;
            (*slot).emitted = 0;
            (*slot).route = self.route;
            (*slot).step = self.step;
            trail::note_sent(self);
            // SYNC(slot-claimed): publishes the five; pairs with the look at `claimed` in `Held::of`
            // and in the hub's `detach`.
            atomic::swap(&raw mut (*slot).claimed, self.invocation);
            atomic::clear_bits(mask, bit);
            Some((*slot).owner)
        }
    }

    /// The slot's socket is gone: nobody is to pick it again. False when the hub was faster: then it
    /// has the invocation.
    #[inline(always)]
    fn give_back(&self, index: u32) -> bool {
        let Some(slot) = SLOTS.get_ptr_mut(index) else { return false };
        // SAFETY: as in `try_take`.
        let state = unsafe { &raw mut (*slot).state };
        atomic::compare_and_swap(state, self.invocation, STATE_DETACHED) == self.invocation
    }
}
