//! Values that peers emit while they serve.

use shm_bus::Descriptor;
use shm_bus::ids::InvocationId;
use shm_bus::transport::{Event, FaultKind};
use spry_ebpf_common::{EMITS_MAX, flags};

use crate::chains::{NEVER, ROUTE, chain, function};
use crate::harness::{Bus, FUNCTION, Peer, WATCHDOG};

/// Reads until there are so many events.
fn collect(bus: &mut Bus, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < count {
        let more = bus.events(WATCHDOG);
        assert!(!more.is_empty(), "{} of {count} have come", events.len());
        events.extend(more);
    }
    events
}

/// What a peer with the role `emit` makes of an invocation.
fn emitted(sent: &Descriptor, peer: &Peer, step: u8, count: u32) -> Vec<Event> {
    let value = Descriptor { source: peer.id.slot, step, flags: flags::EMIT, ..*sent };
    (0..count).map(|length| Event::Emitted(Descriptor { length, ..value })).collect()
}

pub(crate) fn come_in_order_before_the_answer(mut bus: Bus) {
    let role = format!("emit:{EMITS_MAX}");
    let plain = bus.join(&role);
    let peers = chain(&bus, &["serve", &role, "emit:3"]);
    for _ in 0..10 {
        let sent = bus.send();
        let mut expected = emitted(&sent, &plain, sent.step, EMITS_MAX);
        let answer = Descriptor { source: plain.id.slot, length: sent.length + 1, ..sent };
        expected.push(Event::Answer(answer));
        assert_eq!(collect(&mut bus, expected.len()), expected);

        let sent = bus.run(ROUTE, NEVER);
        assert!(bus.send_to(function(0), &sent));
        let mut expected = emitted(&sent, &peers[1], 1, EMITS_MAX);
        expected.extend(emitted(&sent, &peers[2], 2, 3));
        let answer = Descriptor { source: peers[2].id.slot, step: 2, length: sent.length + 3, ..sent };
        expected.push(Event::Answer(answer));
        assert_eq!(collect(&mut bus, expected.len()), expected);
    }
}

pub(crate) fn are_bounded(mut bus: Bus) {
    for count in [EMITS_MAX + 1, 10_000] {
        let flood = bus.join(&format!("emit:{count}"));
        let sent = bus.send();
        let mut events = Vec::new();
        let fault = bus.fault(&mut events);
        assert_eq!((fault.peer, fault.kind), (flood.id, FaultKind::Flood));
        while events.len() < EMITS_MAX as usize {
            events.extend(bus.events(WATCHDOG));
        }
        assert_eq!(events, emitted(&sent, &flood, sent.step, EMITS_MAX));
        // Its answer, which comes after, doesn't count any more.
        let lost = bus.transport.detach(flood.id);
        assert_eq!(lost, Some((InvocationId(sent.invocation), bus.index)));
    }
    let _peer = bus.join_at(FUNCTION, "serve");
    let sent = bus.send();
    assert_eq!(bus.answer().invocation, sent.invocation);
}

/// A value belongs to the invocation that its sender holds, or is a fault.
pub(crate) fn of_who_holds_nothing(mut bus: Bus) {
    for role in ["emit unasked", "emit after answering", "emit for another"] {
        let peer = bus.join(role);
        let sent = (role != "emit unasked").then(|| bus.send());
        let mut events = Vec::new();
        let fault = bus.fault(&mut events);
        assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::NotItsInvocation), "{role}");
        let answered = role == "emit after answering";
        if answered && events.is_empty() {
            events = bus.events(WATCHDOG);
        }
        assert_eq!(events.len(), usize::from(answered), "{role}: {events:?}");
        let lost = bus.transport.detach(peer.id);
        let held = sent.filter(|_| !answered).map(|sent| (InvocationId(sent.invocation), bus.index));
        assert_eq!(lost, held, "{role}");
    }
}
