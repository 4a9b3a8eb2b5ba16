//! The ring under loom: every interleaving and every outcome that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p shm-bus --release --test loom_ring`
#![cfg(loom)]

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use shm_bus::Descriptor;
use shm_bus::ring::{
    AtomicU32, AtomicU64, Consumer, ENTRIES, Ordering, Page, Producer, RingError, Sleep, WORDS, awake,
    going_to_sleep, must_wake,
};

struct Private {
    counts: [AtomicU32; 3],
    words: [[AtomicU64; WORDS]; ENTRIES as usize],
}

impl Private {
    fn new() -> Self {
        let zero = || AtomicU32::new(0);
        let words = || std::array::from_fn(|_| AtomicU64::new(0));
        Self { counts: [zero(), zero(), zero()], words: std::array::from_fn(|_| words()) }
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

/// All four words differ from entry to entry, so that a mixture would show.
fn numbered(n: u32) -> Descriptor {
    Descriptor { segment: n, offset: n, invocation: n.into(), source: n, ..Descriptor::default() }
}

/// One more than fits, so that an entry is written a second time.
#[test]
fn what_is_pushed_is_popped_whole_and_in_order() {
    loom::model(|| {
        let pages = Arc::new((Private::new(), Private::new()));
        let theirs = Arc::clone(&pages);
        let producer = thread::spawn(move || {
            let mut producer = Producer::default();
            for n in 1..=ENTRIES + 1 {
                loop {
                    match producer.push(&theirs.0, &theirs.1, &numbered(n)) {
                        Ok(()) => break,
                        Err(RingError::Full) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        let mut consumer = Consumer::default();
        for n in 1..=ENTRIES + 1 {
            let got = loop {
                match consumer.pop(&pages.1, &pages.0).unwrap() {
                    Some(got) => break got,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(got, numbered(n));
        }
        producer.join().unwrap();
    });
}

/// What the kernel does: compare under its lock, sleep, be woken.
struct Futex {
    lock: Mutex<()>,
    woken: Condvar,
}

impl Futex {
    fn wait(&self, word: &AtomicU32, expected: u32) {
        let guard = self.lock.lock().unwrap();
        // The kernel's lock orders this load after the store of whoever has woken before us. No more.
        if word.load(Ordering::Relaxed) == expected {
            drop(self.woken.wait(guard).unwrap());
        }
    }
    fn wake(&self) {
        let _guard = self.lock.lock().unwrap();
        self.woken.notify_all();
    }
}

/// A wake-up that is lost would be a deadlock, which loom reports. At most three preemptions: enough for every
/// order of the two stores and two looks, and the test stays short.
#[test]
fn a_sleeper_is_always_woken() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let futex = Futex { lock: Mutex::new(()), woken: Condvar::new() };
        let shared = Arc::new((Private::new(), Private::new(), futex));
        let theirs = Arc::clone(&shared);
        let producer = thread::spawn(move || {
            let mut producer = Producer::default();
            for n in 1..=2 {
                producer.push(&theirs.0, &theirs.1, &numbered(n)).unwrap();
                if must_wake(&theirs.1, Sleep::Item) {
                    theirs.2.wake();
                }
            }
        });
        let mut consumer = Consumer::default();
        for n in 1..=2 {
            let got = loop {
                if let Some(got) = consumer.pop(&shared.1, &shared.0).unwrap() {
                    break got;
                }
                going_to_sleep(&shared.1, Sleep::Item);
                match consumer.pop(&shared.1, &shared.0).unwrap() {
                    Some(got) => break got,
                    None => shared.2.wait(shared.0.produced(), consumer.seen()),
                }
                awake(&shared.1);
            };
            awake(&shared.1);
            assert_eq!(got, numbered(n));
        }
        producer.join().unwrap();
    });
}

/// The other direction: a producer that sleeps because the ring is full is woken when there is room.
#[test]
fn a_producer_without_room_is_always_woken() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let futex = Futex { lock: Mutex::new(()), woken: Condvar::new() };
        let shared = Arc::new((Private::new(), Private::new(), futex));
        let theirs = Arc::clone(&shared);
        let mut producer = Producer::default();
        for n in 1..=ENTRIES {
            producer.push(&shared.0, &shared.1, &numbered(n)).unwrap();
        }
        let consumer = thread::spawn(move || {
            let mut consumer = Consumer::default();
            for n in 1..=ENTRIES {
                assert_eq!(consumer.pop(&theirs.1, &theirs.0).unwrap(), Some(numbered(n)));
                if must_wake(&theirs.0, Sleep::Room) {
                    theirs.2.wake();
                }
            }
            (consumer, theirs)
        });
        while producer.push(&shared.0, &shared.1, &numbered(ENTRIES + 1)) == Err(RingError::Full) {
            going_to_sleep(&shared.0, Sleep::Room);
            shared.2.wait(shared.1.consumed(), producer.full_at());
            awake(&shared.0);
        }
        let (mut consumer, _theirs) = consumer.join().unwrap();
        assert_eq!(consumer.pop(&shared.1, &shared.0).unwrap(), Some(numbered(ENTRIES + 1)));
    });
}
