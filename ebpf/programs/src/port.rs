//! A gateway port sends: an idle instance gets the invocation.
//!
//! The port's socket belongs to spryd, so the descriptor's content is trusted: `route` names the
//! function, or with `step` the place on a chain's route; `source` the port that gets the answer, and the run's
//! trail. `Port::claims` tells the sender, when its send returns, whether an instance took it; if not, the message
//! itself went to the port's real peer, where spryd throws it away.

use aya_ebpf::programs::SkMsgContext;
use spry_ebpf_common::{CHAIN_BIT, Counter, Descriptor, invocation_of};

use crate::{
    claim::{Claim, Placed},
    maps::{PORTS, count},
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
    let sent = unsafe { &*message };
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

/// Where an invocation goes. A plain route's step is the sender's own affair.
#[inline(always)]
fn function_of(sent: &Descriptor) -> Option<u32> {
    let step = if sent.route & CHAIN_BIT == 0 { 0 } else { sent.step };
    route::function_at(sent.route, step as u32)
}
