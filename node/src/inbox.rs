//! Where requests lie: a function's inbox segment, written by spryd, read by that function's instances.
//!
//! A block is taken when a request's head is known, filled while the body arrives, and given back when the
//! invocation has ended, however it ended (the block's owner is dropped). Each instance can read the whole segment. So with
//! `isolation = "request"` no instance is given it: requests only wait there, and each instance has an inbox of its own
//! ([`OwnInboxes`]). In a chain, all whose members share one inbox, what a block held is zeroed then.

mod own;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use shm_bus::Descriptor;
use shm_bus::alloc::Allocator;
use shm_bus::segment::{Region, SegmentError, SegmentName, Writer};
use spry_wire::control::SegmentSpec;
use spry_wire::frame::{HEAD_MAX, Place};

use crate::manifest::Isolation;
pub use own::{Given, OwnInboxes};

/// Bodies that can be held at once, if all were of the largest size. Address space, not memory: pages
/// that were never written cost nothing.
pub const BLOCKS: u64 = 64;
const CAPACITY_MIN: u64 = 64 << 20;
const CAPACITY_MAX: u64 = 2 << 30;
/// What is set aside for a body in an inbox that fills up, before any of it has come.
const FIRST: usize = 4 << 10;

/// One function's inbox.
#[derive(Debug)]
pub struct Inbox {
    writer: Arc<Writer>,
    name: SegmentName,
    blocks: Mutex<Allocator>,
    node: Arc<NodeBytes>,
    readers: Readers,
}

/// Who can read an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// spryd alone.
    Nobody,
    /// Instances, with the strictest isolation of any of them.
    Instances(Isolation),
}

/// Bytes that the requests of the whole node hold in memory, and how many they may. What an instance has in an inbox of its
/// own counts beside what waits, but is never refused: it has been let in.
#[derive(Debug)]
pub struct NodeBytes {
    used: AtomicU64,
    limit: u64,
}

impl NodeBytes {
    /// Nothing held yet.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), limit })
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        self.take_within(bytes, self.limit)
    }

    fn take_within(&self, bytes: u64, limit: u64) -> bool {
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes <= limit {
            return true;
        }
        self.give(bytes);
        false
    }

    /// Takes them, limit or not.
    fn count(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes of the node's that somebody holds elsewhere; given back with this value.
#[derive(Debug)]
pub struct Held {
    node: Arc<NodeBytes>,
    bytes: u64,
}

impl Held {
    /// None yet.
    pub fn new(node: Arc<NodeBytes>) -> Self {
        Self { node, bytes: 0 }
    }

    /// So many, if half of what there may be is left to others then.
    pub fn of_half(node: &Arc<NodeBytes>, bytes: u64) -> Option<Self> {
        node.take_within(bytes, node.limit / 2).then(|| Self { node: Arc::clone(node), bytes })
    }

    /// Takes more, if the node has them.
    pub fn take(&mut self, bytes: u64) -> Result<(), Full> {
        if !self.node.take(bytes) {
            return Err(Full::Node);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.node.give(self.bytes);
    }
}

/// Why a block takes no more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// They are over the block's own size.
    Block,
    /// The inbox has no place for a larger block.
    Inbox,
    /// The node holds too much.
    Node,
}

impl Inbox {
    /// Makes an inbox for bodies of at most `payload_max` bytes.
    pub fn new(
        function: &str,
        name: SegmentName,
        payload_max: u64,
        node: Arc<NodeBytes>,
        readers: Readers,
    ) -> Result<Arc<Self>, SegmentError> {
        let block = (payload_max + HEAD_MAX as u64).next_power_of_two();
        let capacity = block.saturating_mul(BLOCKS).clamp(CAPACITY_MIN, CAPACITY_MAX);
        let fd = shm_bus::segment::create(&format!("spry-inbox-{function}"), capacity)?;
        let writer = Arc::new(Writer::map(fd, capacity)?);
        let blocks = Mutex::new(Allocator::new(capacity as u32));
        Ok(Arc::new(Self { writer, name, blocks, node, readers }))
    }

    /// Takes a block of at least `len` bytes; `None` when the inbox is full.
    pub fn allocate(self: &Arc<Self>, len: usize) -> Option<Block> {
        let block = self.blocks.lock().allocate(u32::try_from(len).ok()?)?;
        Some(self.block(block, block.len))
    }

    /// Takes a block for a head of `head` bytes and a body of at most `body` that is yet to come; `None` when the inbox is full.
    ///
    /// One for all of it, as long as that leaves half of the inbox to others. Beyond, it begins small and grows with what
    /// has really come: clients that only say that they will send much don't keep others out.
    pub fn open(self: &Arc<Self>, head: usize, body: usize) -> Option<Block> {
        let most = u32::try_from(head + body).ok()?;
        let mut blocks = self.blocks.lock();
        let (in_use, half) = (blocks.in_use(), blocks.capacity() / 2);
        let has_room = in_use == 0 || u64::from(in_use) + u64::from(most).next_power_of_two() <= half.into();
        let now = if has_room { most } else { most.min((head + FIRST) as u32) };
        let block = blocks.allocate(now)?;
        drop(blocks);
        Some(self.block(block, most))
    }

    fn block(self: &Arc<Self>, taken: shm_bus::alloc::Block, most: u32) -> Block {
        Block { inbox: Arc::clone(self), offset: taken.offset, capacity: taken.len, most, len: 0 }
    }

    /// Gives a block back in which `len` bytes were written.
    fn clear(&self, offset: u32, len: u32) {
        if self.readers == Readers::Instances(Isolation::Request) {
            zero(&self.writer, offset, len);
        }
        self.blocks.lock().free(offset);
    }

    /// Bytes in blocks that are taken.
    pub fn in_use_bytes(&self) -> u64 {
        u64::from(self.blocks.lock().in_use())
    }

    /// What an instance is told about this segment.
    pub fn spec(&self) -> SegmentSpec {
        SegmentSpec { id: self.name.id, generation: self.name.generation, len: self.writer.len() as u32 }
    }

    /// How descriptors name it.
    pub fn name(&self) -> SegmentName {
        self.name
    }

    /// What lies in it, without a copy. Whoever keeps the region keeps its blocks, too.
    pub fn region(&self, offset: u64, len: u64) -> Result<Region, SegmentError> {
        self.writer.region(offset, len)
    }

    /// The segment itself, to be handed to instances.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.writer.fd()
    }
}

/// A request's place in the inbox; given back when dropped.
#[derive(Debug)]
pub struct Block {
    inbox: Arc<Inbox>,
    offset: u32,
    /// Bytes that it has place for now.
    capacity: u32,
    /// Bytes that it may come to have.
    most: u32,
    len: u32,
}

impl Block {
    /// Appends `bytes`, or nothing.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > (self.most - self.len) as usize {
            return Err(Full::Block);
        }
        let wanted = self.len + bytes.len() as u32;
        if wanted > self.capacity {
            self.grow(wanted)?;
        }
        if !self.inbox.node.take(bytes.len() as u64) {
            return Err(Full::Node);
        }
        let at = u64::from(self.offset + self.len);
        self.len += bytes.len() as u32;
        self.inbox.writer.write_at(at, bytes).map_err(|_| Full::Block)
    }

    /// Moves to a block of at least `wanted` bytes, and of twice the size, so that a body is copied twice at most.
    fn grow(&mut self, wanted: u32) -> Result<(), Full> {
        let larger = wanted.max(self.capacity.saturating_mul(2)).min(self.most);
        let block = self.inbox.blocks.lock().allocate(larger).ok_or(Full::Inbox)?;
        let moved =
            self.region().and_then(|old| self.inbox.writer.write_at(block.offset.into(), old.as_ref()));
        if moved.is_err() {
            self.inbox.blocks.lock().free(block.offset);
            return Err(Full::Block);
        }
        self.inbox.clear(self.offset, self.len);
        (self.offset, self.capacity) = (block.offset, block.len);
        Ok(())
    }

    /// Overwrites eight bytes at `at`, counted from the block's start (the deadline, known last).
    pub fn patch(&self, at: u32, bytes: [u8; 8]) {
        debug_assert!(at + 8 <= self.len);
        let patched = self.inbox.writer.write_at(u64::from(self.offset + at), &bytes);
        debug_assert!(patched.is_ok());
    }

    /// Gives back what was reserved and not written.
    pub fn shrink(&mut self) {
        let whole = shm_bus::alloc::Block { offset: self.offset, len: self.capacity };
        self.capacity = self.inbox.blocks.lock().shrink(whole, self.len).len;
    }

    /// Bytes written so far.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The descriptor's words about the place of this block.
    pub fn describe(&self, descriptor: &mut Descriptor) {
        descriptor.segment = self.inbox.name.id;
        descriptor.generation = self.inbox.name.generation;
        descriptor.offset = self.offset;
        descriptor.length = self.len;
    }

    /// Where it lies.
    pub fn place(&self) -> Place {
        let SegmentName { id: segment, generation } = self.inbox.name;
        Place { segment, generation, offset: self.offset, length: self.len }
    }

    /// Whether this is exactly the place where an instance was told that this block's request lies: here, or in an inbox of
    /// the instance's own.
    pub fn is_laid_at(&self, place: &Place, own: Option<SegmentName>) -> bool {
        let laid_at = match own {
            None => self.place(),
            Some(SegmentName { id: segment, generation }) => {
                Place { segment, generation, offset: 0, length: self.len }
            }
        };
        *place == laid_at
    }

    /// What was written, without a copy. It says nothing to the block: who keeps the region keeps the block, too.
    pub fn region(&self) -> Result<Region, SegmentError> {
        self.inbox.writer.region(u64::from(self.offset), u64::from(self.len))
    }
}

/// Zeroes `len` bytes at `offset`.
fn zero(writer: &Writer, offset: u32, len: u32) {
    static ZEROS: [u8; 16 << 10] = [0; 16 << 10];
    for at in (0..len).step_by(ZEROS.len()) {
        let len = ZEROS.len().min((len - at) as usize);
        let zeroed = writer.write_at(u64::from(offset + at), &ZEROS[..len]);
        debug_assert!(zeroed.is_ok());
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.inbox.node.give(u64::from(self.len));
        self.inbox.clear(self.offset, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lies where a request was that is over.
    fn left(isolation: Isolation, len: usize) -> Vec<u8> {
        let name = SegmentName { id: 1, generation: 1 };
        let node = NodeBytes::new(u64::MAX);
        let readers = Readers::Instances(isolation);
        let inbox = Inbox::new("wiped", name, 1 << 20, Arc::clone(&node), readers).expect("an inbox");
        let mut block = inbox.allocate(len).expect("room");
        let place = block.place();
        for part in vec![7; len].chunks(1000) {
            block.append(part).expect("it fits");
        }
        drop(block);
        assert_eq!((node.used(), inbox.in_use_bytes()), (0, 0));
        inbox.region(place.offset.into(), len as u64).expect("within").as_ref().to_vec()
    }

    #[test]
    fn who_announces_much_and_sends_little_leaves_room_for_others() {
        let node = NodeBytes::new(8 << 20);
        let payload: usize = 6 << 20;
        let name = SegmentName { id: 1, generation: 1 };
        let readers = Readers::Instances(Isolation::Request);
        let inbox = Inbox::new("idle", name, payload as u64, Arc::clone(&node), readers).expect("an inbox");
        let idle: Vec<_> =
            (0..8192).map(|_| inbox.open(100, payload).expect("room for one that sends nothing")).collect();
        // Somebody who really sends that much.
        let body: Vec<u8> = (0..payload).map(|at| (at % 251) as u8).collect();
        let mut block = inbox.open(100, payload).expect("room");
        let mut places = std::collections::BTreeSet::new();
        for piece in [&[7; 100][..], &body].concat().chunks(10_000) {
            block.append(piece).expect("room");
            places.insert(block.place().offset);
        }
        assert!(places.len() > 1, "it never had to move");
        let lies = block.region().expect("within");
        assert!(lies.as_ref()[..100] == [7; 100] && lies.as_ref()[100..] == body);
        assert_eq!(node.used(), 100 + payload as u64, "moving counts nothing twice");
        assert_eq!(block.append(&[1]), Err(Full::Block), "that was all that it may have");
        block.shrink();
        drop((lies, block));
        for offset in places {
            let left = inbox.region(offset.into(), 100).expect("within");
            assert!(left.as_ref().iter().all(|byte| *byte == 0), "what was moved on lies there still");
        }
        drop(idle);
        assert_eq!((node.used(), inbox.in_use_bytes()), (0, 0));
    }

    #[test]
    fn the_largest_body_fits_where_nobody_else_is() {
        let node = NodeBytes::new(u64::MAX);
        let name = SegmentName { id: 1, generation: 1 };
        let inbox = Inbox::new("huge", name, 1 << 30, Arc::clone(&node), Readers::Nobody).expect("an inbox");
        let block = inbox.open(1000, 1 << 30).expect("room");
        assert!(block.capacity > 1 << 30, "it need not move");
    }

    #[test]
    fn nothing_of_a_request_lies_there_for_the_next_if_that_is_asked_for() {
        for len in [1, 4096, 16 << 10, 100_001] {
            assert!(left(Isolation::Request, len).iter().all(|byte| *byte == 0), "{len}");
        }
        assert_eq!(left(Isolation::Instance, 3), [7; 3], "it costs time");
    }
}
