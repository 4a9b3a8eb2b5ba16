//! An instance sends: the answer to the invocation that it holds, or something against the rules.
//!
//! The instance is hostile. It may send at any time, from several threads, whatever it likes; it may
//! guess an invocation before it has read it. An answer counts when the slot's state is that
//! invocation, and takes it away by compare-and-swap: so one invocation has one answer at most, and one
//! instance has one message on its way at most.

use aya_ebpf::programs::SkMsgContext;
use aya_log_ebpf::warn;
use spry_ebpf_common::{
    Counter, SLOTS_PER_FUNCTION, STATE_DETACHED, STATE_HELD, STATE_IDLE, Slot, fault, flags, invocation_of,
};

use crate::{
    atomic,
    maps::{FUNCTIONS, SLOTS, count},
    message,
};

/// Sends an answer on to the port that waits for it; counts and records anything else.
#[inline(always)]
pub(crate) fn answer(ctx: &SkMsgContext, index: u32, connection: u32) {
    let Some(slot) = SLOTS.get_ptr_mut(index) else { return stranger(ctx, index) };
    // SAFETY: pointers into the map's entry; the hub may change the state at any time.
    let (expected, state) = unsafe { ((*slot).connection, (&raw const (*slot).state).read_volatile()) };
    // Detached: whatever it says, nobody listens any more. An answer that comes too late is no violation.
    if state == STATE_DETACHED {
        return;
    }
    if expected != connection {
        return stranger(ctx, index);
    }
    match accept(ctx, slot, index) {
        Ok(port) => {
            message::redirect(ctx, port);
            count(Counter::Answered);
        }
        // Detached in this very moment.
        Err(fault::NONE) => {}
        Err(kind) => violation(ctx, slot, index, kind),
    }
}

/// Checks the message, frees the slot, stamps the message. The result is the port that it is for.
#[inline(always)]
fn accept(ctx: &SkMsgContext, slot: *mut Slot, index: u32) -> Result<u32, u8> {
    let message = message::descriptor(ctx).ok_or(fault::MALFORMED)?;
    // SAFETY: `descriptor` has checked that the message is that long, and that it is the kernel's own.
    let (invocation, flags) = unsafe { ((*message).invocation, (*message).flags) };
    let invocation = invocation_of(invocation).ok_or(fault::NOT_ITS_INVOCATION)?;
    // SAFETY: pointers into the map's entry. The first three fields belong to `invocation` when `claimed` says so,
    // and can't change before the slot is idle again, which only the swap below brings about.
    let (port, route, step, single_use) = unsafe {
        // SYNC(slot-claimed): pairs with the swap in `port::Claim::try_take`.
        if (&raw const (*slot).claimed).read_volatile() != invocation {
            return Err(fault::NOT_ITS_INVOCATION);
        }
        ((*slot).port, (*slot).route, (*slot).step, (*slot).single_use != 0)
    };
    let next = if single_use || flags & flags::HOLD != 0 { STATE_HELD } else { STATE_IDLE };
    // SAFETY: only computes an address within the entry.
    let state = unsafe { &raw mut (*slot).state };
    match atomic::compare_and_swap(state, invocation, next) {
        old if old == invocation => {}
        STATE_DETACHED => return Err(fault::NONE),
        _ => return Err(fault::NOT_ITS_INVOCATION),
    }
    if next == STATE_IDLE {
        if let Some(function) = FUNCTIONS.get_ptr_mut(index / SLOTS_PER_FUNCTION) {
            // SAFETY: only computes an address within the entry.
            let mask = unsafe { &raw mut (*function).idle };
            atomic::set_bits(mask, 1 << (index % SLOTS_PER_FUNCTION));
        }
    }
    // SAFETY: as for the reads above.
    unsafe {
        (*message).route = route;
        (*message).step = step;
        (*message).source = index;
    }
    Ok(port)
}

/// The message goes to spryd's end of the connection; the slot says what it was.
#[inline(always)]
fn violation(ctx: &SkMsgContext, slot: *mut Slot, index: u32, kind: u8) {
    // SAFETY: pointers into the map's entry; `fault` and `violations` are hints for the report.
    unsafe {
        if (*slot).fault == fault::NONE {
            (*slot).fault = kind;
            warn!(ctx, "instance at slot {} broke the rules of the bus, kind {}", index, kind);
        }
        atomic::count(&raw mut (*slot).violations);
    }
    count(Counter::Violations);
}

/// A socket that isn't the one that the hub made for this address.
#[inline(always)]
fn stranger(ctx: &SkMsgContext, index: u32) {
    warn!(ctx, "a socket claims the address of slot {}, but isn't its connection", index);
    count(Counter::Violations);
}
