//! Peers of a chain that break the rules or die: the run ends once, and goes nowhere that it shouldn't.

use std::time::Duration;

use shm_bus::Descriptor;
use shm_bus::ids::InvocationId;
use shm_bus::transport::{Event, FaultKind};
use spry_ebpf_common::flags;

use crate::chains::{NEVER, ROUTE, chain, function, functions};
use crate::harness::{Bus, Peer, WATCHDOG};

/// The next run isn't affected.
fn others_go_on(bus: &mut Bus, steps: usize) {
    let _peers = chain(bus, &vec!["serve"; steps]);
    let sent = bus.run(ROUTE, NEVER);
    assert!(bus.send_to(function(0), &sent));
    assert_eq!(bus.answer().invocation, sent.invocation);
}

pub(crate) fn an_answer_to_anothers_run(mut bus: Bus) {
    // The victim's run is at a peer that never answers; the attacker, at the step before, names that run.
    bus.transport.set_route(ROUTE, &functions(3)).unwrap();
    let attacker = bus.join_at(function(0), "foreign");
    let silent = bus.transport.attach(function(1)).unwrap();
    assert!(bus.transport.admit(silent.peer));
    let (attackers, victims) = (bus.run(ROUTE, NEVER), bus.run(ROUTE, NEVER));
    assert_eq!(attackers.invocation + 1, victims.invocation);
    assert!(bus.send_to(function(1), &Descriptor { step: 1, ..victims }));
    assert!(bus.send_to(function(0), &attackers));
    let mut events = Vec::new();
    let fault = bus.fault(&mut events);
    assert_eq!((fault.peer, fault.kind), (attacker.id, FaultKind::NotItsInvocation));
    assert_eq!(events, []);
    let victims_holder = bus.transport.holder(function(1), InvocationId(victims.invocation));
    assert_eq!(victims_holder, Some(silent.peer));
    assert!(bus.hops(&victims, 3).iter().all(|hop| hop.answered_ns == 0));
    for (peer, run) in [(attacker.id, attackers), (silent.peer, victims)] {
        assert_eq!(bus.transport.detach(peer), Some((InvocationId(run.invocation), bus.index)));
    }
    others_go_on(&mut bus, 3);
}

/// "serve" names a route, a step and a source of its own; here with `NEXT` too, and a flag that there isn't. None of
/// it counts.
pub(crate) fn a_way_that_the_peer_chooses(mut bus: Bus) {
    let next = format!("flags:{}", flags::NEXT | 0x10);
    let peers = chain(&bus, &[&next, "serve", &next]);
    // Where it would like to be: a function that nobody sends to here, and the one after the next.
    let elsewhere = bus.join_at(function(9), "serve");
    for _ in 0..50 {
        let sent = bus.run(ROUTE, NEVER);
        assert!(bus.send_to(function(0), &sent));
        let expected = Descriptor { source: peers[2].id.slot, step: 2, length: sent.length + 3, ..sent };
        assert_eq!(bus.answer(), expected);
        let slots: Vec<u32> = bus.hops(&sent, 3).iter().map(|hop| hop.slot).collect();
        assert_eq!(slots, peers.iter().map(|peer| peer.id.slot).collect::<Vec<_>>());
    }
    assert!(bus.transport.retire(elsewhere.id), "it has never been busy");
}

pub(crate) fn a_status_that_there_is_not(mut bus: Bus) {
    // EXPIRED is the bus's own to say.
    for status in [2, 3, 15] {
        let role = format!("flags:{status}");
        for step in 0..2 {
            let mut roles = ["serve"; 2];
            roles[step] = &role;
            let peers = chain(&bus, &roles);
            let sent = bus.run(ROUTE, NEVER);
            assert!(bus.send_to(function(0), &sent));
            let mut events = Vec::new();
            let fault = bus.fault(&mut events);
            assert_eq!((fault.peer, fault.kind), (peers[step].id, FaultKind::Malformed), "{status}");
            assert_eq!(events, []);
            let lost = bus.transport.detach(peers[step].id);
            assert_eq!(lost, Some((InvocationId(sent.invocation), bus.index)));
        }
    }
    others_go_on(&mut bus, 2);
}

pub(crate) fn a_death_at_each_step(mut bus: Bus) {
    for role in ["die before receiving", "die after receiving", "die after answering"] {
        for step in 0..3 {
            for _ in 0..3 {
                let mut roles = ["serve"; 3];
                roles[step] = role;
                let mut peers = chain(&bus, &roles);
                dies(&mut bus, &mut peers, step, role);
            }
        }
    }
    others_go_on(&mut bus, 3);
}

/// One run; the peer at `step` dies at some time. It is settled once: a result, given back, or lost with the peer.
fn dies(bus: &mut Bus, peers: &mut [Peer], step: usize, role: &str) {
    let sent = bus.run(ROUTE, NEVER);
    let accepted = bus.send_to(function(0), &sent);
    let mut events = Vec::new();
    let fault = bus.fault(&mut events);
    assert_eq!((fault.peer, fault.kind), (peers[step].id, FaultKind::Closed), "{role}");
    peers[step].kill();
    // Until it has come to the dead peer, or past it, if it was to be.
    while accepted && events.is_empty() {
        let holder = bus.transport.holder(function(step as u16), InvocationId(sent.invocation));
        if holder == Some(peers[step].id) {
            break;
        }
        events.extend(bus.events(Duration::from_millis(1)));
    }
    let lost = bus.transport.detach(peers[step].id);
    if accepted && lost.is_none() && events.is_empty() {
        events.extend(bus.events(WATCHDOG));
    }
    // The others are through with it: what they had to say has been said.
    for peer in peers.iter() {
        assert_eq!(bus.transport.detach(peer.id), None, "{role} at {step}");
    }
    events.extend(bus.events(Duration::ZERO));
    let settled = events.len() + usize::from(lost.is_some());
    assert_eq!(settled, usize::from(accepted), "{role} at {step}: {events:?}, {lost:?}");
    for event in &events {
        let (Event::Answer(it) | Event::Forward(it) | Event::Bounced(it)) = event else {
            panic!("{event:?}")
        };
        assert_eq!(it.invocation, sent.invocation);
    }
    if role == "die after answering" && lost.is_none() {
        assert!(matches!(events[..], [Event::Answer(it)] if it.step == 2), "{events:?}");
    }
}
