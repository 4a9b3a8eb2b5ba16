//! Many runs at once, from several ports, through several peers a function: nothing is lost, doubled or crossed.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, PortIndex, RouteIndex};
use shm_bus::transport::Event;
use spry_ebpf_common::SLOTS_PER_FUNCTION;

use crate::chains::{NEVER, function};
use crate::harness::{Bus, Peer, WATCHDOG};

/// What a peer with the role `sum` makes of an offset at a step: whoever skips, repeats or swaps steps, or takes
/// another run's, comes to another sum.
pub(crate) fn mix(offset: u32, step: u8) -> u32 {
    (offset ^ u32::from(step)).wrapping_mul(0x9e37_79b1).rotate_left(7)
}

fn sum(offset: u32, steps: usize) -> u32 {
    (0..steps as u8).fold(offset, mix)
}

/// A port with runs under way.
struct Load {
    bus: Bus,
    route: RouteIndex,
    steps: Vec<FunctionIndex>,
    /// By invocation: the sum that its result must have.
    waiting: HashMap<u64, u32>,
    /// The next run, begun, while nobody can take it.
    next: Option<Descriptor>,
    /// Given back to the port, and to be sent on.
    queued: VecDeque<Descriptor>,
    results: Vec<Descriptor>,
    forwards: usize,
}

impl Load {
    fn new(bus: Bus, route: RouteIndex, steps: Vec<FunctionIndex>) -> Self {
        bus.transport.set_route(route, &steps).unwrap();
        let (waiting, queued, results) = (HashMap::new(), VecDeque::new(), Vec::new());
        Self { bus, route, steps, waiting, next: None, queued, results, forwards: 0 }
    }

    /// Sends on what waits, and then a new run if there is room.
    fn send(&mut self, most: usize) {
        while let Some(forward) = self.queued.pop_front() {
            let function = self.steps[usize::from(forward.step)];
            let sent = self.bus.send_on(function, &forward);
            // As the node's dispatcher does: else runs that the bus moves by itself could overtake this one for ever.
            self.bus.transport.set_waiting(function, !sent);
            if !sent {
                self.queued.push_front(forward);
                break;
            }
        }
        while self.waiting.len() < most {
            if self.next.is_none() {
                let trail = self.bus.next_trail();
                let free = |other: &u64| {
                    self.bus.trail_of(&Descriptor { invocation: *other, ..Descriptor::default() }) != trail
                };
                // A run that takes longer than all that came since holds the others up; one that never ends runs into the
                // watchdog.
                if !self.waiting.keys().all(free) {
                    break;
                }
                self.next = Some(self.bus.run(self.route, NEVER));
            }
            let Some(sent) = self.next.take() else { break };
            if !self.bus.send_to(self.steps[0], &sent) {
                self.next = Some(sent);
                break;
            }
            self.waiting.insert(sent.invocation, sum(sent.offset, self.steps.len()));
        }
    }

    fn receive(&mut self) {
        // What is queued, or not sent yet, may find somebody idle without an event of ours.
        let timeout = if self.queued.is_empty() && !self.waiting.is_empty() {
            WATCHDOG
        } else {
            Duration::from_millis(1)
        };
        let events = self.bus.events(timeout);
        assert!(!events.is_empty() || timeout < WATCHDOG, "lost: {:?}", self.waiting);
        for event in events {
            match event {
                Event::Answer(result) => {
                    let expected = self.waiting.remove(&result.invocation).expect("of this port, and once");
                    assert_eq!((result.offset, result.flags), (expected, 0), "{result:?}");
                    self.results.push(result);
                }
                Event::Forward(forward) => {
                    assert!(self.waiting.contains_key(&forward.invocation), "{forward:?}");
                    self.queued.push_back(forward);
                    self.forwards += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// So many runs from begin to end.
    fn complete(mut self, runs: usize, at_once: usize) -> Self {
        while self.results.len() < runs {
            let left = runs - self.results.len();
            self.send(at_once.min(left));
            self.receive();
        }
        assert!(self.waiting.is_empty() && self.queued.is_empty());
        self
    }
}

fn serving(bus: &Bus, numbers: impl Iterator<Item = u16>) -> Vec<Peer> {
    numbers.map(|number| bus.join_at(function(number), "sum")).collect()
}

/// Two chains of one port over disjoint functions, at once.
pub(crate) fn chains_do_not_cross(bus: Bus) {
    let _peers = serving(&bus, (0..6).chain(0..6));
    std::thread::scope(|scope| {
        for chain in 0..2u16 {
            let numbers = [chain, 2 + chain, 4 + chain];
            let steps: Vec<_> = numbers.map(function).to_vec();
            let load = Load::new(bus.another(PortIndex(chain as u8 + 1)), RouteIndex(chain), steps.clone());
            scope.spawn(move || {
                let load = load.complete(1000, 4);
                for result in load.results.iter().rev().take(100) {
                    let hops = load.bus.hops(result, 3);
                    let served: Vec<_> = hops.iter().map(|hop| hop.slot / SLOTS_PER_FUNCTION).collect();
                    let expected: Vec<_> = steps.iter().map(|step| u32::from(step.0)).collect();
                    assert_eq!(served, expected, "each step was served by its own chain's function");
                }
            });
        }
    });
}

/// 100,000 hops: two ports, a route of eight steps through four functions of two peers each.
pub(crate) fn runs_keep_their_sums(bus: Bus) {
    const RUNS: usize = 6_250;
    let _peers = serving(&bus, (0..4).chain(0..4));
    let steps: Vec<_> = [0, 1, 2, 3, 2, 1, 0, 3].map(function).to_vec();
    let loads: Vec<_> = (1..3)
        .map(|port| Load::new(bus.another(PortIndex(port)), RouteIndex(port.into()), steps.clone()))
        .collect();
    let done: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            loads.into_iter().map(|load| scope.spawn(move || load.complete(RUNS, 5))).collect();
        running.into_iter().map(|load| load.join().unwrap()).collect()
    });
    let forwards: usize = done.iter().map(|load| load.forwards).sum();
    eprintln!("{} hops, {forwards} of them through the port", done.len() * RUNS * steps.len());
}
