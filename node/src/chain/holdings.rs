//! What one call of a chain keeps from being used again: blocks of outboxes and of the inbox, and the outboxes of the
//! dead. All of it goes back when the call has ended, however it has ended, and its result has left for the client.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use shm_bus::segment::SegmentName;
use spry_wire::frame::Place;

use super::domain::{Domain, Pin};
use crate::dispatch::{Visit, place_of_hop};
use crate::inbox::Block;
use crate::instance::Instance;

/// See the module.
#[derive(Debug)]
pub struct Holdings {
    blocks: Vec<Block>,
    /// By outbox and offset: a value that comes back to its writer, who passes it on, is still one block. Weak: with an
    /// instance that is dead and gone, its blocks are.
    answers: HashMap<(SegmentName, u32), Weak<Instance>>,
    /// What the answers say that they take.
    answer_bytes: u64,
    _pin: Pin,
}

impl Holdings {
    /// Nothing yet, but from now on no outbox of the domain goes.
    pub fn new(domain: &Arc<Domain>) -> Self {
        Self { blocks: Vec::new(), answers: HashMap::new(), answer_bytes: 0, _pin: domain.pin() }
    }

    /// Keeps a block of the inbox.
    pub fn keep(&mut self, block: Block) {
        self.blocks.push(block);
    }

    /// Keeps a block, if it lies in this instance's outbox. (What it only passed on is another's.)
    pub fn keep_answer(&mut self, instance: &Arc<Instance>, place: Place) {
        let outbox = instance.outbox_name;
        if (place.segment, place.generation) == (outbox.id, outbox.generation)
            && let Entry::Vacant(vacant) = self.answers.entry((outbox, place.offset))
        {
            vacant.insert(Arc::downgrade(instance));
            instance.keep_block();
            self.answer_bytes += u64::from(place.length);
        }
    }

    fn has_answer(&self, instance: &Instance, place: Place) -> bool {
        self.answers.contains_key(&(instance.outbox_name, place.offset))
    }

    /// Whether what is kept here should go, at the price of a copy of `len` bytes: because that frees much more, or
    /// because an instance has lent as many blocks as it can.
    fn is_worth_a_copy(&self, len: u64) -> bool {
        let is_short = |instance: &Weak<Instance>| {
            instance.upgrade().is_some_and(|instance| instance.is_short_of_blocks())
        };
        self.answer_bytes > 2 * len || self.answers.values().any(is_short)
    }

    /// Keeps what another has kept.
    fn take_over(&mut self, other: &mut Self) {
        self.blocks.append(&mut other.blocks);
        for (block, instance) in other.answers.drain() {
            if let Some(instance) = self.answers.insert(block, instance).and_then(|kept| kept.upgrade()) {
                instance.uncount_block();
            }
        }
        self.answer_bytes += std::mem::take(&mut other.answer_bytes);
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        for ((_, offset), instance) in &self.answers {
            if let Some(instance) = instance.upgrade() {
                instance.give_back(*offset);
            }
        }
    }
}

/// The holdings of a call, or of one element of a list within it, which go earlier. Who keeps the inner ones keeps the
/// outer: what an element's functions are given may lie there.
#[derive(Debug)]
pub struct Scope {
    domain: Arc<Domain>,
    own: RefCell<Holdings>,
    outer: Option<Rc<Self>>,
}

impl Scope {
    /// That of a call.
    pub fn new(domain: &Arc<Domain>) -> Rc<Self> {
        Rc::new(Self { domain: Arc::clone(domain), own: Holdings::new(domain).into(), outer: None })
    }

    /// One within it.
    pub fn within(self: &Rc<Self>) -> Rc<Self> {
        let outer = Some(Rc::clone(self));
        Rc::new(Self { domain: Arc::clone(&self.domain), own: Holdings::new(&self.domain).into(), outer })
    }

    /// Keeps a block of the inbox.
    pub fn keep(&self, block: Block) {
        self.own.borrow_mut().keep(block);
    }

    /// Keeps what the steps of a run have answered with.
    pub fn collect(&self, visits: &[Visit]) {
        for visit in visits {
            if let Some((instance, _)) = &visit.by {
                self.keep_answer(instance, place_of_hop(&visit.hop));
            }
        }
    }

    /// As [`Holdings::keep_answer`]; what is kept further out is not kept twice.
    fn keep_answer(&self, instance: &Arc<Instance>, place: Place) {
        let mut outer = self.outer.as_deref();
        while let Some(scope) = outer {
            if scope.own.borrow().has_answer(instance, place) {
                return;
            }
            outer = scope.outer.as_deref();
        }
        self.own.borrow_mut().keep_answer(instance, place);
    }

    /// Where the one further out should have a copy of `len` bytes instead of all that this one keeps.
    pub fn better_copied(&self, len: u64) -> Option<&Rc<Self>> {
        self.outer.as_ref().filter(|_| self.own.borrow().is_worth_a_copy(len))
    }

    /// The one further out keeps it all.
    pub fn hand_over(&self) {
        if let Some(outer) = &self.outer {
            outer.own.borrow_mut().take_over(&mut self.own.borrow_mut());
        }
    }

    /// What is kept so far. (Runs that were left alone may hold the scope until they have ended.)
    pub fn take(&self) -> Holdings {
        self.own.replace(Holdings::new(&self.domain))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use shm_bus::ids::PeerId;
    use shm_bus::release::{OUTSTANDING_MAX, ReleaseReader, ReleaseWriter};
    use shm_bus::segment::{Reader, create, page_len};
    use spry_sched::backend::Process;

    use super::*;
    use crate::inbox::{Inbox, NodeBytes, Readers};
    use crate::instance::Parts;
    use crate::manifest::Isolation;

    const OUTBOX: SegmentName = SegmentName { id: 7, generation: 1 };

    /// This process as an instance, with an outbox of its own.
    fn instance() -> Arc<Instance> {
        let pid = std::process::id() as i32;
        let pidfd = Arc::new(crate::sys::pidfd_open(pid).expect("a descriptor of oneself"));
        let outbox = create("spry-test", page_len()).expect("a segment");
        let pipe = || -> OwnedFd { nix::unistd::pipe().expect("a pipe").0 };
        Instance::new(Parts {
            peer: PeerId { slot: 3, generation: 1 },
            pid,
            process: Arc::new(Process::new(pid, Arc::clone(&pidfd), None)),
            pidfd,
            tracked: None,
            outbox: Arc::new(Reader::map(outbox, page_len()).expect("mapped")),
            outbox_name: OUTBOX,
            own_inbox: None,
            release: ReleaseWriter::create("spry-test").expect("a page"),
            requested_at: Instant::now(),
            cold: false,
            stdout: pipe(),
            stderr: pipe(),
            cpus: crate::sys::CpuSet::mine().expect("the CPUs of this process"),
            output_max: 0,
            gate: None,
            ahead: false,
        })
    }

    fn domain() -> Arc<Domain> {
        let name = SegmentName { id: 1, generation: 1 };
        let node = NodeBytes::new(1 << 20);
        let readers = Readers::Instances(Isolation::Instance);
        Domain::new(Inbox::new("f", name, 1 << 10, node, readers).expect("an inbox"))
    }

    fn at(offset: u32) -> Place {
        Place { segment: OUTBOX.id, generation: OUTBOX.generation, offset, length: 10 }
    }

    /// The blocks that have come back since the last look, sorted.
    fn back(reader: &mut ReleaseReader) -> Vec<u32> {
        let mut back = Vec::new();
        reader.drain(|offset| back.push(offset));
        back.sort_unstable();
        back
    }

    #[test]
    fn a_block_that_comes_through_its_own_instance_again_goes_back_once() {
        let mut holdings = Holdings::new(&domain());
        let instance = instance();
        let mut reader = ReleaseReader::map(instance.release.fd()).expect("mapped");
        let others = Place { segment: 8, ..at(64) };
        for place in [at(64), others, at(64), at(128), at(64)] {
            holdings.keep_answer(&instance, place);
        }
        assert_eq!(back(&mut reader), [0; 0], "nothing goes back before the call has ended");
        drop(holdings);
        assert_eq!(back(&mut reader), [64, 128]);
    }

    #[test]
    fn what_an_element_has_taken_goes_back_with_it_and_nothing_else() {
        let (call, instance) = (Scope::new(&domain()), instance());
        let mut reader = ReleaseReader::map(instance.release.fd()).expect("mapped");
        call.keep_answer(&instance, at(64));
        let (element, other) = (call.within(), call.within());
        let deeper = element.within();
        element.keep_answer(&instance, at(128));
        for place in [at(64), at(128), at(192)] {
            deeper.keep_answer(&instance, place);
        }
        drop(deeper);
        assert_eq!(back(&mut reader), [192], "the others are kept further out");
        other.keep_answer(&instance, at(256));
        other.hand_over();
        drop((element, other));
        assert_eq!(back(&mut reader), [128]);
        // Who claims what another has is given it once.
        let (one, two) = (call.within(), call.within());
        for scope in [&one, &two] {
            scope.keep_answer(&instance, at(320));
            scope.hand_over();
        }
        drop((one, two));
        let kept = call.take();
        drop(call);
        assert_eq!(back(&mut reader), [0; 0]);
        drop(kept);
        assert_eq!(back(&mut reader), [64, 256, 320]);
    }

    #[test]
    fn a_copy_is_worth_it_when_it_frees_much_or_blocks_are_short() {
        let (call, instance) = (Scope::new(&domain()), instance());
        assert!(call.better_copied(0).is_none(), "nobody is further out");
        let element = call.within();
        for (offset, worth) in [(0, false), (64, false), (128, true)] {
            element.keep_answer(&instance, at(offset));
            assert_eq!(element.better_copied(10).is_some(), worth, "{offset}");
        }
        drop(element);
        for block in 0..OUTSTANDING_MAX / 4 - 1 {
            call.keep_answer(&instance, at(block * 64));
        }
        let element = call.within();
        assert!(element.better_copied(10).is_none());
        element.keep_answer(&instance, at(1 << 20));
        assert!(element.better_copied(10).is_some());
        drop((element, call));
        assert!(!instance.is_short_of_blocks());
    }
}
