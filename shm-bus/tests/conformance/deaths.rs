//! Peers die at any point: every invocation is settled exactly once, and nothing is left behind.

use std::collections::HashMap;
use std::time::Duration;

use shm_bus::transport::{Event, FaultKind};

use crate::harness::{Bus, Peer, alone, open_fds};

pub(crate) fn at_each_point(mut bus: Bus) {
    for role in ["die before receiving", "die after receiving", "die after answering"] {
        for _ in 0..5 {
            let mut peer = bus.join(role);
            let descriptor = bus.descriptor();
            let sent = bus.try_send(&descriptor);
            let mut events = Vec::new();
            let fault = bus.fault(&mut events);
            assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::Closed), "{role}");
            peer.kill();
            // What had arrived before is there now, if it was to be delivered.
            events.extend(bus.events(Duration::ZERO));
            let lost = bus.transport.detach(peer.id);
            events.extend(bus.events(Duration::ZERO));
            let settled = events.len() + usize::from(lost.is_some());
            assert_eq!(settled, usize::from(sent), "{role}: {events:?}, {lost:?}");
            if role != "die after answering" {
                let answered = events.iter().any(|event| matches!(event, Event::Answer(_)));
                assert!(!answered, "{role}");
            }
        }
    }
    let _peer = bus.join("serve");
    let sent = bus.send();
    assert_eq!(bus.answer().invocation, sent.invocation);
}

/// Kills one of three busy peers after the other, each a little later in its work than the last.
pub(crate) fn at_any_time(mut bus: Bus) {
    let mut settled: HashMap<u64, u32> = HashMap::new();
    let mut peers: Vec<Peer> = (0..3).map(|_| bus.join("serve")).collect();
    let note = |settled: &mut HashMap<u64, u32>, events: Vec<Event>| {
        for event in events {
            let (Event::Answer(it) | Event::Bounced(it)) = event else { panic!("{event:?}") };
            *settled.get_mut(&it.invocation).expect("it was sent") += 1;
        }
    };
    for round in 0..40usize {
        for _ in 0..=round {
            let descriptor = bus.descriptor();
            if bus.try_send(&descriptor) {
                settled.insert(descriptor.invocation, 0);
            }
            note(&mut settled, bus.events(Duration::ZERO));
        }
        let mut victim = peers.remove(round % 3);
        victim.kill();
        note(&mut settled, bus.events(Duration::ZERO));
        if let Some((lost, _)) = bus.transport.detach(victim.id) {
            *settled.get_mut(&lost.0).expect("it was sent") += 1;
        }
        peers.push(bus.join("serve"));
    }
    // The rest is answered: the last peers live.
    while settled.values().any(|times| *times == 0) {
        let events = bus.events(crate::harness::WATCHDOG);
        assert!(!events.is_empty(), "lost: {:?}", settled.iter().filter(|(_, times)| **times == 0));
        note(&mut settled, events);
    }
    assert!(settled.values().all(|times| *times == 1), "settled twice");
}

/// Counts this process's descriptors, so it runs alone in a process of its own.
pub(crate) fn nothing_stays_open(mut bus: Bus) {
    if !alone("nothing_stays_open", bus.transport.kind()) {
        return;
    }
    let mut round = |role: &str| {
        let mut peer = bus.join(role);
        let descriptor = bus.descriptor();
        bus.try_send(&descriptor);
        bus.fault(&mut Vec::new());
        peer.kill();
        bus.transport.detach(peer.id);
        bus.events(Duration::ZERO);
    };
    // Once before counting: what is made at first use stays.
    round("die after receiving");
    let before = open_fds();
    for role in ["die before receiving", "die after receiving", "die after answering", "foreign", "close"] {
        (0..10).for_each(|_| round(role));
    }
    assert_eq!(open_fds(), before);
    drop(bus);
    let after = open_fds();
    let bus_files =
        |name: &&String| name.contains("spry-bus") || name.contains("bpf") || name.contains("io_uring");
    assert_eq!(after.iter().filter(bus_files).count(), 0, "{after:?}");
}
