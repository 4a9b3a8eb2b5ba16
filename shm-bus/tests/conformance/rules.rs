//! A peer that breaks the rules is reported, once, and nothing of it is delivered.

use std::time::Duration;

use shm_bus::ids::InvocationId;
use shm_bus::transport::{Event, FaultKind, Kind};

use crate::harness::Bus;

/// The next peer isn't affected.
fn others_go_on(bus: &mut Bus) {
    let _peer = bus.join("serve");
    let sent = bus.send();
    assert_eq!(bus.answer().invocation, sent.invocation);
}

fn no_more_faults(bus: &Bus) {
    let mut faults = Vec::new();
    bus.transport.faults(&mut faults);
    assert_eq!(faults, []);
}

pub(crate) fn an_answer_to_something_else(mut bus: Bus) {
    let peer = bus.join("foreign");
    let sent = bus.send();
    let mut events = Vec::new();
    let fault = bus.fault(&mut events);
    assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::NotItsInvocation));
    assert_eq!(events, []);
    assert_eq!(bus.transport.detach(peer.id), Some((InvocationId(sent.invocation), bus.index)));
    no_more_faults(&bus);
    drop(peer);
    others_go_on(&mut bus);
}

pub(crate) fn an_answer_given_twice(mut bus: Bus) {
    let peer = bus.join("twice");
    let sent = bus.send();
    let mut events = Vec::new();
    let fault = bus.fault(&mut events);
    assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::NotItsInvocation));
    if events.is_empty() {
        events = bus.events(Duration::from_secs(1));
    }
    let [Event::Answer(answer)] = events[..] else { panic!("the first one counts: {events:?}") };
    assert_eq!(answer.invocation, sent.invocation);
    assert_eq!(bus.transport.detach(peer.id), None);
    drop(peer);
    others_go_on(&mut bus);
}

pub(crate) fn an_answer_while_idle(mut bus: Bus) {
    let peer = bus.join("unasked");
    let mut events = Vec::new();
    let fault = bus.fault(&mut events);
    assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::NotItsInvocation));
    assert_eq!(events, []);
    drop(peer);
    others_go_on(&mut bus);
}

pub(crate) fn messages_of_other_lengths(mut bus: Bus) {
    // Half a descriptor, one and a bit, two, many. (Nothing at all is no message on a stream.)
    let lengths = [1, 16, 31, 33, 64, 4096];
    let empty = (bus.transport.kind() == Kind::Broker).then_some(0);
    for len in lengths.into_iter().chain(empty) {
        let peer = bus.join(&format!("raw:{len}"));
        let mut events = Vec::new();
        let fault = bus.fault(&mut events);
        assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::Malformed), "{len} bytes");
        assert_eq!(events, []);
    }
    others_go_on(&mut bus);
}

/// Only where a peer can make itself heard without a message.
pub(crate) fn wakes_with_nothing_behind_them(mut bus: Bus) {
    if bus.transport.kind() != Kind::Futex {
        return;
    }
    let peer = bus.join("wake");
    let mut events = Vec::new();
    let fault = bus.fault(&mut events);
    assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::Malformed));
    assert_eq!(events, []);
    drop(peer);
    others_go_on(&mut bus);
}

pub(crate) fn a_closed_end(mut bus: Bus) {
    let peer = bus.join("close");
    let mut events = Vec::new();
    let fault = bus.fault(&mut events);
    assert_eq!((fault.peer, fault.kind), (peer.id, FaultKind::Closed));
    assert_eq!(bus.transport.detach(peer.id), None);
    no_more_faults(&bus);
    drop(peer);
    others_go_on(&mut bus);
}
