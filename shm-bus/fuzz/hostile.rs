//! A hub and a peer that does whatever the bytes say: the body of the fuzz target `hostile_bus`, and of the
//! property test of the same name (`tests/hostile_bus.rs`), which runs it in every `cargo test`.
//!
//! The peer's half is not opened with the library's endpoint: its page is written at any place between any two
//! operations of the hub, and its socket gets packets of any length. What must hold, whatever it does:
//! nothing panics or touches other memory (a fault would end the test), no call goes on for ever, every
//! accepted invocation is settled exactly once, and what validation lets through lies within its segment.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use shm_bus::Descriptor;
use shm_bus::descriptor::{check, name, one_of};
use shm_bus::ids::{FunctionIndex, InvocationId, PeerId, PortIndex};
use shm_bus::release::ReleaseReader;
use shm_bus::ring::ENTRIES;
use shm_bus::segment::{Reader, SegmentName, Writer, create, page_len};
use shm_bus::transport::{Config, Event, Kind, Port, Sent, Transport, broker, futex};
use spry_ebpf_common::{DESCRIPTOR_LEN, PORT_BIT};

const FUNCTION: FunctionIndex = FunctionIndex(2);
const OUTBOX: SegmentName = SegmentName { id: 4, generation: 2 };
/// Operations of one run at most.
const STEPS_MAX: usize = 400;

/// The bytes, taken from the front; zeros when there are no more.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        std::array::from_fn(|at| head.get(at).copied().unwrap_or(0))
    }
    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }
    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }
}

/// The peer's half, as the attacker holds it.
enum Puppet {
    Futex { page: Writer, produced: u32, _fds: Vec<OwnedFd> },
    Broker { socket: OwnedFd },
}

impl Puppet {
    fn new(kind: Kind, mut fds: Vec<OwnedFd>) -> Self {
        if kind == Kind::Broker {
            return Self::Broker { socket: fds.remove(0) };
        }
        let page = Writer::map(fds.remove(1), page_len()).expect("map the peer's page");
        Self::Futex { page, produced: 0, _fds: fds }
    }

    /// Any bytes, anywhere.
    fn scribble(&self, bytes: &mut Bytes<'_>) {
        match self {
            Self::Futex { page, .. } => {
                // The interesting words are in the first half kilobyte.
                let at = u64::from(bytes.u32() % 640);
                page.write_at(at, &bytes.take::<8>()).expect("within the page");
            }
            Self::Broker { socket } => {
                let len = usize::from(bytes.u8()) % 80;
                send(socket, &vec![bytes.u8(); len]);
            }
        }
    }

    /// A message as the rules want it, at least in form.
    fn answer(&mut self, answer: &Descriptor) {
        let words = words(answer);
        match self {
            Self::Futex { page, produced, .. } => {
                page.write_at(256 + u64::from(*produced % ENTRIES) * 32, &words).expect("within the page");
                *produced = produced.wrapping_add(1);
                page.write_at(0, &produced.to_ne_bytes()).expect("within the page");
            }
            Self::Broker { socket } => send(socket, &words),
        }
    }

    fn wake(&self) {
        if let Self::Futex { page, .. } = self {
            let word = page.address(0, 4).expect("within the page");
            // SAFETY: the word is mapped as long as the page.
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        }
    }

    /// Breaks the agreement about how much was produced or consumed.
    fn lie(&mut self, bytes: &mut Bytes<'_>) {
        if let Self::Futex { page, produced, .. } = self {
            let (which, value) = (bytes.u8(), bytes.u32());
            let value = if which & 2 == 0 { produced.wrapping_add(value % (2 * ENTRIES)) } else { value };
            page.write_at(u64::from(which % 2) * 64, &value.to_ne_bytes()).expect("within the page");
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8]) {
    // SAFETY: `bytes` is readable for its length.
    unsafe {
        let how = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), how)
    };
}

fn words(item: &Descriptor) -> [u8; DESCRIPTOR_LEN] {
    let mut bytes = [0; DESCRIPTOR_LEN];
    let fields = [item.segment, item.generation, item.offset, item.length];
    for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_ne_bytes());
    }
    bytes[16..24].copy_from_slice(&item.invocation.to_ne_bytes());
    bytes[24..26].copy_from_slice(&item.route.to_ne_bytes());
    (bytes[26], bytes[27]) = (item.step, item.flags);
    bytes[28..32].copy_from_slice(&item.source.to_ne_bytes());
    bytes
}

struct World {
    hub: Arc<dyn Transport>,
    port: Box<dyn Port>,
    peer: PeerId,
    puppet: Puppet,
    /// Accepted invocations and how often each was settled.
    settled: HashMap<u64, u32>,
    next: u64,
    outbox: Writer,
    reader: Arc<Reader>,
}

impl World {
    fn new(hub: Arc<dyn Transport>) -> Self {
        let port = hub.open_port(PortIndex(1)).expect("open a port");
        let attachment = hub.attach(FUNCTION).expect("attach");
        let puppet = Puppet::new(hub.kind(), attachment.endpoint);
        hub.admit(attachment.peer);
        let segment = create("spry-fuzz-outbox", page_len()).expect("make a segment");
        let reader = Arc::new(Reader::map(&segment, page_len()).expect("map it"));
        let outbox = Writer::map(segment, page_len()).expect("map it");
        let (settled, next, peer) = (HashMap::new(), 1, attachment.peer);
        Self { hub, port, peer, puppet, settled, next, outbox, reader }
    }

    fn send(&mut self) {
        let descriptor = Descriptor { invocation: self.next, source: PORT_BIT | 1, ..Descriptor::default() };
        self.next += 1;
        if self.port.send(FUNCTION, &descriptor).expect("the hub's own send") == Sent::Delivered {
            self.settled.insert(descriptor.invocation, 0);
        }
    }

    fn settle(&mut self, invocation: u64) {
        let times = self.settled.get_mut(&invocation).expect("only what was accepted is settled");
        *times += 1;
        assert_eq!(*times, 1, "invocation {invocation} was settled twice");
    }

    fn receive(&mut self) {
        let mut events = Vec::new();
        self.port.receive(&mut events).expect("the hub's own receive");
        assert!(events.len() <= 1, "one peer, one answer: {events:?}");
        for event in events {
            let (Event::Answer(got) | Event::Bounced(got)) = event else { panic!("{event:?}") };
            assert_eq!(got.source, self.peer.slot, "stamped");
            self.settle(got.invocation);
            self.validate(&got);
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

    fn replace(&mut self) {
        if let Some((lost, port)) = self.hub.detach(self.peer) {
            assert_eq!(port, PortIndex(1));
            self.settle(lost.0);
        }
        assert_eq!(self.hub.detach(self.peer), None);
        let attachment = self.hub.attach(FUNCTION).expect("attach");
        self.peer = attachment.peer;
        self.puppet = Puppet::new(self.hub.kind(), attachment.endpoint);
        self.hub.admit(self.peer);
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 12 {
            0 | 1 => self.send(),
            2 => self.puppet.scribble(bytes),
            3 => self.puppet.lie(bytes),
            4 => self.puppet.wake(),
            5 | 6 => {
                let held = self.next - 1;
                let invocation = if bytes.u8() < 230 { held } else { u64::from(bytes.u32()) };
                let (offset, length) = (bytes.u32() % 5000, bytes.u32() % 5000);
                let flags = bytes.u8() & 0x31;
                let answer = Descriptor { invocation, offset, length, flags, ..Descriptor::default() };
                self.puppet.answer(&Descriptor {
                    segment: OUTBOX.id,
                    generation: OUTBOX.generation,
                    ..answer
                });
                self.puppet.wake();
            }
            7 | 8 => self.receive(),
            9 => {
                let mut faults = Vec::new();
                self.hub.faults(&mut faults);
                assert!(faults.iter().filter(|fault| fault.peer == self.peer).count() <= 1, "{faults:?}");
                if faults.iter().any(|fault| fault.peer == self.peer) {
                    self.replace();
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
            _ => {
                if bytes.u8().is_multiple_of(4) {
                    self.replace();
                } else {
                    self.hub.admit(self.peer);
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
    world.receive();
    world.replace();
    let open: Vec<_> = world.settled.iter().filter(|(_, times)| **times != 1).collect();
    assert!(open.is_empty(), "never settled: {open:?}");
}
