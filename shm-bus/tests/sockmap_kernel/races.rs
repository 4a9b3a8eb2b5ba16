//! Several ports and peers at once, while peers are retired, ended and replaced: every invocation that was
//! delivered is settled exactly once.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};
use shm_bus::transport::sockmap::{Sockmap, SockmapEndpoint};
use shm_bus::transport::{Endpoint, Event, Port, Sent, Transport};
use spry_ebpf_common::{Counter, PORT_BIT, TRAILS_PER_PORT};

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
    for seats in [false, true, true] {
        churn(FUNCTIONS.map(|function| vec![function]), seats, false);
    }
}

/// The same where something is prepared for each peer: whoever is prepared for isn't ended meanwhile.
#[test]
fn every_prepared_invocation_is_settled_once() {
    churn(FUNCTIONS.map(|function| vec![function]), false, true);
}

/// The same with chains: whoever is ended may be a step that the kernel is just handing a run to.
#[test]
fn every_run_of_a_chain_is_settled_once() {
    let [a, b] = FUNCTIONS;
    for seats in [false, true, true] {
        churn([vec![a, b, a, b, b], vec![b, a, a]], seats, false);
    }
}

/// `ways`: which functions the invocations go through, in turn. `seats`: peers get further seats, and lose them again.
/// `prepared`: the ports choose the peers themselves.
fn churn(ways: [Vec<FunctionIndex>; 2], seats: bool, prepared: bool) {
    let Some(bus) = bus() else { return };
    for (route, way) in (0..).zip(&ways) {
        bus.set_route(RouteIndex(route), way).expect("set a route");
    }
    let ledger = Ledger::default();
    let done = AtomicBool::new(false);
    let (delivered, ended_busy) = thread::scope(|scope| {
        let keeper = {
            let (bus, ledger, done) = (&bus, &ledger, &done);
            scope.spawn(move || keep(scope, bus, ledger, done, seats))
        };
        let ports: Vec<_> = (0..PORTS)
            .map(|index| {
                let (bus, ledger, ways) = (&bus, &ledger, &ways);
                scope.spawn(move || dispatch(bus, PortIndex(index), ledger, ways, prepared))
            })
            .collect();
        let delivered: Vec<_> = ports.into_iter().map(|port| port.join()).collect();
        // Whatever became of them: the keeper waits for it.
        done.store(true, Ordering::Release);
        let delivered: Vec<u64> = delivered.into_iter().flat_map(|port| port.expect("a port")).collect();
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
fn dispatch(
    bus: &Sockmap,
    index: PortIndex,
    ledger: &Ledger,
    ways: &[Vec<FunctionIndex>; 2],
    prepared: bool,
) -> Vec<u64> {
    let mut sender = Sender {
        bus,
        port: bus.open_port(index).expect("port"),
        index,
        ledger,
        ways,
        prepared,
        forwarded: VecDeque::new(),
        events: Vec::new(),
    };
    let mine: Vec<u64> = (1..=PER_PORT).map(|number| u64::from(index.0 + 1) << 56 | number).collect();
    for invocation in &mine {
        // Its trail is free again when the run before on it is settled, however long a peer has sat on that one.
        let before = *invocation - u64::from(TRAILS_PER_PORT);
        while invocation - mine[0] >= u64::from(TRAILS_PER_PORT) && !ledger.has(before) {
            sender.send_on();
            sender.collect();
        }
        let begun = sender.begin(*invocation);
        while !(sender.send_on() && sender.send(&begun)) {
            sender.collect();
        }
        sender.collect();
    }
    let deadline = Instant::now() + PATIENCE;
    for invocation in &mine {
        while !ledger.has(*invocation) && Instant::now() < deadline {
            sender.send_on();
            sender.collect();
        }
    }
    mine
}

struct Sender<'a> {
    bus: &'a Sockmap,
    port: Box<dyn Port>,
    index: PortIndex,
    ledger: &'a Ledger,
    ways: &'a [Vec<FunctionIndex>; 2],
    prepared: bool,
    /// Given back by the kernel, to be sent on. They come first, so there are never many.
    forwarded: VecDeque<Descriptor>,
    events: Vec<Event>,
}

impl Sender<'_> {
    fn trail(&self, invocation: u64) -> TrailIndex {
        TrailIndex { port: self.index, index: (invocation % u64::from(TRAILS_PER_PORT)) as u16 }
    }

    fn begin(&self, invocation: u64) -> Descriptor {
        let number = invocation % 2;
        let descriptor = Descriptor { invocation, ..Descriptor::default() };
        if self.ways[number as usize].len() == 1 {
            return Descriptor { source: PORT_BIT | u32::from(self.index.0), ..descriptor };
        }
        let trail = self.trail(invocation);
        self.bus.begin_trail(trail, InvocationId(invocation), u64::MAX);
        let route = RouteIndex(number as u16).in_descriptor();
        Descriptor { route, source: trail.in_descriptor(), ..descriptor }
    }

    fn send(&mut self, descriptor: &Descriptor) -> bool {
        let way = &self.ways[(descriptor.invocation % 2) as usize];
        let function = way[usize::from(descriptor.step)];
        let sent = if self.prepared {
            let id = InvocationId(descriptor.invocation);
            self.port.send_prepared(function, descriptor, &mut |peer, _| {
                assert_eq!(self.bus.holder(function, id), Some(peer));
                std::thread::yield_now();
                assert_eq!(self.bus.holder(function, id), Some(peer), "it isn't taken away");
                true
            })
        } else {
            self.port.send(function, descriptor)
        };
        sent.expect("send") == Sent::Delivered
    }

    /// True: nothing is left to be sent on.
    fn send_on(&mut self) -> bool {
        while let Some(forward) = self.forwarded.pop_front() {
            let source = self.trail(forward.invocation).in_descriptor();
            if !self.send(&Descriptor { source, flags: 0, ..forward }) {
                self.forwarded.push_front(forward);
                return false;
            }
        }
        true
    }

    fn collect(&mut self) {
        if self.port.receive(&mut self.events).expect("receive") == 0 {
            // An answer, or a moment later another look at who is idle.
            let mut wait = [PollFd::new(self.port.fd(), PollFlags::POLLIN)];
            poll(&mut wait, 1_u8).expect("poll");
        }
        for event in self.events.drain(..) {
            match event {
                Event::Answer(answer) => {
                    assert_eq!(answer.flags, 0, "{answer:?}");
                    self.ledger.settle(answer.invocation);
                }
                Event::Forward(forward) => self.forwarded.push_back(forward),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Takes a peer off the bus, and settles what it held. Returns how many it held.
fn end(bus: &Sockmap, peer: PeerId, ledger: &Ledger) -> u64 {
    let mut lost = bus.detach_seats(peer);
    lost.extend(bus.detach(peer));
    lost.iter().for_each(|(lost, _)| ledger.settle(lost.0));
    lost.len() as u64
}

/// Retires, ends and replaces peers all the time; some leave by themselves, holding an invocation. Returns how many
/// invocations those had who were ended while they served.
fn keep<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    bus: &'scope Sockmap,
    ledger: &Ledger,
    done: &AtomicBool,
    seats: bool,
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
            end(bus, fault.peer, ledger);
            peers.retain(|(peer, _)| *peer != fault.peer);
        }
        // Both functions have peers before anybody is ended, and again before the wait.
        refill(&mut peers, turn);
        // One by force (whatever it does), one only if it is idle.
        let (peer, function) = peers[turn % peers.len()];
        if turn.is_multiple_of(2) {
            if bus.retire(peer) {
                assert_eq!(end(bus, peer, ledger), 0);
                peers.retain(|(other, _)| *other != peer);
            }
        } else {
            ended_busy += end(bus, peer, ledger);
            peers.retain(|(other, _)| *other != peer);
        }
        bus.set_home(peer, Some(turn));
        if seats {
            let (other, _) = peers.get(turn % 7).copied().unwrap_or((peer, function));
            bus.set_seats(other, !turn.is_multiple_of(5));
        }
        let _ = bus.holder(function, InvocationId(1));
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
        end(bus, peer, ledger);
    }
    ended_busy
}
