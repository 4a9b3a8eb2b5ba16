//! What is sent arrives, once, at the right place.

use std::collections::HashSet;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use shm_bus::Descriptor;
use shm_bus::endpoint;
use shm_bus::ids::{InvocationId, PeerId, PortIndex};
use shm_bus::transport::{Event, Sent};
use spry_ebpf_common::PORT_BIT;

use crate::chains::function;
use crate::harness::{Bus, FUNCTION, WATCHDOG};

pub(crate) fn answers_come_back_stamped(mut bus: Bus) {
    let peer = bus.join("serve");
    for _ in 0..100 {
        let sent = bus.send();
        let answer = bus.answer();
        let expected = Descriptor { source: peer.id.slot, length: sent.length + 1, ..sent };
        assert_eq!(answer, expected, "source, route and step are the bus's own");
    }
}

pub(crate) fn order_is_kept(mut bus: Bus) {
    let _peer = bus.join("serve");
    let mut order = Vec::new();
    let mut sent = Vec::new();
    while order.len() < 500 {
        let descriptor = bus.descriptor();
        if bus.try_send(&descriptor) {
            sent.push(descriptor.invocation);
        }
        for event in bus.events(WATCHDOG) {
            match event {
                Event::Answer(answer) => order.push(answer.invocation),
                Event::Bounced(back) => sent.retain(|invocation| *invocation != back.invocation),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(order, sent);
}

pub(crate) fn several_senders_each_get_their_own(bus: Bus) {
    let _peers: Vec<_> = (0..3).map(|_| bus.join("serve")).collect();
    let senders: Vec<Bus> = (1..4).map(|port| bus.another(PortIndex(port))).collect();
    std::thread::scope(|scope| {
        for sender in senders {
            scope.spawn(move || serve_many(sender, 300));
        }
    });
}

/// What happened to an invocation on a plain route.
fn settled(event: &Event) -> &Descriptor {
    match event {
        Event::Answer(it) | Event::Bounced(it) => it,
        other => panic!("{other:?}"),
    }
}

/// Sends until `count` have been answered, with as many under way as there are idle peers.
fn serve_many(mut bus: Bus, count: usize) {
    let mut waiting = HashSet::new();
    let mut answered = 0;
    while answered < count {
        let descriptor = bus.descriptor();
        if bus.try_send(&descriptor) {
            waiting.insert(descriptor.invocation);
        }
        let timeout = if waiting.is_empty() { Duration::from_millis(1) } else { WATCHDOG };
        for event in bus.events(timeout) {
            let it = settled(&event);
            assert!(waiting.remove(&it.invocation), "not sent, or settled before: {event:?}");
            answered += usize::from(matches!(event, Event::Answer(_)));
        }
    }
    while !waiting.is_empty() {
        for event in bus.events(WATCHDOG) {
            assert!(waiting.remove(&settled(&event).invocation));
        }
    }
}

pub(crate) fn one_port_sends_for_another(mut bus: Bus) {
    let mut other = bus.another(PortIndex(9));
    let _peer = bus.join("serve");
    for round in 0..50 {
        let (through, back) = if round % 3 == 0 { (&mut other, &mut bus) } else { (&mut bus, &mut other) };
        let mut descriptor = back.descriptor();
        descriptor.source = PORT_BIT | u32::from(back.index.0);
        assert!(through.try_send(&descriptor));
        assert_eq!(back.answer().invocation, descriptor.invocation);
        assert_eq!(through.events(Duration::ZERO), []);
    }
}

/// A port is waited for as an event loop does that: one is told when something comes, not that something is still there.
pub(crate) fn who_is_told_once_finds_all_that_is_there(mut bus: Bus) {
    const EACH: usize = 35;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    epoll.add(bus.port.fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)).unwrap();
    let kind = bus.transport.kind();
    let mut peers = Vec::new();
    for function in [function(0), function(1)] {
        for _ in 0..EACH {
            let attachment = bus.transport.attach(function).unwrap();
            peers.push(endpoint::open(kind, attachment.endpoint).unwrap());
            assert!(bus.transport.admit(attachment.peer));
            let descriptor = bus.descriptor();
            assert!(bus.send_to(function, &descriptor));
        }
    }
    for peer in &mut peers {
        let got = peer.receive().unwrap().unwrap();
        peer.send(&got).unwrap();
    }
    let mut events = Vec::new();
    while events.len() < 2 * EACH {
        let mut told = [EpollEvent::empty()];
        let count = epoll.wait(&mut told, EpollTimeout::try_from(WATCHDOG).unwrap());
        assert_ne!(count, Ok(0), "{} answers lie there, and nobody is told", 2 * EACH - events.len());
        bus.port.receive(&mut events).unwrap();
    }
    let answered: HashSet<u64> = events.iter().map(|event| settled(event).invocation).collect();
    assert_eq!((answered.len(), events.len()), (2 * EACH, 2 * EACH));
}

/// Who is prepared for is who gets it, before it hears of it; and nobody who can't be prepared for.
pub(crate) fn what_is_prepared_is_there_before_its_peer_hears(mut bus: Bus) {
    let peers: Vec<_> = (0..3).map(|_| bus.join("serve")).collect();
    let mut given = Vec::new();
    for round in 0..30 {
        let sent = Descriptor { step: 0, ..bus.descriptor() };
        let (transport, mut chosen) = (std::sync::Arc::clone(&bus.transport), None);
        let prepare = &mut |peer, descriptor: &mut Descriptor| {
            assert!(chosen.replace(peer).is_none(), "one peer is enough");
            let holder = transport.holder(FUNCTION, InvocationId(sent.invocation));
            assert_eq!(holder, Some(peer), "it is this one's already");
            descriptor.length = 1000 + round;
            true
        };
        assert_eq!(bus.port.send_prepared(FUNCTION, &sent, prepare).unwrap(), Sent::Delivered);
        let answer = bus.answer();
        // (The peer answers with one more than it was told.)
        assert_eq!((answer.invocation, answer.length), (sent.invocation, 1001 + round));
        assert_eq!((answer.step, Some(answer.source)), (0, chosen.map(|peer: PeerId| peer.slot)));
        given.extend(chosen);
    }
    assert!(given.iter().all(|peer| peers.iter().any(|one| one.id == *peer)));
    // The first can't be prepared for: it is out of service, and holds nothing.
    let (sent, mut refused) = (bus.descriptor(), None);
    let prepare = &mut |peer, _: &mut Descriptor| refused.replace(peer).is_some();
    assert_eq!(bus.port.send_prepared(FUNCTION, &sent, prepare).unwrap(), Sent::Delivered);
    let (answer, refused) = (bus.answer(), refused.expect("it was asked"));
    assert_eq!(answer.invocation, sent.invocation);
    assert_eq!(bus.transport.idle(FUNCTION), 2);
    assert_eq!(bus.transport.detach(refused), None);
    for peer in &peers {
        bus.transport.detach(peer.id);
    }
    let (sent, nobody) = (bus.descriptor(), &mut |_, _: &mut Descriptor| panic!("nobody is there"));
    assert_eq!(bus.port.send_prepared(FUNCTION, &sent, nobody).unwrap(), Sent::NoIdlePeer);
}
