//! A hub and two peers that do whatever the bytes say: the body of the fuzz target `hostile_bus`, and of the
//! property test of the same name (`tests/hostile_bus.rs`), which runs it in every `cargo test`.
//!
//! The peers' halves are not opened with the library's endpoint: their pages are written at any place between any
//! two operations of the hub, and their sockets get packets of any length. Some invocations go through both peers,
//! by chains' routes; the peers name any route, step and source. What must hold, whatever they do:
//! nothing panics or touches other memory (a fault would end the test), no call goes on for ever, every
//! accepted invocation is settled exactly once, what comes back says truly who sent it at which step, and what validation lets through lies within its segment.

mod puppet;

use std::collections::HashMap;
use std::sync::Arc;

use shm_bus::Descriptor;
use shm_bus::descriptor::{check, name, one_of};
use shm_bus::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};
use shm_bus::release::ReleaseReader;
use shm_bus::segment::{Reader, SegmentName, Writer, create, page_len};
use shm_bus::transport::{Config, Event, Port, Sent, Transport, broker, futex};
use spry_ebpf_common::{EMITS_MAX, PORT_BIT, TRAILS_PER_PORT, flags, status};

use self::puppet::{Bytes, Puppet};

const FUNCTIONS: [FunctionIndex; 2] = [FunctionIndex(2), FunctionIndex(3)];
/// The chains' routes.
const WAYS: [&[FunctionIndex]; 2] =
    [&[FUNCTIONS[0], FUNCTIONS[1], FUNCTIONS[0]], &[FUNCTIONS[1], FUNCTIONS[1]]];
const PORT: PortIndex = PortIndex(1);
const OUTBOX: SegmentName = SegmentName { id: 4, generation: 2 };
/// Kinds of operations; a byte names one, and which peer it is about.
const OPERATIONS: u8 = 15;
/// Operations of one run at most.
const STEPS_MAX: usize = 400;

/// A peer, in the attacker's hands.
struct Member {
    id: PeerId,
    puppet: Puppet,
}

impl Member {
    fn new(hub: &dyn Transport, function: FunctionIndex) -> Self {
        let attachment = hub.attach(function).expect("attach");
        let puppet = Puppet::new(hub.kind(), attachment.endpoint);
        hub.admit(attachment.peer);
        Self { id: attachment.peer, puppet }
    }
}

/// An invocation, as the hub's owner knows it.
struct Run {
    /// Which functions it goes through; one of [`WAYS`], or just one.
    way: &'static [FunctionIndex],
    route: u16,
    /// How often it was put on its way, and how often it came back or was lost with a peer.
    accepted: u32,
    settled: u32,
    emitted: u32,
}

struct World {
    hub: Arc<dyn Transport>,
    port: Box<dyn Port>,
    /// One of each function.
    members: [Member; 2],
    runs: HashMap<u64, Run>,
    /// Given back to the port.
    forwarded: Vec<Descriptor>,
    next: u64,
    outbox: Writer,
    reader: Arc<Reader>,
}

impl World {
    fn new(hub: Arc<dyn Transport>) -> Self {
        let port = hub.open_port(PORT).expect("open a port");
        for (route, way) in (0..).zip(WAYS) {
            hub.set_route(RouteIndex(route), way).expect("set a route");
        }
        let members = FUNCTIONS.map(|function| Member::new(&*hub, function));
        let segment = create("spry-fuzz-outbox", page_len()).expect("make a segment");
        let reader = Arc::new(Reader::map(&segment, page_len()).expect("map it"));
        let outbox = Writer::map(segment, page_len()).expect("map it");
        Self { hub, port, members, runs: HashMap::new(), forwarded: Vec::new(), next: 1, outbox, reader }
    }

    fn trail(invocation: u64) -> TrailIndex {
        TrailIndex { port: PORT, index: (invocation % u64::from(TRAILS_PER_PORT)) as u16 }
    }

    /// A new invocation of one function.
    fn send(&mut self, which: usize) {
        let source = PORT_BIT | u32::from(PORT.0);
        let way = std::slice::from_ref(&FUNCTIONS[which]);
        self.put(way, Descriptor { invocation: self.next, source, route: way[0].0, ..Descriptor::default() });
        self.next += 1;
    }

    /// A new run on a chain's route.
    fn run(&mut self, which: usize, deadline_ns: u64) {
        let trail = Self::trail(self.next);
        self.hub.begin_trail(trail, InvocationId(self.next), deadline_ns);
        let route = RouteIndex(which as u16).in_descriptor();
        let source = trail.in_descriptor();
        self.put(WAYS[which], Descriptor { invocation: self.next, source, route, ..Descriptor::default() });
        self.next += 1;
    }

    fn put(&mut self, way: &'static [FunctionIndex], descriptor: Descriptor) -> bool {
        let function = way[usize::from(descriptor.step)];
        let sent = self.port.send(function, &descriptor).expect("the hub's own send") == Sent::Delivered;
        let route = descriptor.route;
        let run = Run { way, route, accepted: 0, settled: 0, emitted: 0 };
        self.runs.entry(descriptor.invocation).or_insert(run).accepted += u32::from(sent);
        sent
    }

    /// Sends the last one that came back on.
    fn send_on(&mut self) {
        let Some(forward) = self.forwarded.pop() else { return };
        let source = Self::trail(forward.invocation).in_descriptor();
        let way = self.runs[&forward.invocation].way;
        if !self.put(way, Descriptor { source, flags: 0, ..forward }) {
            self.forwarded.push(forward);
        }
    }

    fn settle(&mut self, invocation: u64) -> &Run {
        let run = self.runs.get_mut(&invocation).expect("only what was sent is settled");
        run.settled += 1;
        assert!(run.settled <= run.accepted, "invocation {invocation} was settled twice");
        run
    }

    fn receive(&mut self) {
        let mut events = Vec::new();
        self.port.receive(&mut events).expect("the hub's own receive");
        assert!(events.len() <= 2 * (EMITS_MAX as usize + 1), "{} events", events.len());
        for event in events {
            let (Event::Answer(got) | Event::Forward(got) | Event::Emitted(got)) = event else {
                panic!("{event:?}")
            };
            self.is_stamped(&event, &got);
            match event {
                Event::Emitted(_) => {}
                Event::Forward(_) => {
                    self.settle(got.invocation);
                    self.forwarded.push(got);
                }
                _ => drop(self.settle(got.invocation)),
            }
            self.validate(&got);
        }
    }

    /// Whatever the peer wrote, these are the bus's own: who sent it, and where on its way.
    fn is_stamped(&mut self, event: &Event, got: &Descriptor) {
        let run = self.runs.get_mut(&got.invocation).expect("only what was sent comes back");
        assert_eq!(got.route, run.route, "{event:?}");
        let status = got.flags & status::MASK;
        let not_begun = matches!(event, Event::Forward(_)) || status == status::EXPIRED;
        let served = usize::from(got.step) - usize::from(not_begun);
        let function = run.way[served];
        let member = self.members.iter().find(|member| member.id.function() == function);
        assert_eq!(got.source, member.expect("one of each function").id.slot, "{event:?}");
        let last = served + 1 == run.way.len();
        match event {
            Event::Emitted(_) => {
                run.emitted += 1;
                assert_eq!(got.flags, flags::EMIT);
                assert!(run.emitted <= EMITS_MAX * (run.accepted + run.way.len() as u32));
            }
            Event::Forward(_) => assert!(!last && got.flags & !flags::HOLD == flags::NEXT, "{event:?}"),
            _ if status == status::OK => assert!(last && got.flags & flags::NEXT == 0, "{event:?}"),
            _ => assert!(status == status::FAILED || !last && status == status::EXPIRED, "{event:?}"),
        }
    }

    /// What the gateway does with an answer, while its bytes are anybody's.
    fn validate(&mut self, got: &Descriptor) {
        let known = [(OUTBOX, page_len())];
        let Ok(range) = check(got, InvocationId(got.invocation), one_of(&known)) else { return };
        assert!(range.start <= range.end && range.end <= page_len() && name(got) == OUTBOX);
        let len = range.end - range.start;
        let copy = self.reader.copy(range.start, len).expect("it was checked");
        let region = self.reader.region(range.start, len).expect("it was checked");
        assert_eq!((copy.len(), region.as_ref().len()), (len as usize, len as usize));
    }

    fn replace(&mut self, which: usize) {
        let old = self.members[which].id;
        if let Some((lost, port)) = self.hub.detach(old) {
            assert_eq!(port, PORT);
            self.settle(lost.0);
        }
        assert_eq!(self.hub.detach(old), None);
        self.members[which] = Member::new(&*self.hub, FUNCTIONS[which]);
    }

    /// What a message is about, mostly: the invocation that the peer holds, if it is one of the last.
    fn held(&self, which: usize) -> u64 {
        let mine = |invocation: &u64| {
            self.hub.holder(FUNCTIONS[which], InvocationId(*invocation)) == Some(self.members[which].id)
        };
        (self.next.saturating_sub(8)..self.next).rev().find(mine).unwrap_or(self.next - 1)
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let operation = bytes.u8();
        let which = usize::from(operation / OPERATIONS % 2);
        match operation % OPERATIONS {
            0 => self.send(which),
            1 => {
                let deadline_ns = if bytes.u8() < 20 { 1 } else { u64::MAX };
                self.run(which, deadline_ns);
            }
            2 => self.members[which].puppet.scribble(bytes),
            3 => self.members[which].puppet.lie(bytes),
            4 => self.members[which].puppet.wake(),
            5 | 6 => {
                let invocation = if bytes.u8() < 230 { self.held(which) } else { u64::from(bytes.u32()) };
                let (offset, length) = (bytes.u32() % 5000, bytes.u32() % 5000);
                let flags = bytes.u8();
                // Half of them say nothing that can't be.
                let flags = if flags < 128 { flags & (flags::HOLD | status::FAILED) } else { flags };
                let [route, source] = [bytes.u32(), bytes.u32()];
                let (route, step) = (route as u16, (route >> 16) as u8);
                let (segment, generation) = (OUTBOX.id, OUTBOX.generation);
                let answer = Descriptor {
                    segment,
                    generation,
                    offset,
                    length,
                    invocation,
                    route,
                    step,
                    flags,
                    source,
                };
                let puppet = &mut self.members[which].puppet;
                puppet.answer(&answer);
                puppet.wake();
            }
            7 | 8 => self.receive(),
            9 => {
                let mut faults = Vec::new();
                self.hub.faults(&mut faults);
                for which in 0..2 {
                    let id = self.members[which].id;
                    let reported = faults.iter().filter(|fault| fault.peer == id).count();
                    assert!(reported <= 1, "{faults:?}");
                    if reported == 1 {
                        self.replace(which);
                    }
                }
            }
            10 => {
                let at = u64::from(bytes.u32()) % (page_len() - 8);
                self.outbox.write_at(at, &bytes.take::<8>()).expect("within the segment");
                let wild: [u32; 4] = std::array::from_fn(|_| bytes.u32());
                let [offset, length, id, flags] = wild;
                let segment = if id & 1 == 0 { OUTBOX.id } else { id };
                let invocation = u64::from(bytes.u8());
                let flags = flags as u8;
                let generation = OUTBOX.generation;
                let got = Descriptor {
                    segment,
                    generation,
                    offset,
                    length,
                    invocation,
                    flags,
                    ..Descriptor::default()
                };
                self.validate(&got);
                let _ = shm_bus::begun::read(&self.reader);
                // The outbox as a release page: any count, any offsets.
                let file = self.outbox.fd();
                let mut release = ReleaseReader::map(file).expect("a page is a page");
                let mut freed = 0;
                release.drain(|_| freed += 1);
                assert!(freed <= 512);
            }
            11 => {
                let value = Descriptor {
                    invocation: self.held(which),
                    flags: flags::EMIT,
                    source: bytes.u32(),
                    ..Descriptor::default()
                };
                let puppet = &mut self.members[which].puppet;
                (0..bytes.u8()).for_each(|_| puppet.answer(&value));
                puppet.wake();
            }
            12 => self.send_on(),
            13 => self.hub.cancel_trail(Self::trail(self.held(which))),
            _ => {
                if bytes.u8().is_multiple_of(4) {
                    self.replace(which);
                } else {
                    self.hub.admit(self.members[which].id);
                }
            }
        }
    }
}

/// One run: the first byte chooses the transport, the rest is what happens.
pub(crate) fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let config = Config { functions: 4, ports: 2 };
    let hub = match bytes.u8() % 2 {
        0 => broker::transport(config),
        _ => futex::transport(config),
    };
    // Without io_uring there is no futex transport; the broker is everywhere.
    let Ok(hub) = hub else { return };
    let mut world = World::new(hub);
    for _ in 0..STEPS_MAX {
        if bytes.0.is_empty() {
            break;
        }
        world.step(&mut bytes);
    }
    // What peers have answered goes to others, once for each step that there can be; then it comes back, or is lost
    // with who holds it.
    (0..2 * WAYS.len()).for_each(|_| world.receive());
    world.replace(0);
    world.replace(1);
    let open: Vec<_> =
        world.runs.iter().filter(|(_, run)| run.accepted != run.settled).map(|(id, _)| id).collect();
    assert!(open.is_empty(), "never settled: {open:?}");
}
