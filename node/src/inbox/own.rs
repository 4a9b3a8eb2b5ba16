//! Inboxes of instances that have one each: with `isolation = "request"`, where no instance may read another's request.
//!
//! A request waits where no instance can read it, in the function's [`Inbox`]. Once an instance is chosen, and before it hears of
//! that, the request is copied to this one's own inbox, at its beginning ([`OwnInboxes::lay`]). When it is over it is zeroed there; a long
//! one when the instance has ended or is given the next, which overwrites most of it.
//!
//! The segments are kept for the function's next instances: mapping and unmapping them interrupts every core that spryd runs on.
//! A segment is used again when all that its last instance has left is certain to have ended (its control group is empty; without
//! control groups nobody knows, and each instance has a new one), and unless more of its pages are there than spryd has written: then
//! somebody has read on and on, for a page that is read takes memory, too.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use shm_bus::Descriptor;
use shm_bus::segment::{self, SegmentError, SegmentName, Writer};
use spry_ebpf_common::SLOTS_PER_FUNCTION;
use spry_wire::control::SegmentSpec;
use spry_wire::frame::HEAD_MAX;

use super::{Inbox, NodeBytes, Readers, zero};

/// Bytes of a segment that may be there without having been written: the kernel may give whole huge pages.
const UNWRITTEN_MAX: u64 = 2 << 20;

/// What is longer isn't zeroed before it must be.
const LONG: u32 = 64 << 10;

/// Those of one function, by the bit of its instances' places on the bus.
#[derive(Debug)]
pub struct OwnInboxes {
    label: String,
    len: u64,
    node: Arc<NodeBytes>,
    given: [Mutex<Option<Own>>; SLOTS_PER_FUNCTION as usize],
    spare: Arc<Spare>,
}

/// One that an instance has.
#[derive(Debug)]
struct Own {
    segment: Arc<Segment>,
    name: SegmentName,
    /// Bytes of the request in it, or of one that is over.
    held: u32,
    /// It is over, and counts no longer.
    over: bool,
}

/// Segments that nobody but spryd has.
#[derive(Debug, Default)]
struct Spare(Mutex<Vec<Zeroed>>);

/// A segment that holds nothing.
#[derive(Debug)]
struct Zeroed {
    writer: Arc<Writer>,
    /// The longest request that ever was in it.
    longest: u32,
}

/// A segment in use. It goes to the spare ones when its instance's place is somebody else's and nothing of the instance is
/// left, whichever comes last.
#[derive(Debug)]
struct Segment {
    writer: Arc<Writer>,
    longest: AtomicU32,
    all_ended: AtomicBool,
    spare: Weak<Spare>,
}

/// What a new instance is given.
#[derive(Debug)]
pub struct Given {
    segment: Arc<Segment>,
    name: SegmentName,
}

impl OwnInboxes {
    /// For requests that wait in `waiting`, with bodies of at most `payload_max` bytes. `None`: they are read there.
    pub fn beside(waiting: &Inbox, function: &str, payload_max: u64) -> Option<Self> {
        (waiting.readers == Readers::Nobody).then(|| Self {
            label: format!("spry-inbox-{function}"),
            len: (payload_max + HEAD_MAX as u64).next_multiple_of(segment::page_len()),
            node: Arc::clone(&waiting.node),
            given: std::array::from_fn(|_| Mutex::default()),
            spare: Arc::default(),
        })
    }

    /// Gives the instance in this place an inbox, which nothing is in. It must not be in service yet.
    pub fn give(&self, bit: u32, name: SegmentName) -> Result<Given, SegmentError> {
        let spare = self.spare.0.lock().pop();
        let Zeroed { writer, longest } = match spare {
            Some(spare) => spare,
            None => Zeroed {
                writer: Arc::new(Writer::map(segment::create(&self.label, self.len)?, self.len)?),
                longest: 0,
            },
        };
        let segment = Arc::new(Segment {
            writer,
            longest: AtomicU32::new(longest),
            all_ended: AtomicBool::new(false),
            spare: Arc::downgrade(&self.spare),
        });
        self.take_away(bit);
        *self.given[bit as usize].lock() =
            Some(Own { segment: Arc::clone(&segment), name, held: 0, over: true });
        Ok(Given { segment, name })
    }

    /// Copies the request that `descriptor` names in `waiting` to the inbox of the instance in this place, which holds its
    /// invocation and hasn't heard of it; the descriptor names it there then. False: it has none.
    pub fn lay(&self, bit: u32, waiting: &Inbox, descriptor: &mut Descriptor) -> bool {
        let waits_at = SegmentName { id: descriptor.segment, generation: descriptor.generation };
        if waits_at != waiting.name() {
            return false;
        }
        let Ok(request) = waiting.region(descriptor.offset.into(), descriptor.length.into()) else {
            return false;
        };
        let mut given = self.given[bit as usize].lock();
        let Some(own) = given.as_mut() else { return false };
        own.end(&self.node);
        if own.segment.writer.write_at(0, request.as_ref()).is_err() {
            return false;
        }
        let len = descriptor.length;
        zero(&own.segment.writer, len, own.held.saturating_sub(len));
        self.node.count(len.into());
        (own.held, own.over) = (len, false);
        own.segment.longest.fetch_max(own.held, Ordering::Relaxed);
        (descriptor.segment, descriptor.generation) = (own.name.id, own.name.generation);
        descriptor.offset = 0;
        true
    }

    /// The request of the instance in this place is over, and the instance is about to be as it was.
    pub fn clear(&self, bit: u32) {
        if let Some(own) = &mut *self.given[bit as usize].lock() {
            own.end(&self.node);
            if own.held <= LONG {
                own.zero();
            }
        }
    }

    /// The instance in this place has ended, and has the place no longer.
    pub fn take_away(&self, bit: u32) {
        let taken = self.given[bit as usize].lock().take();
        if let Some(mut own) = taken {
            own.end(&self.node);
            own.zero();
        }
    }

    /// Gives up the segments that nobody has: large requests of the past have left pages in them.
    pub fn forget_spare(&self) {
        let spare = std::mem::take(&mut *self.spare.0.lock());
        drop(spare);
    }
}

impl Own {
    fn end(&mut self, node: &NodeBytes) {
        if !std::mem::replace(&mut self.over, true) {
            node.give(self.held.into());
        }
    }

    fn zero(&mut self) {
        zero(&self.segment.writer, 0, std::mem::take(&mut self.held));
    }
}

impl Given {
    /// What the instance is told about it.
    pub fn spec(&self) -> SegmentSpec {
        let SegmentName { id, generation } = self.name;
        SegmentSpec { id, generation, len: self.segment.writer.len() as u32 }
    }

    /// How descriptors name it.
    pub fn name(&self) -> SegmentName {
        self.name
    }

    /// The segment itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.segment.writer.fd()
    }

    /// To be called when nothing of the instance is left that could read it, for certain.
    pub fn when_all_have_ended(&self) -> impl FnOnce() + Send + 'static {
        let segment = Arc::clone(&self.segment);
        move || segment.all_ended.store(true, Ordering::Relaxed)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let Some(spare) = self.spare.upgrade().filter(|_| *self.all_ended.get_mut()) else { return };
        let longest = *self.longest.get_mut();
        if is_as_written(&self.writer, longest) {
            let mut spare = spare.0.lock();
            if spare.len() < SLOTS_PER_FUNCTION as usize {
                spare.push(Zeroed { writer: Arc::clone(&self.writer), longest });
            }
        }
    }
}

/// Whether no more of it takes memory than what was written.
fn is_as_written(writer: &Writer, longest: u32) -> bool {
    let bytes = nix::sys::stat::fstat(writer.fd()).map(|stat| stat.st_blocks as u64 * 512);
    bytes.is_ok_and(|bytes| bytes <= u64::from(longest) + UNWRITTEN_MAX)
}

#[cfg(test)]
mod tests {
    use shm_bus::segment::Reader;

    use super::*;
    use crate::inbox::Block;

    const PAYLOAD: u64 = 4 << 20;
    const OUTER: SegmentName = SegmentName { id: 7, generation: 1 };

    struct Scene {
        node: Arc<NodeBytes>,
        waiting: Arc<Inbox>,
        own: OwnInboxes,
        names: u32,
    }

    impl Scene {
        fn set() -> Self {
            let node = NodeBytes::new(u64::MAX);
            let waiting = Inbox::new("f", OUTER, PAYLOAD, Arc::clone(&node), Readers::Nobody);
            let waiting = waiting.expect("an inbox");
            let own = OwnInboxes::beside(&waiting, "f", PAYLOAD).expect("nobody reads it");
            Self { node, waiting, own, names: 0 }
        }

        fn give(&mut self, bit: u32) -> Given {
            self.names += 1;
            self.own.give(bit, SegmentName { id: self.names, generation: 3 }).expect("an inbox")
        }

        fn request(&self, byte: u8, len: usize) -> Block {
            let mut block = self.waiting.allocate(len).expect("room");
            block.append(&vec![byte; len]).expect("it fits");
            block
        }

        fn lay(&self, bit: u32, block: &Block) -> Option<Descriptor> {
            let mut descriptor = Descriptor::default();
            block.describe(&mut descriptor);
            self.own.lay(bit, &self.waiting, &mut descriptor).then_some(descriptor)
        }
    }

    /// All that an instance can read there.
    fn read(given: &Given) -> Vec<u8> {
        let len = given.segment.writer.len();
        let reader = Reader::map(given.fd(), len).expect("an instance can map it");
        reader.copy(0, len).expect("and read it")
    }

    fn others(bytes: &[u8], own: u8) -> usize {
        bytes.iter().filter(|byte| **byte != 0 && **byte != own).count()
    }

    #[test]
    fn an_instance_can_read_its_own_request_and_no_other_at_any_time() {
        let mut scene = Scene::set();
        let (one, two) = (scene.give(0), scene.give(5));
        let (long, short, waits) =
            (scene.request(b'l', 100_000), scene.request(b's', 300), scene.request(b'w', 70_000));
        let laid = scene.lay(0, &long).expect("the first has an inbox");
        assert_eq!((laid.segment, laid.generation, laid.offset, laid.length), (1, 3, 0, 100_000));
        scene.lay(5, &short).expect("the second has one");
        assert_eq!(scene.node.used(), 2 * (100_000 + 300) + 70_000);
        let (first, second) = (read(&one), read(&two));
        assert_eq!((others(&first, b'l'), others(&second, b's')), (0, 0));
        assert_eq!((first[99_999], second[299]), (b'l', b's'));
        // One after the other, whether or not it was said that the first is over.
        scene.lay(0, &short).expect("it is still there");
        assert_eq!(others(&read(&one), b's'), 0);
        scene.own.clear(0);
        assert_eq!(others(&read(&one), 0), 0);
        // A long one is there until the next, and counts no longer.
        scene.lay(0, &waits).expect("it is still there");
        scene.own.clear(0);
        assert_eq!(scene.node.used(), 100_000 + 2 * 300 + 70_000);
        scene.lay(0, &short).expect("it is still there");
        assert_eq!(others(&read(&one), b's'), 0);
        scene.lay(0, &waits).expect("it is still there");
        scene.own.clear(0);
        scene.own.take_away(0);
        assert_eq!(others(&read(&one), 0), 0);
        drop((long, short, waits));
        assert_eq!(scene.node.used(), 300);
        scene.own.take_away(5);
        assert_eq!(scene.node.used(), 0);
        assert_eq!(others(&read(&two), 0), 0);
    }

    #[test]
    fn a_segment_goes_to_the_next_when_its_instance_and_all_that_it_left_have_ended() {
        let mut scene = Scene::set();
        let request = scene.request(b'r', 5000);
        let file = |given: &Given| nix::sys::stat::fstat(given.fd()).expect("a file").st_ino;
        let first = scene.give(0);
        let (of_first, ended) = (file(&first), first.when_all_have_ended());
        drop(first);
        scene.lay(0, &request).expect("it has an inbox");
        scene.own.take_away(0);
        let second = scene.give(0);
        assert_ne!(file(&second), of_first, "a child of the first may live");
        ended();
        let third = scene.give(1);
        assert_eq!(file(&third), of_first);
        assert_eq!(others(&read(&third), 0), 0);
        // All has ended, and it isn't known yet that the instance has.
        third.when_all_have_ended()();
        drop(third);
        assert_ne!(file(&scene.give(2)), of_first);
        // It is never known.
        drop(second.when_all_have_ended());
        drop(second);
        scene.own.take_away(0);
        assert!(scene.own.spare.0.lock().is_empty());
    }

    #[test]
    fn a_segment_that_was_read_from_end_to_end_is_not_kept() {
        let mut scene = Scene::set();
        for reads in [false, true] {
            let given = scene.give(0);
            if reads {
                assert_eq!(others(&read(&given), 0), 0);
            }
            given.when_all_have_ended()();
            drop(given);
            scene.own.take_away(0);
            assert_eq!(scene.own.spare.0.lock().is_empty(), reads);
        }
        drop(scene.give(0).when_all_have_ended());
        scene.own.forget_spare();
    }

    #[test]
    fn what_lies_elsewhere_is_not_laid() {
        let mut scene = Scene::set();
        let request = scene.request(b'r', 10);
        assert!(scene.lay(3, &request).is_none(), "nobody is there");
        let given = scene.give(3);
        let mut descriptor = Descriptor { segment: 99, length: 10, ..Descriptor::default() };
        assert!(!scene.own.lay(3, &scene.waiting, &mut descriptor), "another's segment");
        let end = scene.waiting.spec().len - 5;
        let SegmentName { id: segment, generation } = OUTER;
        descriptor = Descriptor { segment, generation, offset: end, length: 10, ..descriptor };
        assert!(!scene.own.lay(3, &scene.waiting, &mut descriptor), "beyond the end");
        assert_eq!((others(&read(&given), 0), scene.node.used()), (0, 10));
    }
}
