//! A chain's route: each step's answer goes on to the next function, and the trail tells of it.

use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, InvocationId, RouteIndex};
use shm_bus::transport::Event;
use spry_ebpf_common::{DEFAULT_ROUTES, Hop, STEPS_PER_ROUTE, flags, status};

use crate::harness::{Bus, Peer};

pub(crate) const ROUTE: RouteIndex = RouteIndex(17);
/// No run reaches it.
pub(crate) const NEVER: u64 = u64::MAX;
/// The first of the functions that chains are made of.
const FIRST: u16 = 5;

pub(crate) fn function(number: u16) -> FunctionIndex {
    FunctionIndex(FIRST + number)
}

pub(crate) fn functions(count: usize) -> Vec<FunctionIndex> {
    (0..count as u16).map(function).collect()
}

/// A chain with one peer a step.
pub(crate) fn chain(bus: &Bus, roles: &[&str]) -> Vec<Peer> {
    let steps = functions(roles.len());
    bus.transport.set_route(ROUTE, &steps).unwrap();
    steps.iter().zip(roles).map(|(step, role)| bus.join_at(*step, role)).collect()
}

fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

pub(crate) fn of_any_length(mut bus: Bus) {
    let peers = chain(&bus, &["serve"; STEPS_PER_ROUTE]);
    for len in [1, 2, 16, STEPS_PER_ROUTE, 3] {
        bus.transport.set_route(ROUTE, &functions(len)).unwrap();
        for _ in 0..20 {
            let begun = now_ns();
            let sent = bus.run(ROUTE, NEVER);
            assert!(bus.send_to(function(0), &sent));
            let result = bus.answer();
            let expected = Descriptor {
                source: peers[len - 1].id.slot,
                step: len as u8 - 1,
                // Each step adds one, and would have the rest otherwise.
                length: sent.length + len as u32,
                ..sent
            };
            assert_eq!(result, expected);
            let hops = bus.hops(&sent, STEPS_PER_ROUTE);
            let mut before = begun;
            for (step, (hop, peer)) in hops.iter().zip(&peers).take(len).enumerate() {
                assert!(before <= hop.sent_ns && hop.sent_ns <= hop.answered_ns, "step {step}: {hops:?}");
                before = hop.answered_ns;
                let expected = Hop {
                    slot: peer.id.slot,
                    slot_generation: peer.id.generation,
                    segment: sent.segment,
                    generation: sent.generation,
                    offset: sent.offset,
                    length: sent.length + step as u32 + 1,
                    ..*hop
                };
                assert_eq!(*hop, expected, "step {step}");
            }
            assert!(before <= now_ns());
            assert!(hops[len..].iter().all(|hop| hop.sent_ns == 0 && hop.answered_ns == 0), "not reached");
        }
    }
}

/// A peer that has answered is idle, for the next step of the same run too.
pub(crate) fn through_one_peer(mut bus: Bus) {
    bus.transport.set_route(ROUTE, &[function(0); STEPS_PER_ROUTE]).unwrap();
    let peer = bus.join_at(function(0), "serve");
    for _ in 0..50 {
        let sent = bus.run(ROUTE, NEVER);
        assert!(bus.send_to(function(0), &sent));
        let result = bus.answer();
        assert_eq!((result.source, result.length), (peer.id.slot, sent.length + STEPS_PER_ROUTE as u32));
    }
}

pub(crate) fn a_failure_is_its_steps(mut bus: Bus) {
    let failed = format!("flags:{}", status::FAILED);
    for step in 0..3 {
        let mut roles = ["serve"; 3];
        roles[step] = &failed;
        let peers = chain(&bus, &roles);
        for _ in 0..10 {
            let sent = bus.run(ROUTE, NEVER);
            assert!(bus.send_to(function(0), &sent));
            let expected = Descriptor {
                source: peers[step].id.slot,
                step: step as u8,
                length: sent.length + step as u32 + 1,
                flags: status::FAILED,
                ..sent
            };
            assert_eq!(bus.answer(), expected);
            let hops = bus.hops(&sent, 3);
            assert!(hops[..=step].iter().all(|hop| hop.answered_ns > 0));
            assert!(hops[step + 1..].iter().all(|hop| hop.sent_ns == 0));
        }
    }
}

/// What a port is given back after the first of two steps.
fn forward(bus: &mut Bus, first: &Peer, kept: u8) -> Descriptor {
    let sent = bus.run(ROUTE, NEVER);
    assert!(bus.send_to(function(0), &sent));
    let Event::Forward(back) = bus.event() else { panic!("not given back") };
    let expected = Descriptor {
        source: first.id.slot,
        step: 1,
        length: sent.length + 1,
        flags: flags::NEXT | kept,
        ..sent
    };
    assert_eq!(back, expected);
    assert_eq!(bus.hops(&sent, 2)[1].sent_ns, 0);
    back
}

fn finishes(bus: &mut Bus, forward: &Descriptor, last: &Peer) {
    assert!(bus.send_on(function(1), forward));
    let result = bus.answer();
    assert_eq!((result.source, result.length, result.step), (last.id.slot, forward.length + 1, 1));
    let hops = bus.hops(forward, 2);
    assert!(hops[0].answered_ns <= hops[1].sent_ns && hops[1].sent_ns <= hops[1].answered_ns);
}

pub(crate) fn nobody_idle_comes_back_and_goes_on(mut bus: Bus) {
    bus.transport.set_route(ROUTE, &functions(2)).unwrap();
    let first = bus.join_at(function(0), "serve");
    for _ in 0..10 {
        let back = forward(&mut bus, &first, 0);
        assert!(bus.transport.has_idle(function(0)), "its step is over");
        assert!(!bus.send_on(function(1), &back), "nobody is there");
        let last = bus.join_at(function(1), "serve");
        finishes(&mut bus, &back, &last);
    }
}

pub(crate) fn a_held_step_comes_back(mut bus: Bus) {
    let hold = format!("flags:{}", flags::HOLD);
    let peers = chain(&bus, &[&hold, "serve"]);
    for _ in 0..10 {
        let back = forward(&mut bus, &peers[0], flags::HOLD);
        assert!(!bus.transport.has_idle(function(0)));
        assert!(bus.transport.admit(peers[0].id));
        finishes(&mut bus, &back, &peers[1]);
    }
    drop(peers);
    let peers = chain(&bus, &["serve", &hold]);
    bus.transport.set_single_use(peers[0].id);
    let back = forward(&mut bus, &peers[0], 0);
    assert!(!bus.transport.has_idle(function(0)), "it has served");
    finishes(&mut bus, &back, &peers[1]);
    assert!(!bus.transport.has_idle(function(1)), "at the last step it is held as ever");
}

pub(crate) fn while_somebody_waits_for_a_function_its_runs_come_back(mut bus: Bus) {
    let peers = chain(&bus, &["serve", "serve"]);
    for _ in 0..10 {
        bus.transport.set_waiting(function(0), true);
        let back = forward(&mut bus, &peers[0], 0);
        assert!(bus.transport.has_idle(function(0)), "whoever waits may have it");
        bus.transport.set_waiting(function(0), false);
        finishes(&mut bus, &back, &peers[1]);
        // The next function's waiting is not this step's business.
        bus.transport.set_waiting(function(1), true);
        let sent = bus.run(ROUTE, NEVER);
        assert!(bus.send_to(function(0), &sent));
        assert_eq!(bus.answer().step, 1);
        bus.transport.set_waiting(function(1), false);
    }
}

pub(crate) fn no_step_starts_too_late(mut bus: Bus) {
    let hold = format!("flags:{}", flags::HOLD);
    for (role, kept) in [("serve", 0), (&*hold, flags::HOLD)] {
        let peers = chain(&bus, &[role, "serve"]);
        for cancelled in [false, true] {
            let sent = bus.run(ROUTE, if cancelled { NEVER } else { 1 });
            if cancelled {
                bus.transport.cancel_trail(bus.trail_of(&sent));
            }
            assert!(bus.send_to(function(0), &sent));
            let expected = Descriptor {
                source: peers[0].id.slot,
                step: 1,
                length: sent.length + 1,
                flags: kept | status::EXPIRED,
                ..sent
            };
            assert_eq!(bus.answer(), expected);
            let hops = bus.hops(&sent, 2);
            assert!(hops[0].answered_ns > 0 && hops[1].sent_ns == 0);
            assert!(bus.transport.has_idle(function(1)), "nobody has it");
            assert_eq!(bus.transport.admit(peers[0].id), kept != 0);
        }
    }
}

pub(crate) fn anothers_trail_is_left_alone(mut bus: Bus) {
    let _peers = chain(&bus, &["serve", "serve"]);
    let sent = bus.run(ROUTE, NEVER);
    let trail = bus.trail_of(&sent);
    bus.transport.begin_trail(trail, InvocationId(1 << 50), NEVER);
    let before = bus.hops(&sent, 2);
    assert!(bus.send_to(function(0), &sent));
    let result = bus.answer();
    assert_eq!((result.invocation, result.flags, result.step), (sent.invocation, status::EXPIRED, 1));
    assert_eq!(bus.hops(&sent, 2), before);
}

pub(crate) fn a_route_is_set_again(mut bus: Bus) {
    let peers = chain(&bus, &["serve", "serve", "serve"]);
    for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
        let steps: Vec<_> = order.iter().map(|number| function(*number)).collect();
        bus.transport.set_route(ROUTE, &steps).unwrap();
        for len in (1..=3).rev() {
            bus.transport.set_route(ROUTE, &steps[..len]).unwrap();
            let sent = bus.run(ROUTE, NEVER);
            assert!(bus.send_to(steps[0], &sent));
            assert_eq!(bus.answer().source, peers[usize::from(order[len - 1])].id.slot);
        }
    }
    let refused = |route, steps: &[_]| bus.transport.set_route(route, steps).unwrap_err().to_string();
    assert_eq!(refused(ROUTE, &[]), "route 17: it has 0 steps, and may have 1 to 32");
    let long = vec![function(0); STEPS_PER_ROUTE + 1];
    assert_eq!(refused(ROUTE, &long), "route 17: it has 33 steps, and may have 1 to 32");
    let beyond = RouteIndex(DEFAULT_ROUTES as u16);
    assert_eq!(refused(beyond, &functions(1)), "route 1024: there are 1024 routes");
    assert!(refused(ROUTE, &[FunctionIndex(40)]).contains("function 40"));
}
