//! The allocator of a segment's owner: a binary buddy allocator over offsets.
//!
//! Knuth, *The Art of Computer Programming*, volume 1, section 2.5, "buddy system": every block has a power of
//! two as its size and a multiple of that as its offset; a block is made by halving a larger one, and when
//! both halves are free they become that larger one again. The halves of a block differ in one bit of
//! their offset, so a block finds its buddy without a search.
//!
//! What is particular here:
//!
//! - Nothing of it lies in the segment. Whoever reads the segment learns nothing, and whoever could write to it
//!   (nobody, but for the owner) could break nothing.
//! - It costs memory by blocks, not by bytes of the segment: a list of free blocks per size and a table of
//!   taken ones. A thousand idle segments of a gigabyte cost a few hundred bytes each.
//! - Of the free blocks of a size, the one with the lowest offset is taken. So the same few pages are used
//!   again and again: they are in memory, mapped, and warm in the cache, and the rest of the segment never
//!   takes memory at all.
//! - A body whose length isn't known takes a block for the largest, and [`Allocator::shrink`] gives the
//!   unused halves back.
//!
//! Allocating and freeing take at most one step per size (26 from 64 B to 2 GiB), each O(log free blocks).

mod free;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use free::FreeList;

/// The smallest block, and the unit of all offsets: a cache line.
pub const BLOCK_MIN: u32 = 64;
const UNIT_BITS: u32 = BLOCK_MIN.trailing_zeros();
/// Sizes: 64 B to 2 GiB.
const ORDERS: usize = 26;

/// A part of the segment: `len` is a power of two, `offset` a multiple of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// First byte.
    pub offset: u32,
    /// Bytes; at least what was asked for.
    pub len: u32,
}

/// See the module's text.
#[derive(Debug)]
pub struct Allocator {
    /// By order: the units at which free blocks of `1 << order` units start.
    free: [FreeList; ORDERS],
    /// Bit o: there are free blocks of order o.
    available: u32,
    /// By unit: the order of the taken block that starts there.
    taken: HashMap<u32, u8, BuildHasherDefault<UnitHasher>>,
    in_use_bytes: u32,
    capacity_bytes: u32,
}

impl Allocator {
    /// An allocator of `capacity` bytes (what is beyond the last multiple of 64 is never given out).
    ///
    /// The largest block is the largest power of two that fits.
    pub fn new(capacity: u32) -> Self {
        let mut new = Self {
            free: [const { FreeList::new() }; ORDERS],
            available: 0,
            taken: HashMap::default(),
            in_use_bytes: 0,
            capacity_bytes: capacity & !(BLOCK_MIN - 1),
        };
        // From the start: as large as what is left, so that each block is aligned to its size.
        let (mut unit, mut left) = (0, new.capacity_bytes >> UNIT_BITS);
        while left != 0 {
            let order = left.ilog2();
            new.put(unit, order);
            unit += 1 << order;
            left -= 1 << order;
        }
        new
    }

    /// Sets the first `len` bytes aside for good (a header): no block will contain them.
    /// They don't count as in use. To be called on a new allocator.
    ///
    /// # Panics
    /// When something is taken already, or the segment is shorter.
    pub fn reserve(&mut self, len: u32) {
        assert!(self.taken.is_empty(), "the header is reserved before anything is allocated");
        let units = len.div_ceil(BLOCK_MIN);
        assert!(units <= self.capacity_bytes >> UNIT_BITS, "the header fits into the segment");
        let capacity = self.capacity_bytes >> UNIT_BITS;
        self.free = [const { FreeList::new() }; ORDERS];
        self.available = 0;
        // From the header's end: as large as the offset's alignment and what is left allow.
        let mut unit = units;
        while unit < capacity {
            let order = unit.trailing_zeros().min((capacity - unit).ilog2());
            self.put(unit, order);
            unit += 1 << order;
        }
    }

    /// Takes a block of at least `len` bytes; `None` when there is none.
    pub fn allocate(&mut self, len: u32) -> Option<Block> {
        let order = order_of(len)?;
        let from = (self.available >> order).trailing_zeros() + order;
        if from as usize >= ORDERS {
            return None;
        }
        let unit = self.free[from as usize].pop_lowest().expect("`available` says that there is one");
        self.note(from);
        // Halve until it fits; the lower half goes on.
        for smaller in (order..from).rev() {
            self.put(unit + (1 << smaller), smaller);
        }
        let known = self.taken.insert(unit, order as u8);
        debug_assert!(known.is_none(), "a free block was taken");
        let block = block_of(unit, order);
        self.in_use_bytes += block.len;
        Some(block)
    }

    /// Gives back what of `block` lies beyond its first `used` bytes, as far as halves allow; returns what
    /// is still taken (at the same offset). A block that isn't taken is returned as it is.
    pub fn shrink(&mut self, block: Block, used: u32) -> Block {
        let unit = block.offset >> UNIT_BITS;
        let (Some(order), Some(wanted)) = (self.taken.get(&unit).copied(), order_of(used)) else {
            return block;
        };
        let order = u32::from(order);
        if wanted >= order || !block.offset.is_multiple_of(BLOCK_MIN) {
            return block_of(unit, order);
        }
        // Each freed upper half has a lower half that is partly taken, so none of them merges.
        for smaller in (wanted..order).rev() {
            self.put(unit + (1 << smaller), smaller);
        }
        self.taken.insert(unit, wanted as u8);
        let left = block_of(unit, wanted);
        self.in_use_bytes -= block_of(unit, order).len - left.len;
        left
    }

    /// Gives the block at `offset` back and returns it. `None`, and nothing happens: no block is taken there
    /// (it was freed before, or never handed out).
    pub fn free(&mut self, offset: u32) -> Option<Block> {
        if !offset.is_multiple_of(BLOCK_MIN) {
            return None;
        }
        let mut unit = offset >> UNIT_BITS;
        let mut order = u32::from(self.taken.remove(&unit)?);
        let block = block_of(unit, order);
        self.in_use_bytes -= block.len;
        while (order as usize) < ORDERS - 1 && self.free[order as usize].remove(unit ^ (1 << order)) {
            self.note(order);
            unit &= !(1 << order);
            order += 1;
        }
        self.put(unit, order);
        Some(block)
    }

    /// Bytes in blocks that are taken.
    pub fn in_use(&self) -> u32 {
        self.in_use_bytes
    }

    /// Blocks that are taken.
    pub fn blocks(&self) -> usize {
        self.taken.len()
    }

    /// Bytes that all blocks together can have, the reserved ones included.
    pub fn capacity(&self) -> u32 {
        self.capacity_bytes
    }

    /// Bytes of the largest block that could be taken now; 0: none.
    pub fn largest(&self) -> u32 {
        self.available.checked_ilog2().map_or(0, |order| BLOCK_MIN << order)
    }

    fn put(&mut self, unit: u32, order: u32) {
        self.free[order as usize].insert(unit);
        self.available |= 1 << order;
    }

    /// Clears the order's bit when its last free block has gone.
    fn note(&mut self, order: u32) {
        if self.free[order as usize].is_empty() {
            self.available &= !(1 << order);
        }
    }
}

fn block_of(unit: u32, order: u32) -> Block {
    Block { offset: unit << UNIT_BITS, len: BLOCK_MIN << order }
}

/// The smallest order that holds `len` bytes; `None` beyond 2 GiB.
fn order_of(len: u32) -> Option<u32> {
    let units = len.div_ceil(BLOCK_MIN).max(1).checked_next_power_of_two()?;
    Some(units.ilog2()).filter(|order| (*order as usize) < ORDERS)
}

/// Spreads unit numbers over the table by one multiplication. They are the allocator's own, so nobody
/// can choose them to collide.
#[derive(Debug, Default)]
struct UnitHasher(u64);

impl Hasher for UnitHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }
    fn write_u32(&mut self, unit: u32) {
        // 2^64 divided by the golden ratio; the table uses the top bits and the bottom ones.
        self.0 = (self.0 ^ u64::from(unit)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

#[cfg(test)]
mod tests;
