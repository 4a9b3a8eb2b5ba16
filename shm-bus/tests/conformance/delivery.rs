//! What is sent arrives, once, at the right place.

use std::collections::HashSet;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use shm_bus::Descriptor;
use shm_bus::endpoint;
use shm_bus::ids::PortIndex;
use shm_bus::transport::Event;
use spry_ebpf_common::PORT_BIT;

use crate::chains::function;
use crate::harness::{Bus, WATCHDOG};

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
