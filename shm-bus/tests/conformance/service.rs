//! Who is in service, who is idle, who is picked.

use std::sync::Barrier;
use std::time::Duration;

use shm_bus::Descriptor;
use shm_bus::endpoint;
use shm_bus::ids::InvocationId;
use shm_bus::transport::Event;

use crate::harness::{Bus, FUNCTION};

pub(crate) fn nobody_is_busy_twice(mut bus: Bus) {
    let first = bus.descriptor();
    assert!(bus.is_refused(&first), "there is no peer yet");
    // Peers that never receive: what they are given stays with them.
    let attachments: Vec<_> = (0..3).map(|_| bus.transport.attach(FUNCTION).unwrap()).collect();
    assert!(bus.is_refused(&first), "none is admitted yet");
    assert!(attachments.iter().all(|attachment| bus.transport.admit(attachment.peer)));
    assert!(bus.transport.has_idle(FUNCTION));
    let sent: Vec<_> = (0..3).map(|_| bus.send()).collect();
    let holds = |sent: &Descriptor| bus.transport.holder(FUNCTION, InvocationId(sent.invocation)).is_some();
    assert!(sent.iter().all(holds));
    let one_more = bus.descriptor();
    assert!(bus.is_refused(&one_more), "all are busy");
    assert!(!bus.transport.has_idle(FUNCTION));
    let mut lost = Vec::new();
    for attachment in &attachments {
        let (invocation, port) = bus.transport.detach(attachment.peer).unwrap();
        assert_eq!(port, bus.index);
        lost.push(invocation.0);
        assert_eq!(bus.transport.detach(attachment.peer), None, "said once");
    }
    lost.sort_unstable();
    assert_eq!(lost, sent.iter().map(|sent| sent.invocation).collect::<Vec<_>>());
}

pub(crate) fn held_until_admitted(mut bus: Bus) {
    let peer = bus.join("hold");
    for _ in 0..20 {
        let sent = bus.send();
        assert_eq!(bus.answer().invocation, sent.invocation);
        assert_eq!(bus.transport.holder(FUNCTION, InvocationId(sent.invocation)), None);
        let refused = bus.descriptor();
        assert!(!bus.transport.has_idle(FUNCTION) && bus.is_refused(&refused), "held");
        assert!(bus.transport.admit(peer.id) && !bus.transport.admit(peer.id));
    }
    assert_eq!(bus.transport.detach(peer.id), None, "it holds no invocation");
    assert!(!bus.transport.admit(peer.id), "it is out of service");
}

pub(crate) fn single_use_means_one_answer(mut bus: Bus) {
    // This peer never asks to be held: that it serves once is not its decision.
    let peer = bus.join("serve");
    bus.transport.set_single_use(peer.id);
    let sent = bus.send();
    assert_eq!(bus.answer().invocation, sent.invocation);
    let refused = bus.descriptor();
    assert!(!bus.transport.has_idle(FUNCTION) && bus.is_refused(&refused), "it has served");
    assert_eq!(bus.transport.detach(peer.id), None, "it holds no invocation");
}

pub(crate) fn retired_or_busy_never_both(mut bus: Bus) {
    let mut retirements = 0;
    for round in 0..300 {
        let attachment = bus.transport.attach(FUNCTION).unwrap();
        assert!(bus.transport.admit(attachment.peer));
        let descriptor = bus.descriptor();
        let transport = std::sync::Arc::clone(&bus.transport);
        let (start, peer) = (Barrier::new(2), attachment.peer);
        let (retired, sent) = std::thread::scope(|scope| {
            let retire = scope.spawn(|| {
                start.wait();
                transport.retire(peer)
            });
            start.wait();
            // Now one is first, now the other.
            (0..round % 30 * 20).for_each(|_| std::hint::spin_loop());
            let sent = bus.try_send(&descriptor);
            (retire.join().unwrap(), sent)
        });
        let bounced = sent && retired && {
            let events = bus.events(Duration::from_secs(10));
            matches!(events[..], [Event::Bounced(_)])
        };
        assert_eq!(retired, !sent || bounced, "round {round}");
        let lost = bus.transport.detach(peer).map(|(invocation, _)| invocation.0);
        assert_eq!(lost, (!retired).then_some(descriptor.invocation), "round {round}");
        retirements += u32::from(retired);
    }
    eprintln!("{retirements} of 300 were retired first");
}

pub(crate) fn a_name_of_before_moves_nothing(mut bus: Bus) {
    let before = bus.transport.attach(FUNCTION).unwrap();
    let mut old_end = endpoint::open(bus.transport.kind(), before.endpoint).unwrap();
    assert!(bus.transport.admit(before.peer));
    let given = bus.send();
    assert!(bus.transport.detach(before.peer).is_some());
    let peer = bus.join("serve");
    assert_ne!(peer.id, before.peer, "a slot that is used again has another generation");
    assert!(!bus.transport.admit(before.peer) && !bus.transport.retire(before.peer));
    assert_eq!(bus.transport.detach(before.peer), None);
    // The old process is still there, and answers what it was given, or is told that it is over.
    let _ = old_end.send(&given);
    assert_eq!(bus.events(Duration::from_millis(50)), []);
    let sent = bus.send();
    assert_eq!(bus.answer().invocation, sent.invocation);
}

pub(crate) fn home_is_preferred(mut bus: Bus) {
    let peers: Vec<_> = (0..4).map(|_| bus.join("serve")).collect();
    // This thread stays on CPU 0, whose home is one peer after the other.
    let mut pinned = nix::sched::CpuSet::new();
    pinned.set(0).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &pinned).unwrap();
    for favourite in [2, 0, 3] {
        for peer in &peers {
            bus.transport.set_home(peer.id, None);
        }
        bus.transport.set_home(peers[favourite].id, Some(0));
        for _ in 0..10 {
            bus.send();
            assert_eq!(bus.answer().source, peers[favourite].id.slot);
        }
    }
}

pub(crate) fn a_closed_hub_ends_its_peers(mut bus: Bus) {
    let mut detached = bus.join("serve");
    bus.send();
    bus.answer();
    assert_eq!(bus.transport.detach(detached.id), None);
    assert_eq!(detached.exit_code(), Some(0), "receive returned None");
    drop(detached);
    let attachment = bus.transport.attach(FUNCTION).unwrap();
    let mut end = endpoint::open(bus.transport.kind(), attachment.endpoint).unwrap();
    assert!(bus.transport.admit(attachment.peer));
    let waiting = std::thread::spawn(move || end.receive().unwrap());
    drop(bus);
    assert_eq!(waiting.join().unwrap(), None);
}
