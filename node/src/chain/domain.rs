//! A chain's security domain: the memory that its functions may see, and for how long it stays.
//!
//! One inbox, written by spryd, that every member maps; and the members' outboxes, which the others map when a
//! descriptor first names one. Whoever isn't in the domain's table gets nothing from it.
//!
//! An outbox outlives its instance while values in it may still be read. Every call of the chain holds a [`Pin`];
//! the outbox of a dead instance goes when all pins that are older than its death have gone:
//!
//! ```text
//! pins:    1 ├────────────┤   2 ├───────────────────┤          3 ├──────
//! death:                   at 3 ×  (1 and 2 may have seen it)
//! gone:                                              ×  when 2 has ended
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use shm_bus::segment::{Region, SegmentError, SegmentName};
use spry_wire::frame::Place;

use crate::inbox::Inbox;
use crate::instance::Instance;

/// See the module.
#[derive(Debug)]
pub struct Domain {
    inbox: Arc<Inbox>,
    outboxes: RwLock<HashMap<SegmentName, Arc<Outbox>>>,
    calls: Mutex<Calls>,
}

/// A member's outbox.
#[derive(Debug)]
pub struct Outbox {
    /// Whose it is, dead or alive.
    pub instance: Arc<Instance>,
    fd: OwnedFd,
}

impl Outbox {
    /// The segment, to be handed to another member.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// There are no bytes at a place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The segment isn't the chain's.
    #[error("it names memory outside of its chain")]
    Foreign,
    /// The segment is shorter.
    #[error("it names memory that isn't there: {0}")]
    Beyond(#[from] SegmentError),
}

#[derive(Debug, Default)]
struct Calls {
    next: u64,
    pinned: BTreeSet<u64>,
    /// Outboxes of the dead, with the number that the next pin had when they died.
    dead: VecDeque<(u64, SegmentName)>,
}

impl Calls {
    /// The dead that no pin can have seen alive.
    fn take_unseen(&mut self) -> Vec<SegmentName> {
        let oldest = self.pinned.first().copied().unwrap_or(u64::MAX);
        let count = self.dead.iter().take_while(|(died_at, _)| *died_at <= oldest).count();
        self.dead.drain(..count).map(|(_, name)| name).collect()
    }
}

impl Domain {
    /// A domain without members.
    pub fn new(inbox: Arc<Inbox>) -> Arc<Self> {
        Arc::new(Self { inbox, outboxes: RwLock::default(), calls: Mutex::default() })
    }

    /// Where spryd writes what the members read.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Lets the members see a new instance's outbox.
    pub fn admit(&self, instance: &Arc<Instance>, fd: OwnedFd) {
        let outbox = Arc::new(Outbox { instance: Arc::clone(instance), fd });
        self.outboxes.write().insert(instance.outbox_name, outbox);
    }

    /// An instance has ended: its outbox goes when nobody can need it any more.
    pub fn dismiss(&self, instance: &Instance) {
        let unseen = {
            let mut calls = self.calls.lock();
            let died_at = calls.next;
            calls.dead.push_back((died_at, instance.outbox_name));
            calls.take_unseen()
        };
        self.forget(&unseen);
    }

    /// The outbox of that name.
    pub fn outbox(&self, name: SegmentName) -> Option<Arc<Outbox>> {
        self.outboxes.read().get(&name).cloned()
    }

    /// The bytes at a place in any of the domain's segments, and whether spryd wrote them.
    pub fn region(&self, place: &Place) -> Result<(Region, bool), PlaceError> {
        let name = SegmentName { id: place.segment, generation: place.generation };
        let (offset, length) = (u64::from(place.offset), u64::from(place.length));
        if name == self.inbox.name() {
            return Ok((self.inbox.region(offset, length)?, true));
        }
        let outbox = self.outbox(name).ok_or(PlaceError::Foreign)?;
        Ok((outbox.instance.outbox.region(offset, length)?, false))
    }

    /// Keeps every outbox that is there now, until the pin is dropped.
    pub fn pin(self: &Arc<Self>) -> Pin {
        let mut calls = self.calls.lock();
        let number = calls.next;
        calls.next += 1;
        calls.pinned.insert(number);
        Pin { domain: Arc::clone(self), number }
    }

    fn forget(&self, names: &[SegmentName]) {
        if !names.is_empty() {
            let mut outboxes = self.outboxes.write();
            for name in names {
                outboxes.remove(name);
            }
        }
    }
}

/// Keeps outboxes; see [`Domain::pin`].
#[derive(Debug)]
pub struct Pin {
    domain: Arc<Domain>,
    number: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let unseen = {
            let mut calls = self.domain.calls.lock();
            calls.pinned.remove(&self.number);
            calls.take_unseen()
        };
        self.domain.forget(&unseen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: u32) -> SegmentName {
        SegmentName { id, generation: 1 }
    }

    #[test]
    fn the_dead_go_with_the_last_pin_that_may_have_seen_them() {
        let mut calls = Calls { next: 3, pinned: [1, 2].into(), dead: [(3, name(7))].into() };
        assert_eq!(calls.take_unseen(), []);
        calls.pinned.remove(&1);
        calls.pinned.insert(3);
        assert_eq!(calls.take_unseen(), [], "2 may have seen it");
        calls.pinned.remove(&2);
        assert_eq!(calls.take_unseen(), [name(7)], "3 came after its death");
        calls.dead.push_back((4, name(8)));
        calls.pinned.clear();
        assert_eq!(calls.take_unseen(), [name(8)], "with no pin at all");
    }
}
