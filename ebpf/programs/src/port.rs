//! A gateway port sends: an idle instance gets the invocation.
//!
//! The port's socket belongs to spryd, so the descriptor's content is trusted: `route` names the
//! function, or with `step` the place on a chain's route; `source` the port that gets the answer, and the run's
//! trail. `Port::claims` tells the sender, when its send returns, whether an instance took it; if not, the message
//! itself went to the port's real peer, where spryd throws it away.
//!
//! With `flags::CLAIMED` the sender has claimed a slot by itself, so that it could prepare something for that very instance
//! before it hears of it. Then the message has only to get there.

use aya_ebpf::programs::SkMsgContext;
use spry_ebpf_common::{
    CHAIN_BIT, Counter, Descriptor, MAX_PORTS, Port, SLOTS_PER_FUNCTION, flags, invocation_of,
};

use crate::{
    claim::{Claim, Placed},
    maps::{PORTS, SLOTS, count},
    message, route,
};

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
    let sent = unsafe { &mut *message };
    if sent.flags & flags::CLAIMED != 0 {
        return hand_over(ctx, port, sent);
    }
    let claim = Claim::from_source(invocation_of(sent.invocation)?, sent.source, sent.route, sent.step);
    match claim.place(ctx, function_of(sent)?) {
        Placed::In(slot) => {
            // SAFETY: a pointer into the map's entry, which nobody else writes while the port's socket is locked.
            unsafe {
                (*port).slot = slot;
                (*port).claims += 1;
            }
            count(Counter::Delivered);
            Some(())
        }
        Placed::WithHub => {
            // SAFETY: as above.
            unsafe { (*port).claims += 1 };
            Some(())
        }
        Placed::Nowhere => None,
    }
}

/// Sends a message to the instance whose own slot its sender has claimed, if it is still in there.
#[inline(always)]
fn hand_over(ctx: &SkMsgContext, port: *mut Port, sent: &mut Descriptor) -> Option<()> {
    let invocation = invocation_of(sent.invocation)?;
    let index = sent.route as u32 * SLOTS_PER_FUNCTION + sent.step as u32 % SLOTS_PER_FUNCTION;
    let slot = SLOTS.get_ptr_mut(index)?;
    // SAFETY: a pointer into the map's entry; the hub may change the state at any time.
    if unsafe { (&raw const (*slot).state).read_volatile() } != invocation {
        return None;
    }
    sent.flags = 0;
    sent.step = 0;
    if !message::redirect(ctx, MAX_PORTS + index) {
        return None;
    }
    // SAFETY: a pointer into the map's entry, which nobody else writes while the port's socket is locked.
    unsafe {
        (*port).slot = index;
        (*port).claims += 1;
    }
    count(Counter::Delivered);
    Some(())
}

/// Where an invocation goes. A plain route's step is the sender's own affair.
#[inline(always)]
fn function_of(sent: &Descriptor) -> Option<u32> {
    let step = if sent.route & CHAIN_BIT == 0 { 0 } else { sent.step };
    route::function_at(sent.route, step as u32)
}
