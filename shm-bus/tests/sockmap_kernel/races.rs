//! Several ports and peers at once, while peers are retired, ended and replaced: every invocation that was
//! delivered is settled exactly once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, PeerId, PortIndex};
use shm_bus::transport::sockmap::{Sockmap, SockmapEndpoint};
use shm_bus::transport::{Endpoint, Event, Port, Sent, Transport};
use spry_ebpf_common::{Counter, PORT_BIT};

use crate::rig::{PATIENCE, bus};

const FUNCTIONS: [FunctionIndex; 2] = [FunctionIndex(0), FunctionIndex(7)];
const PORTS: u8 = 3;
const PEERS: usize = 6;
const PER_PORT: u64 = 5_000;

#[derive(Default)]
struct Ledger {
    /// Per invocation: answers, and returns by `detach`.
    settled: Mutex<HashMap<u64, u32>>,
}

impl Ledger {
    fn settle(&self, invocation: u64) {
        *self.settled.lock().unwrap().entry(invocation).or_default() += 1;
    }

    fn len(&self) -> usize {
        self.settled.lock().unwrap().len()
    }

    fn has(&self, invocation: u64) -> bool {
        self.settled.lock().unwrap().contains_key(&invocation)
    }
}

/// A peer that answers what it gets until its end is closed, or (`leaves_after`) goes without answering.
fn serve(mut endpoint: SockmapEndpoint, leaves_after: Option<u32>) {
    let mut served = 0;
    while let Ok(Some(descriptor)) = endpoint.receive() {
        if leaves_after.is_some_and(|most| served >= most) {
            return;
        }
        served += 1;
        let answer = Descriptor { source: 1234, length: served, ..descriptor };
        if endpoint.send(&answer).is_err() {
            return;
        }
    }
}

fn start<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    bus: &Sockmap,
    function: FunctionIndex,
    leaves_after: Option<u32>,
) -> PeerId {
    let mut attached = bus.attach(function).expect("attach");
    let endpoint = SockmapEndpoint::new(attached.endpoint.pop().expect("an endpoint"));
    scope.spawn(move || serve(endpoint, leaves_after));
    assert!(bus.admit(attached.peer));
    attached.peer
}

#[test]
fn every_delivered_invocation_is_settled_once() {
    for _ in 0..3 {
        churn();
    }
}

fn churn() {
    let Some(bus) = bus() else { return };
    let ledger = Ledger::default();
    let done = AtomicBool::new(false);
    let (delivered, ended_busy) = thread::scope(|scope| {
        let keeper = {
            let (bus, ledger, done) = (&bus, &ledger, &done);
            scope.spawn(move || keep(scope, bus, ledger, done))
        };
        let ports: Vec<_> = (0..PORTS)
            .map(|index| {
                let (bus, ledger) = (&bus, &ledger);
                scope.spawn(move || dispatch(bus, PortIndex(index), ledger))
            })
            .collect();
        let delivered: Vec<u64> = ports.into_iter().flat_map(|port| port.join().expect("a port")).collect();
        done.store(true, Ordering::Release);
        (delivered, keeper.join().expect("the keeper"))
    });
    let settled = ledger.settled.into_inner().unwrap();
    let wrong: Vec<_> = delivered.iter().filter(|id| settled.get(id) != Some(&1)).collect();
    assert!(wrong.is_empty(), "{} of {}: {:x?}", wrong.len(), delivered.len(), &wrong[..wrong.len().min(5)]);
    assert_eq!(settled.len(), delivered.len(), "nothing else was settled");
    // A peer that was ended while it served may answer when its slot has another owner already.
    assert!(bus.count(Counter::Violations) <= ended_busy, "{ended_busy} were ended busy");
}

/// Sends, and reads answers, until all of its invocations are settled. Returns what was delivered.
fn dispatch(bus: &Sockmap, index: PortIndex, ledger: &Ledger) -> Vec<u64> {
    let mut port = bus.open_port(index).expect("port");
    let mut events = Vec::new();
    let mut collect = |port: &mut dyn Port| {
        if port.receive(&mut events).expect("receive") == 0 {
            // An answer, or a moment later another look at who is idle.
            let mut wait = [PollFd::new(port.fd(), PollFlags::POLLIN)];
            poll(&mut wait, 1_u8).expect("poll");
        }
        for event in events.drain(..) {
            match event {
                Event::Answer(answer) => ledger.settle(answer.invocation),
                other => panic!("{other:?}"),
            }
        }
    };
    let mine: Vec<u64> = (1..=PER_PORT).map(|number| u64::from(index.0 + 1) << 56 | number).collect();
    for invocation in &mine {
        let source = PORT_BIT | u32::from(index.0);
        let descriptor = Descriptor { invocation: *invocation, source, ..Descriptor::default() };
        while port.send(FUNCTIONS[(invocation % 2) as usize], &descriptor).expect("send") != Sent::Delivered {
            collect(port.as_mut());
        }
        collect(port.as_mut());
    }
    let deadline = Instant::now() + PATIENCE;
    for invocation in &mine {
        while !ledger.has(*invocation) && Instant::now() < deadline {
            collect(port.as_mut());
        }
    }
    mine
}

/// Retires, ends and replaces peers all the time; some leave by themselves, holding an invocation. Returns how many
/// were ended while they served.
fn keep<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    bus: &'scope Sockmap,
    ledger: &Ledger,
    done: &AtomicBool,
) -> u64 {
    let mut ended_busy = 0;
    let mut peers: Vec<(PeerId, FunctionIndex)> = Vec::new();
    let mut faults = Vec::new();
    let mut turn = 0_usize;
    let refill = |peers: &mut Vec<(PeerId, FunctionIndex)>, turn: usize| {
        while peers.len() < PEERS {
            // Whichever has fewer.
            let first = peers.iter().filter(|(_, function)| *function == FUNCTIONS[0]).count();
            let function = FUNCTIONS[usize::from(first * 2 > peers.len())];
            let leaves_after = turn.is_multiple_of(3).then_some(turn as u32 % 50);
            peers.push((start(scope, bus, function, leaves_after), function));
        }
    };
    while !done.load(Ordering::Acquire) {
        turn += 1;
        bus.faults(&mut faults);
        for fault in faults.drain(..) {
            if let Some((lost, _)) = bus.detach(fault.peer) {
                ledger.settle(lost.0);
            }
            peers.retain(|(peer, _)| *peer != fault.peer);
        }
        // Both functions have peers before anybody is ended, and again before the wait.
        refill(&mut peers, turn);
        // One by force (whatever it does), one only if it is idle.
        let (peer, function) = peers[turn % peers.len()];
        if turn.is_multiple_of(2) {
            if bus.retire(peer) {
                assert_eq!(bus.detach(peer), None);
                peers.retain(|(other, _)| *other != peer);
            }
        } else {
            if let Some((lost, _)) = bus.detach(peer) {
                ledger.settle(lost.0);
                ended_busy += 1;
            }
            peers.retain(|(other, _)| *other != peer);
        }
        bus.set_home(peer, Some(turn));
        let _ = bus.holder(function, shm_bus::ids::InvocationId(1));
        refill(&mut peers, turn);
        // Until they have done some work, or one of them has left.
        let enough = ledger.len() + 25;
        let mut wait = [PollFd::new(bus.faults_fd(), PollFlags::POLLIN)];
        while ledger.len() < enough
            && poll(&mut wait, 1_u8).expect("poll") == 0
            && !done.load(Ordering::Acquire)
        {}
    }
    for (peer, _) in peers {
        if let Some((lost, _)) = bus.detach(peer) {
            ledger.settle(lost.0);
        }
    }
    ended_busy
}
