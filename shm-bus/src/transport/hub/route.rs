//! What becomes of a message from a peer: the rules of chains, as the kernel program keeps them too
//! (`ebpf/programs`, `route.rs`).
//!
//! | the peer's message | goes |
//! |---|---|
//! | a value that it emits | to the port; the peer stays busy |
//! | an answer on a plain route | to the port |
//! | a failure | to the port: this step has failed |
//! | an answer after which the route ends | to the port: the result |
//! | the run's time is over, or its trail another's | to the port: the next step has expired |
//! | the peer is held, or somebody waits for its function | to the port, to be sent on: whoever sees to the peer comes first |
//! | anything else | to an idle peer of the next function; if there is none, to the port, to be sent on |
//!
//! What comes back to the port to be sent on waits there like a new request.

use spry_ebpf_common::{Descriptor, flags, status};

use crate::ids::{FunctionIndex, PeerId};
use crate::transport::Event;
use crate::transport::table::{Answered, Cells, Refused, Stamp, Table};

/// Where a message goes.
pub(super) enum Way {
    /// To the port that waits for it.
    Port(Event),
    /// To an idle peer of the next function.
    On(Onward),
}

/// A run between two steps: no peer holds it, the caller does.
pub(super) struct Onward {
    pub(super) function: FunctionIndex,
    /// As it is delivered.
    pub(super) descriptor: Descriptor,
    pub(super) stamp: Stamp,
}

impl Onward {
    /// Nobody of the next function is idle.
    pub(super) fn back_to_port(self) -> Event {
        Event::Forward(Descriptor { flags: flags::NEXT, ..self.descriptor })
    }
}

/// Takes a peer's message into account, and says where it goes.
pub(super) fn way<C: Cells>(table: &Table<C>, peer: PeerId, message: Descriptor) -> Result<Way, Refused> {
    if message.flags & flags::EMIT != 0 {
        let stamp = table.emit(peer, message.invocation)?;
        let emitted = Descriptor { flags: flags::EMIT, ..stamped(message, peer, &stamp) };
        return Ok(Way::Port(Event::Emitted(emitted)));
    }
    let Answered { stamp, to_be_seen_to } = table.answer(peer, &message)?;
    // The rest of the flags is the bus's own.
    let flags = message.flags & (flags::HOLD | status::MASK);
    let answer = Descriptor { flags, ..stamped(message, peer, &stamp) };
    let result = Way::Port(Event::Answer(answer));
    let Some(route) = stamp.chain() else { return Ok(result) };
    if flags & status::MASK == status::FAILED {
        return Ok(result);
    }
    let Some(next) = stamp.step.checked_add(1) else { return Ok(result) };
    let Some(function) = table.function_at(route, next) else { return Ok(result) };
    let hold = flags & flags::HOLD;
    let on = Descriptor { step: next, ..answer };
    if !table.may_go_on(stamp.trail, message.invocation) {
        return Ok(Way::Port(Event::Answer(Descriptor { flags: hold | status::EXPIRED, ..on })));
    }
    if to_be_seen_to {
        return Ok(Way::Port(Event::Forward(Descriptor { flags: hold | flags::NEXT, ..on })));
    }
    let stamp = Stamp { step: next, ..stamp };
    Ok(Way::On(Onward { function, descriptor: Descriptor { flags: 0, ..on }, stamp }))
}

fn stamped(message: Descriptor, peer: PeerId, stamp: &Stamp) -> Descriptor {
    Descriptor { route: stamp.route, step: stamp.step, source: peer.slot, ..message }
}
