//! Chains, with peers that are driven by hand: what the kernel makes of what they send.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, InvocationId, RouteIndex, TrailIndex};
use shm_bus::transport::sockmap::Sockmap;
use shm_bus::transport::{Event, Fault, FaultKind, Port, Sent, Transport};
use spry_ebpf_common::{CHAIN_BIT, Counter, EMITS_MAX, PORT_BIT, flags, source_of_port, status};

use crate::rig::*;
use crate::rules::{PATHS, Page, tcp_pages};

const ROUTE: RouteIndex = RouteIndex(1);
const STEPS: [FunctionIndex; 3] = [FunctionIndex(1), FunctionIndex(4), FunctionIndex(2)];

/// Sends a new run to its first step.
fn begin(bus: &Sockmap, port: &mut dyn Port) -> Descriptor {
    let invocation = new_invocation();
    let trail = TrailIndex { port: PORT, index: (invocation % 512) as u16 };
    bus.begin_trail(trail, InvocationId(invocation), u64::MAX);
    let sent =
        Descriptor { route: ROUTE.in_descriptor(), source: trail.in_descriptor(), ..descriptor(invocation) };
    assert_eq!(port.send(STEPS[0], &sent).expect("send"), Sent::Delivered);
    sent
}

fn peers(bus: &Sockmap) -> [Peer; 3] {
    bus.set_route(ROUTE, &STEPS).expect("set a route");
    STEPS.map(|function| Peer::idle_of(bus, function))
}

/// Whatever a step writes beside the place of its result, by whatever system call, and even afterwards: the next
/// step gets what the route says.
#[test]
fn a_forged_way_is_overwritten_however_it_is_sent() {
    const ROUNDS: u32 = 100;
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peers = peers(&bus);
    let [others, beyond] = [FunctionIndex(0), FunctionIndex(5)].map(|function| Peer::idle_of(&bus, function));
    bus.set_route(RouteIndex(2), &[FunctionIndex(5), FunctionIndex(0)]).expect("set a route");
    // Of another route, a plain function, the route's end; steps before and after; a peer's and a port's names.
    let routes = [RouteIndex(2).in_descriptor(), 5, 0, u16::MAX, CHAIN_BIT | 999];
    let steps = [0, 1, 2, 31, 32, 254, 255];
    let sources = [others.id.slot, beyond.id.slot, source_of_port(3, 7), u32::MAX, PORT_BIT];
    let mut page = Box::new(Page([0; 4096]));
    for round in 0..ROUNDS {
        for (number, (name, path)) in (round as usize..).zip(PATHS) {
            let sent = begin(&bus, port.as_mut());
            let mut expected = Descriptor { source: sent.source, ..sent };
            for (step, peer) in (0..).zip(&peers) {
                assert_eq!(peer.receive(), expected, "{name}");
                let said = Descriptor {
                    segment: 9,
                    offset: number as u32 * 64,
                    length: round,
                    generation: step.into(),
                    ..expected
                };
                let forged = Descriptor {
                    route: routes[number % routes.len()],
                    step: steps[number % steps.len()],
                    source: sources[number % sources.len()],
                    flags: if number.is_multiple_of(2) { flags::NEXT } else { 0x10 },
                    ..said
                };
                page.0[..32].copy_from_slice(&to_bytes(&forged));
                path(&peer.socket, &mut page);
                page.0.fill(0xff);
                expected = Descriptor { source: peer.id.slot, step: step + 1, ..said };
            }
            assert_eq!(answer(port.as_mut()), Descriptor { step: 2, ..expected }, "{name}");
        }
    }
    assert_eq!(bus.count(Counter::Violations), 0);
    let runs = u64::from(ROUNDS) * PATHS.len() as u64;
    assert_eq!((bus.count(Counter::Routed), bus.count(Counter::Answered)), (2 * runs, runs));
    assert!(!readable(&others.socket) && !readable(&beyond.socket));
}

/// A million values from one step: the port gets those that are allowed, and the kernel holds no more than
/// a TCP connection's buffers.
#[test]
fn a_flood_of_values_is_bounded() {
    const SENDS: usize = 1_000_000;
    let Some(bus) = bus() else { return };
    let mut port = bus.open_port(PORT).expect("port");
    let peers = peers(&bus);
    let sent = begin(&bus, port.as_mut());
    assert_eq!(peers[0].receive().invocation, sent.invocation);
    let value = Descriptor { flags: flags::EMIT, ..sent };
    let before = tcp_pages();
    let accepted = (0..SENDS).filter(|_| peers[0].send(&to_bytes(&value)).is_ok()).count();
    let held = tcp_pages().saturating_sub(before);
    println!("{accepted} of {SENDS} sends were taken; TCP holds {held} pages more");
    assert!(accepted < SENDS / 4 && held * 4096 < 16 << 20, "{accepted} sends, {held} pages");
    let mut got = Vec::new();
    while got.len() < EMITS_MAX as usize {
        got.extend(events(port.as_mut()));
    }
    let expected = Event::Emitted(Descriptor { source: peers[0].id.slot, ..value });
    assert_eq!(got, vec![expected; EMITS_MAX as usize]);
    assert_eq!(fault(&bus), Fault { peer: peers[0].id, kind: FaultKind::Flood });
    // The answer of who has broken a rule doesn't count, and goes nowhere.
    let _ = peers[0].send(&to_bytes(&sent));
    assert!(!readable(port.fd()) && !readable(&peers[1].socket));
    assert_eq!(bus.count(Counter::Emitted), EMITS_MAX.into());
    assert_eq!(bus.detach(peers[0].id), Some((InvocationId(sent.invocation), PORT)));
}

/// An idle peer of the next step is dead, and nobody has noticed yet.
#[test]
fn a_dead_next_step_loses_nothing() {
    let Some(bus) = bus() else { return };
    let mut here = CpuSet::new();
    here.set(0).expect("CPU 0");
    sched_setaffinity(Pid::from_raw(0), &here).expect("run on CPU 0");
    let mut port = bus.open_port(PORT).expect("port");
    bus.set_route(ROUTE, &STEPS).expect("set a route");
    let first = Peer::idle_of(&bus, STEPS[0]);
    for round in 0..200 {
        let (dead, living) = (Peer::idle_of(&bus, STEPS[1]), Peer::idle_of(&bus, STEPS[1]));
        bus.set_home(dead.id, Some(0));
        let (dead_id, alone) = (dead.id, round % 2 == 0);
        drop(dead);
        if alone {
            assert!(bus.retire(living.id));
        }
        let sent = begin(&bus, port.as_mut());
        assert_eq!(first.receive().invocation, sent.invocation);
        first.answer(sent.invocation);
        if alone {
            let [Event::Forward(back)] = events(port.as_mut())[..] else { panic!("not given back") };
            assert_eq!((back.invocation, back.step, back.source), (sent.invocation, 1, first.id.slot));
        } else {
            let got = living.receive();
            assert_eq!((got.invocation, got.step, got.source), (sent.invocation, 1, first.id.slot));
            let failed = Descriptor { flags: status::FAILED, ..got };
            assert_eq!(living.send(&to_bytes(&failed)), Ok(32));
            assert_eq!(answer(port.as_mut()), Descriptor { source: living.id.slot, ..failed });
        }
        assert_eq!(fault(&bus), Fault { peer: dead_id, kind: FaultKind::Closed });
        assert_eq!(bus.detach(dead_id), None);
        assert_eq!(bus.detach(living.id), None);
        assert!(!readable(port.fd()));
    }
    assert_eq!(bus.count(Counter::Violations), 0);
}
