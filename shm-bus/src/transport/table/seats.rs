//! Further seats: slots that a peer has beside its own, so that several invocations wait for it at once.
//!
//! ```text
//!  slot:   8        9        10       11        12 …
//!        ├ peer's ┼ its further seats ──────┤ ├ another peer's …
//! ```
//!
//! Each seat has a state and an invocation of its own and changes by the same rules; what is put into one goes to the
//! peer's one connection. The rules of a peer hold for each seat: one invocation, one answer. All seats have one name
//! outside the table, the peer's.
//!
//! Only a transport that looks an answer's invocation up in all seats may give any: `sockmap`.

use std::sync::atomic::Ordering;

use spry_ebpf_common::{SEATS, STATE_DETACHED, STATE_HELD, STATE_IDLE, fault, invocation_of};

use super::{Cells, SlotCell, Table, stamp_of};
use crate::ids::{InvocationId, PeerId, PortIndex};

impl<C: Cells> Table<C> {
    /// Gives a peer further seats, in service at once. The caller knows that nobody has the slots that follow.
    pub fn seat(&self, peer: PeerId) {
        let Some(own) = self.current(peer) else { return };
        let first = peer.slot as usize + 1;
        let further = &self.cells.slots()[first..first + SEATS as usize - 1];
        for cell in further {
            cell.generation.fetch_add(1, Ordering::Relaxed);
            cell.owner.store(peer.slot, Ordering::Relaxed);
            cell.fault.store(fault::NONE, Ordering::Relaxed);
            cell.single_use.store(0, Ordering::Relaxed);
            cell.claimed.store(0, Ordering::Relaxed);
            cell.state.store(STATE_HELD, Ordering::Release);
        }
        // SYNC(seats): before any of them is idle, so that whoever answers from one finds it.
        own.seats.store(SEATS - 1, Ordering::Release);
        let home = self.home_of(peer);
        self.set_home(peer, home);
        self.open_seats(peer);
    }

    /// The further seats serve (again): those that nobody has in hand become idle. Not for a peer that has been retired.
    pub fn open_seats(&self, peer: PeerId) {
        let Some(own) = self.current(peer) else { return };
        if own.state.load(Ordering::Acquire) == STATE_DETACHED {
            return;
        }
        own.seats_closed.store(0, Ordering::SeqCst);
        for slot in self.further(peer) {
            self.let_go(slot);
        }
    }

    /// Puts nothing more into the further seats. What waits there is still served.
    pub fn close_seats(&self, peer: PeerId) {
        let Some(own) = self.current(peer) else { return };
        own.seats_closed.store(1, Ordering::SeqCst);
        for slot in self.further(peer) {
            // One that is answered in this moment by who has not seen the mark stays open: that harms nobody.
            let _ = self.hold(slot);
        }
    }

    /// Whether the further seats serve.
    pub fn has_open_seats(&self, peer: PeerId) -> bool {
        self.current(peer).is_some_and(|own| {
            own.seats.load(Ordering::Relaxed) != 0 && own.seats_closed.load(Ordering::Relaxed) == 0
        })
    }

    /// IDLE to DETACHED, for a peer with nothing in any of its seats. False: it is as it was.
    pub fn retire_whole(&self, peer: PeerId) -> bool {
        let mut held = Vec::new();
        let mut is_idle = true;
        for slot in self.further(peer) {
            if self.hold(slot) {
                held.push(slot);
            } else if self.cells.slots()[slot as usize].state.load(Ordering::Acquire) != STATE_HELD {
                is_idle = false;
            }
        }
        let retired = is_idle && self.retire(peer);
        if !retired {
            held.into_iter().for_each(|slot| self.let_go(slot));
        }
        retired
    }

    /// Gives the further seats up, whatever is in them; returns the invocations that were lost by it, and who waits for
    /// them.
    pub fn unseat(&self, peer: PeerId) -> Vec<(InvocationId, PortIndex)> {
        let further = self.further(peer);
        let mut lost = Vec::new();
        if let Some(own) = self.current(peer) {
            own.seats.store(0, Ordering::Release);
        }
        for slot in further {
            let cell = &self.cells.slots()[slot as usize];
            let state = cell.state.swap(STATE_DETACHED, Ordering::AcqRel);
            self.forget_hint(PeerId { slot, generation: 0 });
            lost.extend(
                invocation_of(state)
                    .map(|invocation| (InvocationId(invocation), stamp_of(cell, state).trail.port)),
            );
        }
        lost
    }

    /// Whether this slot is somebody's further seat, or its peer has something in such a seat: then it isn't an idle peer.
    pub(super) fn is_at_work(&self, cell: &SlotCell, slot: usize) -> bool {
        if cell.owner.load(Ordering::Relaxed) as usize != slot {
            return true;
        }
        let seats = cell.seats.load(Ordering::Relaxed).min(SEATS - 1) as usize;
        let further = &self.cells.slots()[slot + 1..=slot + seats];
        further.iter().any(|seat| invocation_of(seat.state.load(Ordering::Relaxed)).is_some())
    }

    /// How many further seats a peer has.
    pub fn seats(&self, peer: PeerId) -> u32 {
        self.further(peer).len() as u32
    }

    /// The bits of a peer's slot and of its further seats.
    pub(super) fn seat_bits(&self, peer: PeerId) -> u64 {
        self.further(peer).fold(1 << peer.bit(), |bits, slot| bits | 1 << (slot - peer.slot + peer.bit()))
    }

    /// The slots of a peer's further seats.
    fn further(&self, peer: PeerId) -> std::ops::Range<u32> {
        let seats = self.current(peer).map_or(0, |own: &SlotCell| own.seats.load(Ordering::Acquire));
        peer.slot + 1..peer.slot + 1 + seats.min(SEATS - 1)
    }

    /// IDLE to HELD.
    fn hold(&self, slot: u32) -> bool {
        let cell = &self.cells.slots()[slot as usize];
        let held = cell.state.compare_exchange(STATE_IDLE, STATE_HELD, Ordering::AcqRel, Ordering::Relaxed);
        if held.is_ok() {
            self.forget_hint(PeerId { slot, generation: 0 });
        }
        held.is_ok()
    }

    /// HELD to IDLE.
    fn let_go(&self, slot: u32) {
        let cell = &self.cells.slots()[slot as usize];
        if cell.state.compare_exchange(STATE_HELD, STATE_IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.hint_idle(slot);
        }
    }

    fn home_of(&self, peer: PeerId) -> Option<usize> {
        let homes = &self.cells.functions()[usize::from(peer.function().0)].home;
        homes.iter().position(|home| home.load(Ordering::Relaxed) & 1 << peer.bit() != 0)
    }
}
