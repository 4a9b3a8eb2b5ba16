//! The table of peers: who is idle, who serves what. The same words in the same places as the kernel program
//! uses (`ebpf/common`), so these functions work on private memory (futex, broker) and on the program's
//! arrays, mapped (sockmap).
//!
//! ```text
//!              attach            admit            claim                 answer
//!  DETACHED ───────────► HELD ───────────► IDLE ─────────► invocation ─────────► IDLE, or HELD with flags::HOLD
//!      ▲                   │   retire        │                  │
//!      └─────── detach ────┴──────◄──────────┴───── detach ─────┘  (says which invocation was lost)
//!                          ▲                                    │
//!                          └────────────── put back ────────────┘  (it can't be delivered)
//! ```
//!
//! `Slot::state` is the truth and changes by compare-and-swap: whoever changes it from an invocation to
//! something else settles that invocation, and nobody else does. The bits in `Function::idle` are hints.
//! Setting one comes after the state became IDLE, clearing one comes *before* the attempt to claim: so an
//! idle peer whose bit is not set is one that somebody is claiming right now.

mod cells;
mod chains;
mod seats;
#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};

use spry_ebpf_common::{
    Descriptor, EMITS_MAX, HOME_CPUS, SLOTS_PER_FUNCTION, STATE_DETACHED, STATE_HELD, STATE_IDLE,
    TRAILS_PER_PORT, fault, flags, invocation_of, status,
};

pub use self::cells::{Cells, FunctionCell, Heap, HopCell, RouteCell, SlotCell, TrailCell};
use crate::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};

/// What is stamped into a peer's message, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The gateway port that waits for it, and the trail, if it goes a chain's route.
    pub trail: TrailIndex,
    /// The route of the descriptor that was delivered.
    pub route: u16,
    /// Its step.
    pub step: u8,
}

impl Stamp {
    /// Of a descriptor that a port sends.
    pub fn of(descriptor: &Descriptor) -> Self {
        Self { trail: TrailIndex::of(descriptor), route: descriptor.route, step: descriptor.step }
    }

    /// The chain's route, if it is one.
    pub fn chain(&self) -> Option<RouteIndex> {
        RouteIndex::of(&Descriptor { route: self.route, ..Descriptor::default() })
    }
}

/// What is written into a slot with an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The invocation.
    pub invocation: InvocationId,
    /// Where its answer goes, and on which route it is.
    pub stamp: Stamp,
}

/// An answer that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What is stamped into it.
    pub stamp: Stamp,
    /// The hub's owner has to see to the peer: it is HELD, or somebody waits for its function.
    pub to_be_seen_to: bool,
}

/// Why a peer's message isn't delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The peer is out of service: whoever detached it has settled its invocation. Nobody's fault.
    Detached,
    /// The peer doesn't hold that invocation.
    NotItsInvocation,
    /// It says that it ended in a way that there isn't.
    Malformed,
    /// It has emitted all that it may.
    Flood,
}

/// See the module's text.
#[derive(Debug)]
pub struct Table<C> {
    cells: C,
}

impl<C: Cells> Table<C> {
    /// A table over these cells, as they are.
    pub fn new(cells: C) -> Self {
        assert_eq!(cells.slots().len(), cells.functions().len() * SLOTS_PER_FUNCTION as usize);
        Self { cells }
    }

    /// The cells.
    pub fn cells(&self) -> &C {
        &self.cells
    }

    /// How many functions there can be.
    pub fn functions(&self) -> usize {
        self.cells.functions().len()
    }

    /// Gives a free slot to a new peer and names it. The caller knows which slots are free.
    pub fn attach(&self, slot: u32) -> PeerId {
        let cell = &self.cells.slots()[slot as usize];
        let generation = cell.generation.load(Ordering::Relaxed).wrapping_add(1);
        self.set_home(PeerId { slot, generation: generation.wrapping_sub(1) }, None);
        cell.fault.store(fault::NONE, Ordering::Relaxed);
        cell.single_use.store(0, Ordering::Relaxed);
        cell.owner.store(slot, Ordering::Relaxed);
        cell.seats.store(0, Ordering::Relaxed);
        cell.claimed.store(0, Ordering::Relaxed);
        cell.generation.store(generation, Ordering::Relaxed);
        // SYNC(attached): whoever sees HELD or anything later sees this generation.
        cell.state.store(STATE_HELD, Ordering::Release);
        PeerId { slot, generation }
    }

    /// From now on an answer leaves this peer HELD, whatever its flags say.
    pub fn set_single_use(&self, peer: PeerId) {
        if let Some(cell) = self.current(peer) {
            cell.single_use.store(1, Ordering::Release);
        }
    }

    /// HELD to IDLE.
    pub fn admit(&self, peer: PeerId) -> bool {
        let Some(cell) = self.current(peer) else { return false };
        let admitted =
            cell.state.compare_exchange(STATE_HELD, STATE_IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if admitted {
            self.hint_idle(peer.slot);
        }
        admitted
    }

    /// Clears and returns the hint of a probably idle slot, the one at home on `cpu` first.
    pub fn candidate(&self, function: FunctionIndex, cpu: Option<usize>) -> Option<u32> {
        let cell = self.cells.functions().get(usize::from(function.0))?;
        loop {
            let idle = cell.idle.load(Ordering::Relaxed);
            let home = cpu.map_or(0, |cpu| idle & cell.home[cpu % HOME_CPUS].load(Ordering::Relaxed));
            let choice = if home != 0 { home } else { idle };
            if choice == 0 {
                return None;
            }
            let bit = choice & choice.wrapping_neg();
            // SYNC(idle-hint): pairs with the fetch_or in `hint_idle`; its state is visible after this.
            if cell.idle.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                return Some(u32::from(function.0) * SLOTS_PER_FUNCTION + bit.trailing_zeros());
            }
        }
    }

    /// IDLE to an invocation; false when the slot isn't idle (any more).
    pub fn claim(&self, slot: u32, claim: Claim) -> bool {
        let Claim { invocation, stamp } = claim;
        debug_assert!(invocation_of(invocation.0).is_some(), "{invocation:?}");
        let cell = &self.cells.slots()[slot as usize];
        let claimed =
            cell.state.compare_exchange(STATE_IDLE, invocation.0, Ordering::AcqRel, Ordering::Relaxed);
        if claimed.is_err() {
            return false;
        }
        cell.port.store(stamp.trail.port.0.into(), Ordering::Relaxed);
        cell.trail.store(stamp.trail.global(), Ordering::Relaxed);
        cell.route.store(stamp.route, Ordering::Relaxed);
        cell.step.store(stamp.step, Ordering::Relaxed);
        cell.emitted.store(0, Ordering::Relaxed);
        self.note_sent(&claim);
        // SYNC(claimed): pairs with the load in `stamp_of`.
        cell.claimed.store(invocation.0, Ordering::Release);
        true
    }

    /// An invocation to HELD, after a claim whose descriptor can't be delivered: the peer is of no use. False: the slot
    /// has something else by now, and whoever changed it has settled the invocation.
    pub fn put_back(&self, slot: u32, invocation: InvocationId) -> bool {
        let state = &self.cells.slots()[slot as usize].state;
        state.compare_exchange(invocation.0, STATE_HELD, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Who is in a slot now.
    pub fn peer_in(&self, slot: u32) -> PeerId {
        PeerId { slot, generation: self.cells.slots()[slot as usize].generation.load(Ordering::Relaxed) }
    }

    /// An invocation to IDLE, or to HELD. Who gets `Ok` delivers the answer; nobody else does.
    pub fn answer(&self, peer: PeerId, message: &Descriptor) -> Result<Answered, Refused> {
        let (cell, stamp) = self.held_by(peer, message.invocation)?;
        if !matches!(message.flags & status::MASK, status::OK | status::FAILED) {
            return Err(Refused::Malformed);
        }
        let held = message.flags & flags::HOLD != 0 || cell.single_use.load(Ordering::Acquire) != 0;
        let next = if held { STATE_HELD } else { STATE_IDLE };
        // Only a detach can come between: an invocation is answered once, by its one connection.
        cell.state
            .compare_exchange(message.invocation, next, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| Refused::Detached)?;
        self.note_answered(peer, &stamp, message);
        if held {
            return Ok(Answered { stamp, to_be_seen_to: true });
        }
        self.hint_idle(peer.slot);
        // SYNC(waiting): the hint before the look; pairs with `set_waiting`.
        fence(Ordering::SeqCst);
        let function = &self.cells.functions()[usize::from(peer.function().0)];
        Ok(Answered { stamp, to_be_seen_to: function.waiting.load(Ordering::Relaxed) != 0 })
    }

    /// Says whether invocations wait for `function` in the hub. Afterwards, look for idle peers: those that became idle
    /// before are seen, of those that become idle later the port is told.
    pub fn set_waiting(&self, function: FunctionIndex, waiting: bool) {
        if let Some(cell) = self.cells.functions().get(usize::from(function.0)) {
            // SYNC(waiting): see `answer`, and the kernel program's.
            cell.waiting.store(waiting.into(), Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// Counts a value that a peer emits for the invocation that it holds, and goes on holding.
    pub fn emit(&self, peer: PeerId, invocation: u64) -> Result<Stamp, Refused> {
        let (cell, stamp) = self.held_by(peer, invocation)?;
        // Its messages come one after the other, through its one connection.
        let emitted = cell.emitted.load(Ordering::Relaxed);
        if emitted >= EMITS_MAX {
            return Err(Refused::Flood);
        }
        cell.emitted.store(emitted + 1, Ordering::Relaxed);
        Ok(stamp)
    }

    /// The cell of a peer that serves this invocation, and what was claimed with it.
    fn held_by(&self, peer: PeerId, invocation: u64) -> Result<(&SlotCell, Stamp), Refused> {
        let cell = self.current(peer).ok_or(Refused::Detached)?;
        let state = cell.state.load(Ordering::Acquire);
        if state == STATE_DETACHED {
            return Err(Refused::Detached);
        }
        if state != invocation || invocation_of(state).is_none() {
            return Err(Refused::NotItsInvocation);
        }
        Ok((cell, stamp_of(cell, state)))
    }

    /// Anything to DETACHED; returns the invocation that was lost by it, and who waits for it.
    pub fn detach(&self, peer: PeerId) -> Option<(InvocationId, PortIndex)> {
        let cell = self.current(peer)?;
        let state = cell.state.swap(STATE_DETACHED, Ordering::AcqRel);
        self.forget_hint(peer);
        invocation_of(state).map(|invocation| (InvocationId(invocation), stamp_of(cell, state).trail.port))
    }

    /// IDLE to DETACHED.
    pub fn retire(&self, peer: PeerId) -> bool {
        let Some(cell) = self.current(peer) else { return false };
        let retired = cell
            .state
            .compare_exchange(STATE_IDLE, STATE_DETACHED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        if retired {
            self.forget_hint(peer);
        }
        retired
    }

    /// How many peers of `function` are idle.
    pub fn idle(&self, function: FunctionIndex) -> u32 {
        let first = usize::from(function.0) * SLOTS_PER_FUNCTION as usize;
        let cells = self.cells.slots().get(first..first + SLOTS_PER_FUNCTION as usize).unwrap_or_default();
        let is_idle = |cell: &SlotCell| cell.state.load(Ordering::Relaxed) == STATE_IDLE;
        let idle = cells
            .iter()
            .enumerate()
            .filter(|(bit, cell)| is_idle(cell) && !self.is_at_work(cell, first + bit));
        idle.count() as u32
    }

    /// Whether some peer of `function` is probably idle.
    pub fn has_idle(&self, function: FunctionIndex) -> bool {
        let cell = self.cells.functions().get(usize::from(function.0));
        cell.is_some_and(|cell| cell.idle.load(Ordering::Relaxed) != 0)
    }

    /// Which peer of `function` holds `invocation` now.
    pub fn holder(&self, function: FunctionIndex, invocation: InvocationId) -> Option<PeerId> {
        invocation_of(invocation.0)?;
        let first = u32::from(function.0) * SLOTS_PER_FUNCTION;
        let cells = self.cells.slots().get(first as usize..(first + SLOTS_PER_FUNCTION) as usize)?;
        let bit = cells.iter().position(|cell| cell.state.load(Ordering::Acquire) == invocation.0)?;
        // (Of a further seat, the peer whose it is.)
        let slot = cells[bit].owner.load(Ordering::Relaxed);
        let generation = self.cells.slots().get(slot as usize)?.generation.load(Ordering::Relaxed);
        Some(PeerId { slot, generation })
    }

    /// Prefers this peer for what is sent from `cpu`.
    pub fn set_home(&self, peer: PeerId, cpu: Option<usize>) {
        if self.current(peer).is_none() {
            return;
        }
        let bits = self.seat_bits(peer);
        let homes = &self.cells.functions()[usize::from(peer.function().0)].home;
        for (index, home) in homes.iter().enumerate() {
            if cpu.is_some_and(|cpu| cpu % HOME_CPUS == index) {
                home.fetch_or(bits, Ordering::Relaxed);
            } else if home.load(Ordering::Relaxed) & bits != 0 {
                home.fetch_and(!bits, Ordering::Relaxed);
            }
        }
    }

    fn current(&self, peer: PeerId) -> Option<&SlotCell> {
        let cell = self.cells.slots().get(peer.slot as usize)?;
        (cell.generation.load(Ordering::Acquire) == peer.generation).then_some(cell)
    }

    pub(super) fn hint_idle(&self, slot: u32) {
        let function = &self.cells.functions()[(slot / SLOTS_PER_FUNCTION) as usize];
        // SYNC(idle-hint): after the state became IDLE.
        function.idle.fetch_or(1 << (slot % SLOTS_PER_FUNCTION), Ordering::AcqRel);
    }

    fn forget_hint(&self, peer: PeerId) {
        let function = &self.cells.functions()[usize::from(peer.function().0)];
        function.idle.fetch_and(!(1 << peer.bit()), Ordering::AcqRel);
    }
}

/// What was claimed with `invocation`, which the slot holds or held. Whoever claimed it is a few
/// instructions away from saying so; to wait for that is shorter than any other way to know.
fn stamp_of(cell: &SlotCell, invocation: u64) -> Stamp {
    // SYNC(claimed): see `claim`.
    while cell.claimed.load(Ordering::Acquire) != invocation {
        std::hint::spin_loop();
    }
    let port = PortIndex(cell.port.load(Ordering::Relaxed) as u8);
    let trail = cell.trail.load(Ordering::Relaxed) % TRAILS_PER_PORT;
    Stamp {
        trail: TrailIndex { port, index: trail as u16 },
        route: cell.route.load(Ordering::Relaxed),
        step: cell.step.load(Ordering::Relaxed),
    }
}
