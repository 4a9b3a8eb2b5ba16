//! An instance sends: the answer to the invocation that it holds, a value that it emits for it, or something
//! against the rules.
//!
//! The instance is hostile. It may send at any time, from several threads, whatever it likes; it may
//! guess an invocation before it has read it. An answer counts when the slot's state is that
//! invocation, and takes it away by compare-and-swap: so one invocation has one answer at most, and one
//! instance has one answer on its way at most. Where the answer goes is written in the slot and in the route:
//! nothing of it is the instance's to say.

use aya_ebpf::programs::SkMsgContext;
use aya_log_ebpf::warn;
use spry_ebpf_common::{
    CHAIN_BIT, Counter, Descriptor, EMITS_MAX, SEATS, SLOTS_PER_FUNCTION, STATE_DETACHED, STATE_HELD,
    STATE_IDLE, Slot, fault, flags, invocation_of, status,
};

use crate::{
    atomic,
    claim::{Claim, Placed},
    maps::{FUNCTIONS, SLOTS, count},
    message, route, trail,
};

/// Sends a message on to where it belongs; counts and records what is against the rules.
#[inline(always)]
pub(crate) fn send(ctx: &SkMsgContext, index: u32, connection: u32) {
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
    // SAFETY: as above.
    let broken = unsafe { (*slot).fault };
    if broken != fault::NONE {
        // Nothing counts from who has broken a rule once: spryd is about to end it.
        return violation(ctx, slot, index, broken);
    }
    match accept(ctx, slot, index) {
        // Detached in this very moment.
        Ok(()) | Err(fault::NONE) => {}
        Err(kind) => violation(ctx, slot, index, kind),
    }
}

#[inline(always)]
fn accept(ctx: &SkMsgContext, slot: *mut Slot, index: u32) -> Result<(), u8> {
    let message = message::descriptor(ctx).ok_or(fault::MALFORMED)?;
    // SAFETY: `descriptor` has checked that the message is that long, and that it is the kernel's own.
    let message = unsafe { &mut *message };
    let held = Held::of(slot, index, message.invocation)?;
    let said = message.flags;
    message.route = held.route;
    message.step = held.step;
    message.source = index;
    if said & flags::EMIT != 0 {
        return emit(ctx, message, &held);
    }
    match said & status::MASK {
        status::OK | status::FAILED => answer(ctx, index, message, &held),
        _ => Err(fault::MALFORMED),
    }
}

/// What a slot's fields say about the invocation that its instance names. They belong to it when `claimed` says so,
/// and can't change before the slot is idle again, which only the swap in [`answer`] brings about.
struct Held {
    /// The instance's own slot, or one of its further seats.
    seat: *mut Slot,
    seat_index: u32,
    /// The seat is being taken away: nobody is to be put there any more.
    closed: bool,
    port: u32,
    trail: u32,
    generation: u32,
    route: u16,
    step: u8,
    single_use: bool,
}

impl Held {
    #[inline(always)]
    fn of(slot: *mut Slot, index: u32, invocation: u64) -> Result<Self, u8> {
        let invocation = invocation_of(invocation).ok_or(fault::NOT_ITS_INVOCATION)?;
        let (seat, seat_index) = seat_of(slot, index, invocation).ok_or(fault::NOT_ITS_INVOCATION)?;
        // SYNC(slot-claimed): pairs with the swap in `Claim::try_take`. What looked in `has` were plain loads, after which weakly
        // ordered memory (arm64) may show the fields as they were before: to who guesses an invocation that is just being put
        // here. This is a full barrier.
        // SAFETY: a pointer into the map's entry.
        if atomic::compare_and_swap(unsafe { &raw mut (*seat).claimed }, invocation, invocation) != invocation {
            return Err(fault::NONE); // detached, and another's already
        }
        // SAFETY: pointers into the map's entries.
        unsafe {
            Ok(Self {
                seat,
                seat_index,
                closed: seat_index != index && (&raw const (*slot).seats_closed).read_volatile() != 0,
                port: (*seat).port,
                trail: (*seat).trail,
                generation: (*slot).generation,
                route: (*seat).route,
                step: (*seat).step,
                single_use: (*slot).single_use != 0,
            })
        }
    }
}

/// Where among an instance's seats an invocation is.
#[inline(always)]
fn seat_of(slot: *mut Slot, index: u32, invocation: u64) -> Option<(*mut Slot, u32)> {
    // SAFETY: pointers into the map's entries.
    unsafe {
        if has(slot, invocation) {
            return Some((slot, index));
        }
        let seats = (&raw const (*slot).seats).read_volatile();
        for further in 1..SEATS {
            if further > seats {
                return None;
            }
            let seat = SLOTS.get_ptr_mut(index + further)?;
            if has(seat, invocation) {
                return Some((seat, index + further));
            }
        }
    }
    None
}

/// Whether it is there now, or was until a moment ago, when the hub took it.
#[inline(always)]
unsafe fn has(seat: *mut Slot, invocation: u64) -> bool {
    // SAFETY: the caller's pointer is into the map's entry.
    let (state, claimed) =
        unsafe { ((&raw const (*seat).state).read_volatile(), (&raw const (*seat).claimed).read_volatile()) };
    (state == invocation || state == STATE_DETACHED) && claimed == invocation
}

/// A value goes to the port, and the instance goes on. The instance's messages run through here one after the other,
/// so only a detach can change the seat's state after the look at it.
#[inline(always)]
fn emit(ctx: &SkMsgContext, message: &mut Descriptor, held: &Held) -> Result<(), u8> {
    let seat = held.seat;
    // SAFETY: pointers into the map's entry; nobody else adds to `emitted` while the seat is busy.
    unsafe {
        match (&raw const (*seat).state).read_volatile() {
            state if state == message.invocation => {}
            STATE_DETACHED => return Err(fault::NONE),
            _ => return Err(fault::NOT_ITS_INVOCATION),
        }
        let emitted = (&raw const (*seat).emitted).read_volatile();
        if emitted >= EMITS_MAX {
            return Err(fault::FLOOD);
        }
        (&raw mut (*seat).emitted).write_volatile(emitted + 1);
    }
    message.flags = flags::EMIT;
    message::redirect(ctx, held.port);
    count(Counter::Emitted);
    Ok(())
}

/// The slot leaves the invocation; the message goes to the next step, or to the port.
#[inline(always)]
fn answer(ctx: &SkMsgContext, index: u32, message: &mut Descriptor, held: &Held) -> Result<(), u8> {
    let hold = held.single_use || held.closed || message.flags & flags::HOLD != 0;
    let left = if hold { STATE_HELD } else { STATE_IDLE };
    // SAFETY: only computes addresses within the entry.
    let (state, claimed) = unsafe { (&raw mut (*held.seat).state, &raw mut (*held.seat).claimed) };
    // What the fields say is void before the seat is free: a chain that goes through a function twice may bring the same
    // invocation here again, and who answers while it is being put here must not do so by what is left of the first time.
    // (Both words change under an answer by a detach only, after which the seat may be another's.)
    if atomic::compare_and_swap(claimed, message.invocation, 0) != message.invocation {
        return Err(fault::NONE);
    }
    if atomic::compare_and_swap(state, message.invocation, left) != message.invocation {
        // Detached, and the hub waits to see whose it was.
        atomic::compare_and_swap(claimed, 0, message.invocation);
        return Err(fault::NONE);
    }
    let mut to_be_seen_to = hold;
    if !hold {
        if let Some(function) = FUNCTIONS.get_ptr_mut(held.seat_index / SLOTS_PER_FUNCTION) {
            // SAFETY: only computes an address within the entry.
            let mask = unsafe { &raw mut (*function).idle };
            atomic::set_bits(mask, 1 << (held.seat_index % SLOTS_PER_FUNCTION));
            // SYNC(waiting): after the bit, which is a full barrier; pairs with the hub's `set_waiting`.
            // SAFETY: a pointer into the map's entry.
            to_be_seen_to = unsafe { (&raw const (*function).waiting).read_volatile() } != 0;
        }
    }
    // The rest of the flags is the bus's own.
    message.flags &= flags::HOLD | status::MASK;
    if held.route & CHAIN_BIT != 0 && !to_port(ctx, index, message, held, to_be_seen_to) {
        return Ok(());
    }
    message::redirect(ctx, held.port);
    count(Counter::Answered);
    Ok(())
}

/// What becomes of an answer on a chain's route; `shm_bus::transport::hub::route` has the same rules in a table.
/// True: it goes to the port, as it now is.
#[inline(always)]
fn to_port(
    ctx: &SkMsgContext,
    index: u32,
    message: &mut Descriptor,
    held: &Held,
    to_be_seen_to: bool,
) -> bool {
    let in_time = trail::note_answered(held.trail, held.step, index, held.generation, message);
    if message.flags & status::MASK == status::FAILED {
        return true;
    }
    let step = held.step + 1;
    let Some(next) = route::function_at(held.route, step as u32) else { return true };
    message.step = step;
    let kept = message.flags & flags::HOLD;
    if !in_time {
        message.flags = kept | status::EXPIRED;
        return true;
    }
    if !to_be_seen_to {
        message.flags = 0;
        let claim = Claim {
            invocation: message.invocation,
            port: held.port,
            trail: held.trail,
            route: held.route,
            step,
        };
        match claim.place(ctx, next) {
            Placed::In(_) => {
                count(Counter::Routed);
                return false;
            }
            Placed::WithHub => {
                // Passed on as it is, it would look to spryd like a violation of the sender.
                message.flags = status::VOID;
                return true;
            }
            Placed::Nowhere => {}
        }
    }
    message.flags = kept | flags::NEXT;
    true
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
