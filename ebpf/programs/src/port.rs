//! A gateway port sends: an idle instance gets the invocation.
//!
//! The port's socket belongs to spryd, so the descriptor's content is trusted: `route` names the
//! function, `source` the port that gets the answer. `Port::claims` tells the sender, when its send
//! returns, whether an instance took it; if not, the message itself went to the port's real peer, where
//! spryd throws it away.

use aya_ebpf::programs::SkMsgContext;
use spry_ebpf_common::{
    Counter, Descriptor, MAX_PORTS, PORT_BIT, Port, STATE_DETACHED, STATE_IDLE, invocation_of,
};

use crate::{
    atomic,
    maps::{PORTS, SLOTS, count},
    message,
    pick::Candidates,
};

/// Slots that one send tries at most: all of a function's.
const ATTEMPTS: u32 = spry_ebpf_common::SLOTS_PER_FUNCTION;

/// Gives the message to an idle instance of the function that it is for, if there is one.
#[inline(always)]
pub(crate) fn send(ctx: &SkMsgContext, index: u32, connection: u32) {
    if deliver(ctx, index, connection).is_none() {
        count(Counter::Bounced);
    }
}

#[inline(always)]
fn deliver(ctx: &SkMsgContext, index: u32, connection: u32) -> Option<()> {
    let port = PORTS.get_ptr_mut(index)?;
    // SAFETY: a pointer into the map's entry.
    if unsafe { (*port).connection } != connection {
        return None;
    }
    let message = message::descriptor(ctx)?;
    // SAFETY: `descriptor` has checked that the message is that long.
    let sent = unsafe { &*message };
    let invocation = invocation_of(sent.invocation)?;
    let mut candidates = Candidates::of(function_of(sent))?;
    let claim = Claim {
        port,
        invocation,
        answer_to: (sent.source & !PORT_BIT) % MAX_PORTS,
        route: sent.route,
        step: sent.step,
    };
    for _ in 0..ATTEMPTS {
        let bit = candidates.next()?;
        let slot = candidates.slot(bit);
        if claim.try_take(slot, candidates.mask(), bit) {
            if message::redirect(ctx, MAX_PORTS + slot) {
                count(Counter::Delivered);
                return Some(());
            }
            if !claim.give_back(slot) {
                return Some(());
            }
        }
    }
    None
}

/// Where an invocation goes. This is the one place that reads a descriptor's route: today the route
/// is the function itself; route tables of chains come here.
#[inline(always)]
fn function_of(sent: &Descriptor) -> u32 {
    sent.route as u32
}

/// An invocation looking for a slot.
struct Claim {
    port: *mut Port,
    invocation: u64,
    answer_to: u32,
    route: u16,
    step: u8,
}

impl Claim {
    /// Makes the slot busy with this invocation, if it is idle.
    #[inline(always)]
    fn try_take(&self, index: u32, mask: *mut u64, bit: u64) -> bool {
        let Some(slot) = SLOTS.get_ptr_mut(index) else { return false };
        // SAFETY: pointers into map entries. `port`, `route` and `step` are ours to write since the swap
        // succeeded; the port's entry is written by nobody else while its socket's lock is held.
        unsafe {
            if atomic::compare_and_swap(&raw mut (*slot).state, STATE_IDLE, self.invocation) != STATE_IDLE {
                return false;
            }
            (*slot).port = self.answer_to;
            (*slot).route = self.route;
            (*slot).step = self.step;
            // SYNC(slot-claimed): publishes the three; pairs with the loads of `claimed` in
            // `instance::answer` and in the hub's `detach`.
            atomic::swap(&raw mut (*slot).claimed, self.invocation);
            (*self.port).slot = index;
            (*self.port).claims += 1;
        }
        atomic::clear_bits(mask, bit);
        true
    }

    /// The slot's socket is gone: nobody is to pick it again. False when the hub was faster: then it
    /// has the invocation, and this message must go nowhere.
    #[inline(always)]
    fn give_back(&self, index: u32) -> bool {
        let Some(slot) = SLOTS.get_ptr_mut(index) else { return false };
        // SAFETY: as in `try_take`.
        unsafe {
            let state = &raw mut (*slot).state;
            if atomic::compare_and_swap(state, self.invocation, STATE_DETACHED) != self.invocation {
                return false;
            }
            (*self.port).claims -= 1;
        }
        true
    }
}
