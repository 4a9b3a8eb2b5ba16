//! A single-producer single-consumer ring of descriptors between two processes that don't trust each other.
//!
//! The classic ring of Lamport ("Specifying concurrent program modules", 1983), split so that every word
//! has one writer: each side owns a page that only it can write. What a side produces and how much it has
//! consumed is in its own page; the other side reads.
//!
//! ```text
//! a side's page   0          64         128        192      256                    (one cache line each)
//!                 ├ produced ┼ consumed ┼ sleeping ┼ …      ┼ entry 0 ┼ entry 1 ┼ … 64 of 32 bytes
//! ```
//!
//! Counts run modulo 2^32; entry n is at n modulo 64. Each side keeps its own two counts in private memory
//! and believes the other's only after a check: a count that can't be (more consumed than produced, more
//! produced than there is room) is a [`RingError`], after which the ring is not used any more. Whatever the
//! other side writes, a call here reads or writes at most one entry: no loop depends on a shared value.
//!
//! Entries are read and written as relaxed atomic words, so an entry that changes while it is read gives a
//! mixture, in a private copy, which the reader then validates like any other descriptor.
//!
//! The code is generic over where the page lies, so that loom runs this very algorithm
//! (`tests/loom_ring.rs`): the orderings below are all that it needs, on weakly ordered machines too.

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use spry_ebpf_common::Descriptor;

/// Descriptors that a ring holds. (Two under loom: fewer states, and the ring gets full.)
pub const ENTRIES: u32 = if cfg!(loom) { 2 } else { 64 };
/// 64-bit words of a descriptor.
pub const WORDS: usize = 4;

/// A page's words, wherever they are. The owner stores; the other side only loads.
pub trait Page {
    /// How many descriptors this side has produced.
    fn produced(&self) -> &AtomicU32;
    /// How many of the other side's descriptors this side has consumed.
    fn consumed(&self) -> &AtomicU32;
    /// Not 0: this side sleeps, or is about to, until it is woken. What for, [`Sleep`] says.
    fn sleeping(&self) -> &AtomicU32;
    /// One word of an entry; `entry < ENTRIES`, `word < WORDS`.
    fn word(&self, entry: u32, word: usize) -> &AtomicU64;
}

/// What a side sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sleep {
    /// For something to take: it waits on the other's count of what was produced.
    Item = 1,
    /// For room in its own ring: it waits on the other's count of what was consumed.
    Room = 2,
}

/// Why a ring can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The other side has not consumed what is there.
    #[error("the ring is full")]
    Full,
    /// The other side's count is impossible.
    #[error("the other side's count {theirs} can't be beside ours, {ours}")]
    Count {
        /// What the other side says.
        theirs: u32,
        /// What it must be near.
        ours: u32,
    },
}

/// The writing end; the page that it writes is its own.
#[derive(Debug, Default)]
pub struct Producer {
    produced: u32,
}

impl Producer {
    /// Appends one descriptor.
    pub fn push(&mut self, own: &impl Page, other: &impl Page, item: &Descriptor) -> Result<(), RingError> {
        // SYNC(slot-emptied): pairs with the Release store in `Consumer::pop`: the entry that is written now
        // was read before. The other side's page may be mapped read-only: a relaxed load and a fence.
        let consumed = other.consumed().load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let unread = self.produced.wrapping_sub(consumed);
        if unread > ENTRIES {
            return Err(RingError::Count { theirs: consumed, ours: self.produced });
        }
        if unread == ENTRIES {
            return Err(RingError::Full);
        }
        let entry = self.produced % ENTRIES;
        for (index, word) in to_words(item).into_iter().enumerate() {
            own.word(entry, index).store(word, Ordering::Relaxed);
        }
        self.produced = self.produced.wrapping_add(1);
        // SYNC(slot-filled): pairs with the Acquire fence in `Consumer::pop`.
        own.produced().store(self.produced, Ordering::Release);
        Ok(())
    }

    /// The consumer's count while there is no room: what to wait on.
    pub fn full_at(&self) -> u32 {
        self.produced.wrapping_sub(ENTRIES)
    }
}

/// The reading end.
#[derive(Debug, Default)]
pub struct Consumer {
    consumed: u32,
}

impl Consumer {
    /// Takes the oldest descriptor, as a private copy.
    pub fn pop(&mut self, own: &impl Page, other: &impl Page) -> Result<Option<Descriptor>, RingError> {
        // SYNC(slot-filled): pairs with the Release store in `Producer::push`.
        let produced = other.produced().load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let unread = produced.wrapping_sub(self.consumed);
        if unread == 0 {
            return Ok(None);
        }
        if unread > ENTRIES {
            return Err(RingError::Count { theirs: produced, ours: self.consumed });
        }
        let entry = self.consumed % ENTRIES;
        let words = std::array::from_fn(|index| other.word(entry, index).load(Ordering::Relaxed));
        self.consumed = self.consumed.wrapping_add(1);
        // SYNC(slot-emptied): the loads above are done before the producer may write the entry again.
        own.consumed().store(self.consumed, Ordering::Release);
        Ok(Some(from_words(words)))
    }

    /// The producer's count when there is nothing to take: what to wait on.
    pub fn seen(&self) -> u32 {
        self.consumed
    }
}

/// Says that this side is going to sleep. It must look once more whether what it waits for has come, and then
/// wait on the other side's count as a futex (which looks a last time).
pub fn going_to_sleep(own: &impl Page, sleep: Sleep) {
    own.sleeping().store(sleep as u32, Ordering::Relaxed);
    // SYNC(sleeper): the classic store-then-load on both sides. Either the look after this fence sees what was
    // pushed, or `must_wake` after its own fence sees this store.
    fence(Ordering::SeqCst);
}

/// Says that this side is awake.
pub fn awake(own: &impl Page) {
    own.sleeping().store(0, Ordering::Relaxed);
}

/// After a push ([`Sleep::Item`]) or a pop ([`Sleep::Room`]): whether the other side must be woken. (It may say so
/// without need; that costs a system call.)
pub fn must_wake(other: &impl Page, sleep: Sleep) -> bool {
    // SYNC(sleeper): see `going_to_sleep`.
    fence(Ordering::SeqCst);
    other.sleeping().load(Ordering::Relaxed) == sleep as u32
}

fn to_words(item: &Descriptor) -> [u64; WORDS] {
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let tail = u32::from(item.route) | u32::from(item.step) << 16 | u32::from(item.flags) << 24;
    [
        pair(item.segment, item.generation),
        pair(item.offset, item.length),
        item.invocation,
        pair(tail, item.source),
    ]
}

fn from_words([name, place, invocation, rest]: [u64; WORDS]) -> Descriptor {
    Descriptor {
        segment: name as u32,
        generation: (name >> 32) as u32,
        offset: place as u32,
        length: (place >> 32) as u32,
        invocation,
        route: rest as u16,
        step: (rest >> 16) as u8,
        flags: (rest >> 24) as u8,
        source: (rest >> 32) as u32,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    struct Private {
        counts: [AtomicU32; 3],
        words: [[AtomicU64; WORDS]; ENTRIES as usize],
    }

    impl Default for Private {
        fn default() -> Self {
            Self { counts: Default::default(), words: std::array::from_fn(|_| Default::default()) }
        }
    }

    impl Page for Private {
        fn produced(&self) -> &AtomicU32 {
            &self.counts[0]
        }
        fn consumed(&self) -> &AtomicU32 {
            &self.counts[1]
        }
        fn sleeping(&self) -> &AtomicU32 {
            &self.counts[2]
        }
        fn word(&self, entry: u32, word: usize) -> &AtomicU64 {
            &self.words[entry as usize][word]
        }
    }

    fn numbered(invocation: u64) -> Descriptor {
        Descriptor {
            invocation,
            source: 5,
            flags: 0x31,
            step: 2,
            route: 7,
            length: 9,
            ..Descriptor::default()
        }
    }

    proptest! {
        #[test]
        fn a_descriptor_survives_its_words(words in any::<[u64; WORDS]>()) {
            prop_assert_eq!(to_words(&from_words(words)), words);
        }

        #[test]
        fn first_in_first_out_and_no_more_than_there_is_room(
            start in prop_oneof![Just(0u32), Just(u32::MAX - 3), any::<u32>()],
            pushes in vec(prop_oneof![2 => Just(true), 1 => Just(false)], 0..400),
        ) {
            let (a, b) = (Private::default(), Private::default());
            a.produced().store(start, Ordering::Relaxed);
            b.consumed().store(start, Ordering::Relaxed);
            let (mut producer, mut consumer) = (Producer { produced: start }, Consumer { consumed: start });
            let (mut next_in, mut next_out) = (0, 0);
            for push in pushes {
                if push {
                    let done = producer.push(&a, &b, &numbered(next_in));
                    let full = next_in - next_out == u64::from(ENTRIES);
                    prop_assert_eq!(done, if full { Err(RingError::Full) } else { Ok(()) });
                    next_in += u64::from(!full);
                } else {
                    let got = consumer.pop(&b, &a).unwrap();
                    prop_assert_eq!(got, (next_out < next_in).then(|| numbered(next_out)));
                    next_out += u64::from(next_out < next_in);
                }
            }
        }

        #[test]
        fn hostile_counts_are_errors(count in any::<u32>(), pushed in 0..=ENTRIES) {
            let (a, b) = (Private::default(), Private::default());
            let mut producer = Producer::default();
            for n in 0..pushed {
                producer.push(&a, &b, &numbered(n.into())).unwrap();
            }
            b.consumed().store(count, Ordering::Relaxed);
            let pushed_now = producer.push(&a, &b, &numbered(99));
            prop_assert_eq!(pushed_now.is_ok(), pushed.wrapping_sub(count) < ENTRIES);
            b.produced().store(count, Ordering::Relaxed);
            let got = Consumer::default().pop(&a, &b);
            prop_assert_eq!(got.is_ok(), count <= ENTRIES);
        }
    }
}
