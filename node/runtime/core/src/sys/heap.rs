//! Memory for the runtime's own small blocks, side by side.
//!
//! Each page that is written to after the freeze is copied first, and where instances are rewound copied back after every
//! request. `malloc` gives out a small block wherever loading the function has left a hole: the few dozen blocks of an instance's
//! setup and of a call lay on as many pages. From [`begin`] on the runtime gets them from a room of its own, in the order in which it asks
//! for them, and what is given back is given out again first. The function's own `malloc` is as it was.
//!
//! It is no general allocator: blocks are powers of two, none becomes another size, and what doesn't fit comes from the
//! system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::hint;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of the room. A Python nop's instance has taken less than half of it, with what its request needs.
const ROOM: usize = 64 << 10;
/// The sizes: 16 bytes to 4 KiB.
const SMALLEST: usize = 16;
const SIZES: usize = 9;
/// Where the room lies in a [`Heap`], which begins with a page.
const ROOM_AT: usize = offset_of!(Heap, room);
/// Looks at a lock that another thread has, before it is gone without.
const PATIENCE: u32 = 1000;

#[global_allocator]
static HEAP: Heap = Heap::new();

/// From now on the runtime's small blocks come from its own room.
pub(crate) fn begin() {
    HEAP.begin();
}

/// See the module.
#[derive(Debug)]
#[repr(C, align(4096))]
struct Heap {
    lock: AtomicBool,
    begun: AtomicBool,
    lists: UnsafeCell<Lists>,
    room: UnsafeCell<[u8; ROOM]>,
}

/// What is free.
#[derive(Debug)]
struct Lists {
    /// Bytes that were given out at least once.
    used: usize,
    /// By size, blocks that were given back; each begins with where the next one lies.
    free: [*mut u8; SIZES],
}

// SAFETY: `lists` and what is free of `room` are only touched by who has set `lock`.
unsafe impl Sync for Heap {}

impl Heap {
    /// Empty, and not in use.
    const fn new() -> Self {
        let lists = Lists { used: 0, free: [ptr::null_mut(); SIZES] };
        let (lock, begun) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { lock, begun, lists: UnsafeCell::new(lists), room: UnsafeCell::new([0; ROOM]) }
    }

    fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    fn has(&self, block: *mut u8) -> bool {
        (block as usize).wrapping_sub(self.room.get() as usize) < ROOM
    }

    /// Runs `act` alone; `None`: another thread doesn't let go. (One that was forked away never does.)
    fn alone<R>(&self, act: impl FnOnce(&mut Lists) -> R) -> Option<R> {
        let mut looks = 0;
        while self.lock.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            looks += 1;
            if looks == PATIENCE {
                return None;
            }
            hint::spin_loop();
        }
        // SAFETY: nobody else has the lock, and no `act` comes here again: none asks for memory.
        let result = act(unsafe { &mut *self.lists.get() });
        self.lock.store(false, Ordering::Release);
        Some(result)
    }

    fn take(&self, class: usize) -> Option<*mut u8> {
        let len = SMALLEST << class;
        self.alone(|lists| {
            let first = lists.free[class];
            if !first.is_null() {
                // SAFETY: a block that was given back, whose first word was written then.
                lists.free[class] = unsafe { first.cast::<*mut u8>().read() };
                return Some(first);
            }
            let start = (ROOM_AT + lists.used).next_multiple_of(len) - ROOM_AT;
            lists.used = Some(start + len).filter(|end| *end <= ROOM)?;
            // SAFETY: within the room.
            Some(unsafe { self.room.get().cast::<u8>().add(start) })
        })?
    }

    /// # Safety
    ///
    /// The block is of that class, and nobody uses it any more.
    unsafe fn give_back(&self, block: *mut u8, class: usize) {
        // Who doesn't get the lock loses the block.
        let _lost = self.alone(|lists| {
            // SAFETY: by the caller; blocks are aligned to their sizes, the smallest of which has room for a pointer.
            unsafe { block.cast::<*mut u8>().write(lists.free[class]) };
            lists.free[class] = block;
        });
    }
}

/// Of which size a block is for this; `None`: none. Blocks are aligned to their sizes, up to a page.
fn class_of(layout: &Layout) -> Option<usize> {
    let len = layout.size().max(layout.align()).max(SMALLEST).checked_next_power_of_two()?;
    let class = (len / SMALLEST).trailing_zeros() as usize;
    (class < SIZES).then_some(class)
}

// SAFETY: a block is given out once until it is given back, has the size and alignment of its class, and is given back to
// whom it has come from, which its address tells. Nothing here unwinds or asks for memory itself.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = if self.begun.load(Ordering::Relaxed) { class_of(&layout) } else { None };
        match class.and_then(|class| self.take(class)) {
            Some(block) => block,
            // SAFETY: by the caller.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class_of(&layout) {
            // SAFETY: by the caller; one from here has a class by its layout.
            Some(class) if self.has(block) => unsafe { self.give_back(block, class) },
            // SAFETY: by the caller; it is the system's.
            _ => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        if !self.has(block) {
            // SAFETY: by the caller; it is the system's.
            return unsafe { System.realloc(block, layout, len) };
        }
        // SAFETY: by the caller, `len` isn't too large for the alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(len, layout.align()) };
        if class_of(&wanted) == class_of(&layout) {
            return block;
        }
        // SAFETY: by the caller; both blocks are at least as long as what is copied, and not the same.
        unsafe {
            let other = self.alloc(wanted);
            if !other.is_null() {
                ptr::copy_nonoverlapping(block, other, len.min(layout.size()));
                self.dealloc(block, layout);
            }
            other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(len: usize, align: usize) -> Layout {
        Layout::from_size_align(len, align).expect("a layout")
    }

    #[test]
    fn blocks_lie_side_by_side_and_are_given_out_again() {
        let heap = Box::new(Heap::new());
        // SAFETY: blocks are given back as they were taken.
        unsafe {
            let before = heap.alloc(layout(24, 8));
            assert!(!heap.has(before), "not begun");
            heap.begin();
            heap.dealloc(before, layout(24, 8));
            let [first, second] = [24, 32].map(|len| heap.alloc(layout(len, 8)));
            assert_eq!(second as usize - first as usize, 32);
            heap.dealloc(first, layout(24, 8));
            assert_eq!(heap.alloc(layout(17, 1)), first);
            let large = heap.alloc(layout(4097, 8));
            assert!(!heap.has(large));
            heap.dealloc(large, layout(4097, 8));
        }
    }

    #[test]
    fn alignments_hold_and_blocks_never_overlap() {
        let heap = Box::new(Heap::new());
        heap.begin();
        let mut taken: Vec<(usize, usize)> = Vec::new();
        // SAFETY: nothing is used after it was given back.
        unsafe {
            for (len, align) in (0..400).map(|n| (1 + n * 37 % 700, 1 << (n % 9))) {
                let block = heap.alloc(layout(len, align));
                assert_eq!(block as usize % align, 0);
                block.write_bytes(7, len);
                let own = (block as usize, block as usize + len);
                assert!(taken.iter().all(|(start, end)| own.1 <= *start || *end <= own.0));
                taken.push(own);
            }
        }
        let outside = taken.iter().filter(|(start, _)| !heap.has(*start as *mut u8)).count();
        assert!((1..taken.len() - 1).contains(&outside), "{outside} did not fit, which are the system's");
    }

    #[test]
    fn a_block_that_grows_keeps_its_bytes() {
        let heap = Box::new(Heap::new());
        heap.begin();
        // SAFETY: the layouts follow the sizes.
        unsafe {
            let block = heap.alloc(layout(20, 4));
            block.copy_from_nonoverlapping([5; 20].as_ptr(), 20);
            let same = heap.realloc(block, layout(20, 4), 32);
            assert_eq!(same, block);
            let mut len = 32;
            let mut now = same;
            for larger in [33, 4096, 10_000] {
                now = heap.realloc(now, layout(len, 4), larger);
                len = larger;
                assert_eq!(std::slice::from_raw_parts(now, 20), [5; 20]);
            }
            assert!(!heap.has(now));
            heap.dealloc(now, layout(len, 4));
            assert_eq!(heap.alloc(layout(20, 4)), block, "what it had is free again");
        }
    }

    #[test]
    fn who_waits_for_a_lock_in_vain_gets_memory_elsewhere() {
        let heap = Box::new(Heap::new());
        heap.begin();
        // SAFETY: given back as it was taken.
        unsafe {
            let mine = heap.alloc(layout(64, 8));
            heap.lock.store(true, Ordering::Relaxed);
            let other = heap.alloc(layout(64, 8));
            assert!(heap.has(mine) && !heap.has(other));
            heap.dealloc(mine, layout(64, 8));
            heap.lock.store(false, Ordering::Relaxed);
            assert_ne!(heap.alloc(layout(64, 8)), mine, "lost");
            heap.dealloc(other, layout(64, 8));
        }
    }
}
