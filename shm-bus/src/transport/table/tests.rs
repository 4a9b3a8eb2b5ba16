//! The table by itself, on private memory.

use std::sync::atomic::AtomicU64;

use super::*;

const FUNCTION: FunctionIndex = FunctionIndex(1);

fn claim(invocation: u64) -> Claim {
    let stamp = Stamp { trail: TrailIndex { port: PortIndex(3), index: 8 }, route: 9, step: 1 };
    Claim { invocation: InvocationId(invocation), stamp }
}

fn answer(invocation: u64, flags: u8) -> Descriptor {
    Descriptor { invocation, flags, ..Descriptor::default() }
}

fn idle_peer(table: &Table<Heap>, slot: u32) -> PeerId {
    let peer = table.attach(slot);
    assert!(!table.claim(slot, claim(1)), "not before it is admitted");
    assert!(table.admit(peer) && !table.admit(peer));
    peer
}

#[test]
fn a_life() {
    let table = Table::new(Heap::new(2, 4).unwrap());
    let peer = idle_peer(&table, 70);
    assert_eq!(table.candidate(FUNCTION, Some(1)), Some(70));
    assert_eq!(table.candidate(FUNCTION, Some(1)), None, "the hint is taken");
    assert!(table.claim(70, claim(5)) && !table.claim(70, claim(6)));
    assert_eq!(table.holder(FUNCTION, InvocationId(5)), Some(peer));
    assert!(!table.retire(peer));
    assert_eq!(table.answer(peer, &answer(6, 0)), Err(Refused::NotItsInvocation));
    assert_eq!(
        table.answer(peer, &answer(5, 0)),
        Ok(Answered { stamp: claim(5).stamp, to_be_seen_to: false })
    );
    assert_eq!(table.answer(peer, &answer(5, 0)), Err(Refused::NotItsInvocation));
    assert!(table.has_idle(FUNCTION) && !table.has_idle(FunctionIndex(0)));
    assert!(table.retire(peer) && !table.has_idle(FUNCTION));
    assert_eq!(table.detach(peer), None);
    assert!(!table.admit(peer), "out of service for good");
}

#[test]
fn a_held_peer_is_not_picked_and_answers_nothing() {
    let table = Table::new(Heap::new(2, 4).unwrap());
    let peer = idle_peer(&table, 64);
    assert!(table.claim(64, claim(5)));
    assert!(table.answer(peer, &answer(5, flags::HOLD)).is_ok());
    for state in [5, STATE_HELD, STATE_IDLE] {
        assert_eq!(table.answer(peer, &answer(state, 0)), Err(Refused::NotItsInvocation));
    }
    assert!(!table.claim(64, claim(6)));
    assert_eq!(table.holder(FUNCTION, InvocationId(STATE_HELD)), None);
    assert!(table.admit(peer) && table.claim(64, claim(6)));
    assert_eq!(table.detach(peer), Some((InvocationId(6), PortIndex(3))));
    assert_eq!(table.detach(peer), None);
    assert_eq!(table.answer(peer, &answer(6, 0)), Err(Refused::Detached));
}

#[test]
fn an_old_name_moves_nothing() {
    let table = Table::new(Heap::new(2, 4).unwrap());
    let old = idle_peer(&table, 65);
    table.detach(old);
    let new = idle_peer(&table, 65);
    assert_ne!(old, new);
    assert!(table.claim(65, claim(5)));
    assert!(!table.admit(old) && !table.retire(old));
    assert_eq!(table.detach(old), None);
    assert_eq!(table.answer(old, &answer(5, 0)), Err(Refused::Detached));
    assert_eq!(
        table.answer(new, &answer(5, 0)),
        Ok(Answered { stamp: claim(5).stamp, to_be_seen_to: false })
    );
}

#[test]
fn home_is_a_preference() {
    let table = Table::new(Heap::new(2, 4).unwrap());
    let peers: Vec<_> = (64..67).map(|slot| idle_peer(&table, slot)).collect();
    table.set_home(peers[2], Some(1));
    assert_eq!(table.candidate(FUNCTION, Some(1)), Some(66));
    assert_eq!(table.candidate(FUNCTION, Some(1)), Some(64), "rather another than none");
    table.set_home(peers[1], Some(1 + HOME_CPUS));
    table.set_home(peers[1], None);
    assert_eq!(table.candidate(FUNCTION, Some(1)), Some(65));
}

/// Two threads claim what two others make idle: every invocation is settled exactly once.
#[test]
fn nothing_is_claimed_twice_and_no_hint_is_lost() {
    let table = Table::new(Heap::new(2, 4).unwrap());
    let peers: Vec<_> = (64..68).map(|slot| idle_peer(&table, slot)).collect();
    let settled = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (table, peers, settled) = (&table, &peers, &settled);
            scope.spawn(move || {
                for round in 1..=5000 {
                    let invocation = thread << 32 | round;
                    let slot = loop {
                        let Some(slot) = table.candidate(FUNCTION, None) else {
                            std::thread::yield_now();
                            continue;
                        };
                        if table.claim(slot, claim(invocation)) {
                            break slot;
                        }
                    };
                    let peer = peers[(slot - 64) as usize];
                    assert!(table.answer(peer, &answer(invocation, 0)).is_ok());
                    settled.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(settled.into_inner(), 15_000);
    assert_eq!(std::iter::from_fn(|| table.candidate(FUNCTION, None)).count(), 4);
}
