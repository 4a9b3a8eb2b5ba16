//! The table of peers: who is idle, who serves what. The same words in the same places as the kernel program
//! uses (`ebpf/common`), so these functions work on private memory (futex, broker) and on the program's
//! arrays, mapped (sockmap).
//!
//! ```text
//!              attach            admit            claim                 answer
//!  DETACHED ───────────► HELD ───────────► IDLE ─────────► invocation ─────────► IDLE, or HELD with flags::HOLD
//!      ▲                   │   retire        │                  │
//!      └─────── detach ────┴──────◄──────────┴───── detach ─────┘  (says which invocation was lost)
//! ```
//!
//! `Slot::state` is the truth and changes by compare-and-swap: whoever changes it from an invocation to
//! something else settles that invocation, and nobody else does. The bits in `Function::idle` are hints.
//! Setting one comes after the state became IDLE, clearing one comes *before* the attempt to claim: so an
//! idle peer whose bit is not set is one that somebody is claiming right now.

use std::io;
use std::mem::{align_of, offset_of, size_of};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use spry_ebpf_common::{
    Function, HOME_CPUS, SLOTS_PER_FUNCTION, STATE_DETACHED, STATE_HELD, STATE_IDLE, Slot, fault,
    invocation_of,
};

use crate::ids::{FunctionIndex, InvocationId, PeerId, PortIndex};
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
    pub single_use: AtomicU64,
    reserved: [AtomicU64; 2],
}

/// A [`Function`], shared.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct FunctionCell {
    idle: AtomicU64,
    reserved: [AtomicU64; 7],
    home: [AtomicU64; HOME_CPUS],
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
    assert!(size_of::<FunctionCell>() == size_of::<Function>());
    assert!(align_of::<FunctionCell>() == align_of::<Function>());
    assert!(offset_of!(FunctionCell, idle) == offset_of!(Function, idle));
    assert!(offset_of!(FunctionCell, home) == offset_of!(Function, home));
};

/// Where the cells lie. There are `SLOTS_PER_FUNCTION` slots to each function.
pub trait Cells: Send + Sync {
    /// All slots.
    fn slots(&self) -> &[SlotCell];
    /// All functions.
    fn functions(&self) -> &[FunctionCell];
}

/// Cells in this process's own memory; no page is used before one of its slots is.
#[derive(Debug)]
pub struct Heap {
    slots: Zeroed<SlotCell>,
    functions: Zeroed<FunctionCell>,
}

impl Heap {
    /// All slots detached. Fails when there is no memory.
    pub fn new(functions: usize) -> io::Result<Self> {
        let slots = functions * SLOTS_PER_FUNCTION as usize;
        Ok(Self { slots: Zeroed::new(slots)?, functions: Zeroed::new(functions)? })
    }
}

impl Cells for Heap {
    fn slots(&self) -> &[SlotCell] {
        &self.slots
    }
    fn functions(&self) -> &[FunctionCell] {
        &self.functions
    }
}

/// What is stamped into an answer, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The gateway port that waits for it.
    pub port: PortIndex,
    /// The route of the descriptor that was delivered.
    pub route: u16,
    /// Its step.
    pub step: u8,
}

/// What is written into a slot with an invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The invocation.
    pub invocation: InvocationId,
    /// Where its answer goes, and on which route it is.
    pub stamp: Stamp,
}

/// Why an answer isn't one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The peer is out of service: whoever detached it has settled its invocation. Nobody's fault.
    Detached,
    /// The peer doesn't hold that invocation.
    NotItsInvocation,
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
        cell.port.store(stamp.port.0.into(), Ordering::Relaxed);
        cell.route.store(stamp.route, Ordering::Relaxed);
        cell.step.store(stamp.step, Ordering::Relaxed);
        // SYNC(claimed): pairs with the load in `stamp_of`.
        cell.claimed.store(invocation.0, Ordering::Release);
        true
    }

    /// An invocation to IDLE or (`hold`) HELD. Who gets `Ok` delivers the answer; nobody else does.
    pub fn answer(&self, peer: PeerId, invocation: u64, hold: bool) -> Result<Stamp, Refused> {
        let cell = self.current(peer).ok_or(Refused::Detached)?;
        let state = cell.state.load(Ordering::Acquire);
        if state == STATE_DETACHED {
            return Err(Refused::Detached);
        }
        if state != invocation || invocation_of(state).is_none() {
            return Err(Refused::NotItsInvocation);
        }
        let stamp = stamp_of(cell, state);
        let hold = hold || cell.single_use.load(Ordering::Acquire) != 0;
        let next = if hold { STATE_HELD } else { STATE_IDLE };
        // Only a detach can come between: an invocation is answered once, by its one connection.
        cell.state
            .compare_exchange(state, next, Ordering::AcqRel, Ordering::Relaxed)
            .map_err(|_| Refused::Detached)?;
        if !hold {
            self.hint_idle(peer.slot);
        }
        Ok(stamp)
    }

    /// Anything to DETACHED; returns the invocation that was lost by it, and who waits for it.
    pub fn detach(&self, peer: PeerId) -> Option<(InvocationId, PortIndex)> {
        let cell = self.current(peer)?;
        let state = cell.state.swap(STATE_DETACHED, Ordering::AcqRel);
        self.forget_hint(peer);
        invocation_of(state).map(|invocation| (InvocationId(invocation), stamp_of(cell, state).port))
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
        let generation = cells[bit].generation.load(Ordering::Relaxed);
        Some(PeerId { slot: first + bit as u32, generation })
    }

    /// Prefers this peer for what is sent from `cpu`.
    pub fn set_home(&self, peer: PeerId, cpu: Option<usize>) {
        if self.current(peer).is_none() {
            return;
        }
        let bit = 1u64 << peer.bit();
        let homes = &self.cells.functions()[usize::from(peer.function().0)].home;
        for (index, home) in homes.iter().enumerate() {
            if cpu.is_some_and(|cpu| cpu % HOME_CPUS == index) {
                home.fetch_or(bit, Ordering::Relaxed);
            } else if home.load(Ordering::Relaxed) & bit != 0 {
                home.fetch_and(!bit, Ordering::Relaxed);
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
    Stamp {
        port: PortIndex(cell.port.load(Ordering::Relaxed) as u8),
        route: cell.route.load(Ordering::Relaxed),
        step: cell.step.load(Ordering::Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: FunctionIndex = FunctionIndex(1);

    fn claim(invocation: u64) -> Claim {
        let stamp = Stamp { port: PortIndex(3), route: 9, step: 1 };
        Claim { invocation: InvocationId(invocation), stamp }
    }

    fn idle_peer(table: &Table<Heap>, slot: u32) -> PeerId {
        let peer = table.attach(slot);
        assert!(!table.claim(slot, claim(1)), "not before it is admitted");
        assert!(table.admit(peer) && !table.admit(peer));
        peer
    }

    #[test]
    fn a_life() {
        let table = Table::new(Heap::new(2).unwrap());
        let peer = idle_peer(&table, 70);
        assert_eq!(table.candidate(FUNCTION, Some(1)), Some(70));
        assert_eq!(table.candidate(FUNCTION, Some(1)), None, "the hint is taken");
        assert!(table.claim(70, claim(5)) && !table.claim(70, claim(6)));
        assert_eq!(table.holder(FUNCTION, InvocationId(5)), Some(peer));
        assert!(!table.retire(peer));
        assert_eq!(table.answer(peer, 6, false), Err(Refused::NotItsInvocation));
        assert_eq!(table.answer(peer, 5, false), Ok(claim(5).stamp));
        assert_eq!(table.answer(peer, 5, false), Err(Refused::NotItsInvocation));
        assert!(table.has_idle(FUNCTION) && !table.has_idle(FunctionIndex(0)));
        assert!(table.retire(peer) && !table.has_idle(FUNCTION));
        assert_eq!(table.detach(peer), None);
        assert!(!table.admit(peer), "out of service for good");
    }

    #[test]
    fn a_held_peer_is_not_picked_and_answers_nothing() {
        let table = Table::new(Heap::new(2).unwrap());
        let peer = idle_peer(&table, 64);
        assert!(table.claim(64, claim(5)));
        assert!(table.answer(peer, 5, true).is_ok());
        for state in [5, STATE_HELD, STATE_IDLE] {
            assert_eq!(table.answer(peer, state, false), Err(Refused::NotItsInvocation));
        }
        assert!(!table.claim(64, claim(6)));
        assert_eq!(table.holder(FUNCTION, InvocationId(STATE_HELD)), None);
        assert!(table.admit(peer) && table.claim(64, claim(6)));
        assert_eq!(table.detach(peer), Some((InvocationId(6), PortIndex(3))));
        assert_eq!(table.detach(peer), None);
        assert_eq!(table.answer(peer, 6, false), Err(Refused::Detached));
    }

    #[test]
    fn an_old_name_moves_nothing() {
        let table = Table::new(Heap::new(2).unwrap());
        let old = idle_peer(&table, 65);
        table.detach(old);
        let new = idle_peer(&table, 65);
        assert_ne!(old, new);
        assert!(table.claim(65, claim(5)));
        assert!(!table.admit(old) && !table.retire(old));
        assert_eq!(table.detach(old), None);
        assert_eq!(table.answer(old, 5, false), Err(Refused::Detached));
        assert_eq!(table.answer(new, 5, false), Ok(claim(5).stamp));
    }

    #[test]
    fn home_is_a_preference() {
        let table = Table::new(Heap::new(2).unwrap());
        let peers: Vec<_> = (64..67).map(|slot| idle_peer(&table, slot)).collect();
        table.set_home(peers[2], Some(1));
        assert_eq!(table.candidate(FUNCTION, Some(1)), Some(66));
        assert_eq!(table.candidate(FUNCTION, Some(1)), Some(64), "rather another than none");
        table.set_home(peers[1], Some(1 + HOME_CPUS));
        table.set_home(peers[1], None);
        assert_eq!(table.candidate(FUNCTION, Some(1)), Some(65));
    }

    /// Two threads claim what two others make idle: every invocation is settled exactly once.
    #[test]
    fn nothing_is_claimed_twice_and_no_hint_is_lost() {
        let table = Table::new(Heap::new(2).unwrap());
        let peers: Vec<_> = (64..68).map(|slot| idle_peer(&table, slot)).collect();
        let settled = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let (table, peers, settled) = (&table, &peers, &settled);
                scope.spawn(move || {
                    for round in 1..=5000 {
                        let invocation = thread << 32 | round;
                        let slot = loop {
                            let Some(slot) = table.candidate(FUNCTION, None) else {
                                std::thread::yield_now();
                                continue;
                            };
                            if table.claim(slot, claim(invocation)) {
                                break slot;
                            }
                        };
                        let peer = peers[(slot - 64) as usize];
                        assert!(table.answer(peer, invocation, false).is_ok());
                        settled.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(settled.into_inner(), 15_000);
        assert_eq!(std::iter::from_fn(|| table.candidate(FUNCTION, None)).count(), 4);
    }
}
