//! Peers with further seats, driven by hand.

use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, recv};
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, InvocationId, RouteIndex, TrailIndex};
use shm_bus::transport::sockmap::Sockmap;
use shm_bus::transport::{Event, Fault, FaultKind, Port, Sent, Transport};
use spry_ebpf_common::{Counter, EMITS_MAX, SEATS, flags};

use crate::rig::*;

const ROUNDS: usize = 200;

fn seated(bus: &Sockmap) -> Peer {
    let peer = Peer::idle(bus);
    assert!(bus.set_seats(peer.id, true));
    peer
}

/// What waits first; as an instance reads it: one descriptor's bytes, however many wait.
fn next(peer: &Peer) -> u64 {
    wait(&peer.socket);
    let mut bytes = [0; 32];
    assert_eq!(recv(peer.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT), Ok(32));
    from_bytes(&bytes).invocation
}

fn fill(port: &mut dyn Port) -> Vec<u64> {
    let filled = (0..SEATS).map(|_| deliver(port)).collect();
    assert_eq!(port.send(FUNCTION, &descriptor(new_invocation())).expect("send"), Sent::NoIdlePeer);
    filled
}

fn answers(port: &mut dyn Port, count: usize) -> Vec<Descriptor> {
    let mut answers = Vec::new();
    while answers.len() < count {
        for event in events(port) {
            let Event::Answer(answer) = event else { panic!("{event:?}") };
            answers.push(answer);
        }
    }
    answers
}

/// As many as there are seats, in the order in which they came, and each answer under the peer's name.
#[test]
fn several_wait_and_each_is_answered_by_itself() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = seated(&bus);
    for round in 0..ROUNDS {
        let mut sent = fill(port.as_mut());
        for invocation in &sent {
            assert_eq!(next(&peer), *invocation);
            assert_eq!(bus.holder(FUNCTION, InvocationId(*invocation)), Some(peer.id));
        }
        assert!(!bus.has_idle(FUNCTION) && !bus.retire(peer.id), "busy");
        // In whatever order.
        let places = sent.len();
        sent.rotate_left(round % places);
        sent.iter().for_each(|invocation| peer.answer(*invocation));
        let answers = answers(port.as_mut(), sent.len());
        let named: Vec<u64> = answers.iter().map(|answer| answer.invocation).collect();
        assert_eq!(named, sent);
        assert!(answers.iter().all(|answer| answer.source == peer.id.slot));
    }
    assert_eq!(bus.count(Counter::Violations), 0);
    assert!(bus.retire(peer.id));
    assert!(bus.detach_seats(peer.id).is_empty());
    assert_eq!(bus.detach(peer.id), None);
}

/// The rules hold for each seat: an answer twice, another peer's, one after the seat was given up.
#[test]
fn what_is_in_no_seat_of_its_is_a_violation() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    for seat in 0..SEATS as usize {
        for anothers in [false, true] {
            let peer = seated(&bus);
            let sent = fill(port.as_mut());
            let other = seated(&bus);
            let others = fill(port.as_mut());
            let wrong = if anothers { others[seat] } else { sent[seat] };
            if !anothers {
                peer.answer(wrong);
                assert_eq!(answer(port.as_mut()).invocation, wrong);
            }
            peer.answer(wrong);
            assert_eq!(fault(&bus), Fault { peer: peer.id, kind: FaultKind::NotItsInvocation });
            // From now on nothing counts from it.
            peer.answer(sent[(seat + 1) % sent.len()]);
            assert!(!readable(port.fd()));
            let mut lost = bus.detach_seats(peer.id);
            lost.extend(bus.detach(peer.id));
            lost.sort_by_key(|(invocation, _)| invocation.0);
            let held = sent.iter().filter(|invocation| anothers || **invocation != wrong);
            assert_eq!(lost, held.map(|held| (InvocationId(*held), PORT)).collect::<Vec<_>>());
            others.iter().for_each(|invocation| other.answer(*invocation));
            assert_eq!(answers(port.as_mut(), others.len()).len(), others.len());
            assert!(bus.retire(other.id) && bus.detach_seats(other.id).is_empty());
            assert_eq!(bus.detach(other.id), None);
        }
    }
}

/// Each seat has a step's allowance of values.
#[test]
fn values_are_counted_by_seat() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = seated(&bus);
    let sent = fill(port.as_mut());
    for invocation in &sent {
        let value = Descriptor { flags: flags::EMIT, ..descriptor(*invocation) };
        for _ in 0..EMITS_MAX {
            assert_eq!(peer.send(&to_bytes(&value)), Ok(32));
        }
        let mut got = 0;
        while got < EMITS_MAX as usize {
            got += events(port.as_mut()).len();
        }
    }
    assert_eq!(bus.count(Counter::Violations), 0);
    let value = Descriptor { flags: flags::EMIT, ..descriptor(sent[2]) };
    assert_eq!(peer.send(&to_bytes(&value)), Ok(32));
    assert_eq!(fault(&bus), Fault { peer: peer.id, kind: FaultKind::Flood });
}

/// Seats that are taken away serve what waits in them, and get nothing more; opened again, they do.
#[test]
fn closed_seats_get_nothing_more() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = seated(&bus);
    for _ in 0..ROUNDS {
        let sent = fill(port.as_mut());
        assert!(!bus.set_seats(peer.id, false));
        for invocation in sent {
            assert_eq!(next(&peer), invocation);
            peer.answer(invocation);
            assert_eq!(answer(port.as_mut()).invocation, invocation);
        }
        // One at a time.
        let only = deliver(port.as_mut());
        assert_eq!(port.send(FUNCTION, &descriptor(new_invocation())).expect("send"), Sent::NoIdlePeer);
        assert_eq!(next(&peer), only);
        peer.answer(only);
        assert_eq!(answer(port.as_mut()).invocation, only);
        assert!(bus.set_seats(peer.id, true));
    }
    assert!(!bus.set_seats(peer.id, false) && bus.retire(peer.id), "closed and idle");
    bus.set_seats(peer.id, true);
    assert!(!bus.has_idle(FUNCTION), "out of service for good");
}

/// A chain goes through a function twice while others do: the step that is answered is the one that was asked last.
#[test]
fn a_run_that_comes_again_finds_its_way() {
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peer = seated(&bus);
    let route = RouteIndex(1);
    bus.set_route(route, &[FUNCTION; 8]).expect("set a route");
    for _ in 0..ROUNDS {
        let runs: Vec<u64> = (0..SEATS - 1)
            .map(|_| {
                let invocation = new_invocation();
                let trail = TrailIndex { port: PORT, index: (invocation % 512) as u16 };
                bus.begin_trail(trail, InvocationId(invocation), u64::MAX);
                let sent = Descriptor {
                    route: route.in_descriptor(),
                    source: trail.in_descriptor(),
                    ..descriptor(invocation)
                };
                assert_eq!(port.send(FUNCTION, &sent).expect("send"), Sent::Delivered);
                invocation
            })
            .collect();
        for _ in 0..8 * runs.len() {
            let invocation = next(&peer);
            peer.answer(invocation);
        }
        let done = answers(port.as_mut(), runs.len());
        assert!(done.iter().all(|answer| answer.step == 7 && runs.contains(&answer.invocation)), "{done:?}");
    }
    assert_eq!(bus.count(Counter::Violations), 0);
}

/// There are seats for those who have room behind them, and none twice.
#[test]
fn seats_run_out_and_come_back() {
    let Some(bus) = bus() else { return };
    for _ in 0..5 {
        let peers: Vec<Peer> = (0..64 / SEATS).map(|_| seated(&bus)).collect();
        assert!(bus.attach(FUNCTION).is_err(), "every slot is somebody's seat");
        for peer in &peers {
            assert!(bus.retire(peer.id) && bus.detach_seats(peer.id).is_empty());
            assert_eq!(bus.detach(peer.id), None);
        }
        let peers: Vec<Peer> = (0..64).map(|_| Peer::idle(&bus)).collect();
        assert!(!bus.set_seats(peers[0].id, true), "others have them");
        for peer in &peers {
            assert_eq!(bus.detach(peer.id), None);
        }
    }
    let other = Peer::idle_of(&bus, FunctionIndex(1));
    assert!(bus.set_seats(other.id, true), "each function has its own");
}
