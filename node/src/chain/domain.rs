//! A chain's security domain: the memory that its functions may see, and for how long it stays.
//!
//! One inbox, written by spryd, that every member maps; and the members' outboxes, which the others map when a
//! descriptor first names one. Whoever isn't in the domain's table gets nothing from it.
//!
//! An outbox outlives its instance while values in it may still be read. Every call of the chain holds a [`Pin`];
//! the outbox of a dead instance goes when all pins that are older than its death have gone, or when there are too many:
//! then the call that wants to read it fails, and not the node, whose descriptors and memory they take. Whoever waits for
//! longer than a call, an emitted value, keeps the one [`Outbox`] that it lies in.
//!
//! ```text
//! pins:    1 ├────────────┤   2 ├───────────────────┤          3 ├──────
//! death:                   at 3 ×  (1 and 2 may have seen it)
//! gone:                                              ×  when 2 has ended
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use shm_bus::segment::{Region, SegmentError, SegmentName};
use spry_sched::crowd::Crowd;
use spry_wire::frame::Place;

use crate::gateway::Shelf;
use crate::inbox::Inbox;
use crate::instance::Instance;

/// See the module.
#[derive(Debug)]
pub struct Domain {
    inbox: Arc<Inbox>,
    outboxes: RwLock<Outboxes>,
    calls: Mutex<Calls>,
    /// Runs that are on the bus or in a queue.
    under_way: AtomicU32,
    crowd: Mutex<Crowd>,
    is_crowded: AtomicBool,
    unsent: Arc<Shelf>,
}

/// Outboxes of the dead at most. More can't be needed: each holds the value of some run, and so many runs find no trails.
const DEAD_MAX: usize = 1024;
/// Bytes in them at most.
const DEAD_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug, Default)]
struct Outboxes {
    members: HashMap<SegmentName, Arc<Outbox>>,
    /// Of the dead: no call needs them, but somebody keeps them.
    kept: HashMap<SegmentName, Weak<Outbox>>,
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

    /// Memory that it takes.
    fn bytes(&self) -> u64 {
        nix::sys::stat::fstat(&self.fd).map_or(0, |about| about.st_blocks as u64 * 512)
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
    /// Outboxes of the dead, in the order of their deaths.
    dead: VecDeque<Dead>,
    dead_bytes: u64,
}

#[derive(Debug)]
struct Dead {
    /// The number that the next pin had then.
    died_at: u64,
    outbox: SegmentName,
    bytes: u64,
}

impl Calls {
    /// The dead that no pin can have seen alive, and those that are too many.
    fn take_unseen(&mut self) -> Vec<SegmentName> {
        let oldest = self.pinned.first().copied().unwrap_or(u64::MAX);
        let mut gone = Vec::new();
        while let Some(dead) = self.dead.front() {
            let fits = self.dead.len() <= DEAD_MAX && self.dead_bytes <= DEAD_BYTES_MAX;
            if dead.died_at > oldest && fits {
                break;
            }
            self.dead_bytes -= dead.bytes;
            gone.extend(self.dead.pop_front().map(|dead| dead.outbox));
        }
        gone
    }
}

impl Domain {
    /// A domain without members.
    pub fn new(inbox: Arc<Inbox>) -> Arc<Self> {
        // As much as in the outbox of a function with the same limit.
        let unsent = Shelf::new(2 * u64::from(inbox.spec().len) / crate::inbox::BLOCKS);
        Arc::new(Self {
            unsent,
            inbox,
            outboxes: RwLock::default(),
            calls: Mutex::default(),
            under_way: AtomicU32::new(0),
            crowd: Mutex::default(),
            is_crowded: AtomicBool::new(false),
        })
    }

    /// A run begins.
    pub fn run_begins(&self) {
        self.under_way.fetch_add(1, Ordering::Relaxed);
    }

    /// A run has ended. Returns whether they are a crowd, for so many cores, when that has changed.
    pub fn run_ends(&self, cores: u32) -> Option<bool> {
        let under_way = self.under_way.fetch_sub(1, Ordering::Relaxed);
        // Contended: another worker is noting the same thing.
        let changed = self.crowd.try_lock()?.observe(under_way, cores)?;
        self.is_crowded.store(changed, Ordering::Relaxed);
        Some(changed)
    }

    /// Whether its runs are a crowd.
    pub fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// Room for results that wait to be sent.
    pub fn unsent(&self) -> &Arc<Shelf> {
        &self.unsent
    }

    /// Where spryd writes what the members read.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Lets the members see a new instance's outbox.
    pub fn admit(&self, instance: &Arc<Instance>, fd: OwnedFd) {
        let outbox = Arc::new(Outbox { instance: Arc::clone(instance), fd });
        self.outboxes.write().members.insert(instance.outbox_name, outbox);
    }

    /// An instance has ended: its outbox goes when nobody can need it any more.
    pub fn dismiss(&self, instance: &Instance) {
        let name = instance.outbox_name;
        let bytes = self.outbox(name).map_or(0, |outbox| outbox.bytes());
        let unseen = {
            let mut calls = self.calls.lock();
            let died_at = calls.next;
            calls.dead.push_back(Dead { died_at, outbox: name, bytes });
            calls.dead_bytes += bytes;
            calls.take_unseen()
        };
        self.forget(&unseen);
    }

    /// The outbox of that name.
    pub fn outbox(&self, name: SegmentName) -> Option<Arc<Outbox>> {
        let outboxes = self.outboxes.read();
        outboxes.members.get(&name).cloned().or_else(|| outboxes.kept.get(&name)?.upgrade())
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
            outboxes.kept.retain(|_, outbox| outbox.strong_count() > 0);
            for name in names {
                if let Some(outbox) = outboxes.members.remove(name)
                    && Arc::strong_count(&outbox) > 1
                {
                    outboxes.kept.insert(*name, Arc::downgrade(&outbox));
                }
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

    fn dead(died_at: u64, id: u32, bytes: u64) -> Dead {
        Dead { died_at, outbox: name(id), bytes }
    }

    #[test]
    fn the_dead_go_with_the_last_pin_that_may_have_seen_them() {
        let mut calls = Calls { next: 3, pinned: [1, 2].into(), dead: [dead(3, 7, 0)].into(), dead_bytes: 0 };
        assert_eq!(calls.take_unseen(), []);
        calls.pinned.remove(&1);
        calls.pinned.insert(3);
        assert_eq!(calls.take_unseen(), [], "2 may have seen it");
        calls.pinned.remove(&2);
        assert_eq!(calls.take_unseen(), [name(7)], "3 came after its death");
        calls.dead.push_back(dead(4, 8, 0));
        calls.pinned.clear();
        assert_eq!(calls.take_unseen(), [name(8)], "with no pin at all");
    }

    #[test]
    fn the_oldest_dead_go_when_they_are_too_many_or_too_large() {
        let mut calls = Calls { next: 1, pinned: [0].into(), dead: VecDeque::new(), dead_bytes: 0 };
        calls.dead.extend((0..=DEAD_MAX as u32).map(|id| dead(1, id, 0)));
        assert_eq!(calls.take_unseen(), [name(0)]);
        calls.dead.clear();
        calls.dead.extend([dead(1, 1, DEAD_BYTES_MAX), dead(1, 2, 1)]);
        calls.dead_bytes = DEAD_BYTES_MAX + 1;
        assert_eq!(calls.take_unseen(), [name(1)]);
        assert_eq!(calls.dead_bytes, 1);
    }
}
