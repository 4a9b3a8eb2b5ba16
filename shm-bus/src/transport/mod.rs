//! How a descriptor gets from the hub to an idle peer, and its answer back.
//!
//! One contract, three implementations, one conformance suite (`tests/conformance.rs`):
//!
//! | transport | carries by | picks the idle peer | needs |
//! |---|---|---|---|
//! | `sockmap` | sk_msg redirect between TCP sockets | the kernel program | CAP_BPF, CAP_NET_ADMIN, BTF |
//! | `futex`   | two SPSC rings in shared memory per peer | the hub | io_uring FUTEX_WAIT (6.7) on the hub |
//! | `broker`  | a Unix seqpacket pair per peer | the hub | nothing |
//!
//! The rules that all keep:
//!
//! - A peer serves one invocation at a time: it is *detached*, *idle* or *busy with an invocation*.
//!   It gets a descriptor only while idle, and may send only the answer to the invocation it
//!   holds, and before it a bounded number of emitted values. So every queue is bounded by the number of peers.
//!   With further *seats* ([`Transport::set_seats`]) all this holds for each of its seats.
//! - `source`, `route` and `step` of a message are stamped by the transport; a peer's own are ignored.
//! - A message against the rules (not exactly one descriptor, an answer to an invocation that
//!   the peer doesn't hold, too many emitted values) is never delivered; it is reported as a [`Fault`] and the
//!   hub's owner ends the peer.
//! - On a plain route an answer goes to the port. On a chain's route the transport sends it on to an idle peer
//!   of the next function, without the port: who serves next is written in the route, and no peer has a say in
//!   it. The port gets the result of the last step, a failure of any, and the run itself (to send on, or because
//!   its time is over) where the transport can't go on.
//! - Nothing accepted is lost: after [`Port::send`] returned `Delivered(..)`, exactly one of these
//!   happens: an [`Event::Answer`], an [`Event::Forward`] (the port has it again), an [`Event::Bounced`] (it wasn't
//!   delivered after all), or [`Transport::detach`] returns the invocation.

pub mod broker;
pub mod endpoint;
mod error;
pub mod futex;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "hub")]
mod select;
pub mod sockmap;
#[cfg(feature = "hub")]
pub mod table;

use std::os::fd::{BorrowedFd, OwnedFd};

#[cfg(feature = "hub")]
use spry_ebpf_common::{DEFAULT_FUNCTIONS, DEFAULT_PORTS, MAX_FUNCTIONS, MAX_PORTS, PORT_BIT, flags, status};
use spry_ebpf_common::{DESCRIPTOR_LEN, Descriptor, Hop};

use crate::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};

pub use error::{BusError, Kind, UnknownKind};
#[cfg(feature = "hub")]
pub use select::{Selected, select};

/// What [`Port::send`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// On its way to an idle peer.
    Delivered,
    /// No peer of that function is idle; the caller keeps the descriptor.
    NoIdlePeer,
}

/// What arrives at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The answer to an invocation that this port (or another on its behalf) sent: a result, a failure (`step` says
    /// of which step), or `status::EXPIRED` (of the step that was not started). It settles the invocation.
    /// `source` is the stamped slot.
    Answer(Descriptor),
    /// A chain's step has answered (`source` is its slot) and the next, `step`, is to be sent on by this port, which
    /// has the invocation again: like a new request, to the function at that step. `flags::HOLD` is kept; a peer that
    /// serves once is held without it.
    Forward(Descriptor),
    /// A value that a peer (`source`) emits for the invocation that it goes on serving. A peer that keeps the rules
    /// emits before it answers, and then this comes first; but the peer may be hostile, or have been detached
    /// since, so the invocation may be settled by now.
    Emitted(Descriptor),
    /// A descriptor that `send` took but that could not be delivered: send it again or queue it.
    Bounced(Descriptor),
}

impl Event {
    /// What a descriptor is that the kernel program has brought to a port: its stamped flags say so.
    #[cfg(feature = "hub")]
    pub(crate) fn of(descriptor: Descriptor) -> Option<Self> {
        match descriptor.flags {
            status::VOID => None,
            flags if flags & flags::EMIT != 0 => Some(Self::Emitted(descriptor)),
            flags if flags & flags::NEXT != 0 => Some(Self::Forward(descriptor)),
            _ => Some(Self::Answer(descriptor)),
        }
    }
}

/// A peer broke the rules or closed its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub peer: PeerId,
    /// What.
    pub kind: FaultKind,
}

/// How a peer broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It closed its end of the bus.
    Closed,
    /// It sent something that is not exactly one descriptor, or one with a status that there isn't.
    Malformed,
    /// It answered an invocation that it doesn't hold (also: answered twice, a flood).
    NotItsInvocation,
    /// It emitted more values than one step may.
    Flood,
}

/// A new peer's connection: the hub's half is kept inside, the peer's half is to be handed over.
#[derive(Debug)]
pub struct Attachment {
    /// The peer's name.
    pub peer: PeerId,
    /// The peer's half, in the order that `Endpoint::open` expects.
    pub endpoint: Vec<OwnedFd>,
}

/// The hub's side of a transport. Shared by all threads of the hub.
pub trait Transport: Send + Sync + 'static {
    /// Which one this is.
    fn kind(&self) -> Kind;

    /// Opens the hub's end number `port`. Each port is used by one thread at a time.
    fn open_port(&self, port: PortIndex) -> Result<Box<dyn Port>, BusError>;

    /// Makes a connection for a new peer of `function`. The peer is detached until [`Self::admit`].
    fn attach(&self, function: FunctionIndex) -> Result<Attachment, BusError>;

    /// Puts a peer in service: first after its hello, later after an answer with `flags::HOLD`.
    /// True when it became idle; false when it is detached, or of another incarnation.
    fn admit(&self, peer: PeerId) -> bool;

    /// Lets this peer serve one invocation only: its answer takes it out of service, whatever the peer says. Call it
    /// before the first [`Self::admit`].
    fn set_single_use(&self, peer: PeerId);

    /// Takes a peer out of service for good, closes the hub's half, and returns the invocation that it
    /// held, if any, with the port that waits for it. Call again: `None`.
    fn detach(&self, peer: PeerId) -> Option<(InvocationId, PortIndex)>;

    /// Gives a peer further *seats*, or takes them away (what waits in them is still served): then several invocations
    /// wait for it at once, and it needn't sleep between two. Each is answered by itself, under the peer's one name.
    /// For peers that are never long at work: whoever waits in a seat waits for all before it. True: it has them now;
    /// transports that can't do it say no.
    fn set_seats(&self, _peer: PeerId, _open: bool) -> bool {
        false
    }

    /// Gives up a peer's further seats for good, before [`Self::detach`], and returns what waited in them.
    fn detach_seats(&self, _peer: PeerId) -> Vec<(InvocationId, PortIndex)> {
        Vec::new()
    }

    /// Takes an *idle* peer out of service, so that it can be ended without harm.
    /// False when it wasn't idle (busy peers are left alone).
    fn retire(&self, peer: PeerId) -> bool;

    /// Probably an idle peer of `function` exists (a hint, free of system calls).
    fn has_idle(&self, function: FunctionIndex) -> bool;

    /// Says whether invocations wait for `function` with the hub's owner. While they do, a run whose step one of its peers
    /// has answered comes to the port ([`Event::Forward`]) instead of going on by itself, since otherwise nobody would
    /// hear that the peer is idle. Look for idle peers after this.
    fn set_waiting(&self, function: FunctionIndex, waiting: bool);

    /// How many peers of `function` are idle, more or less (for whoever looks on).
    fn idle(&self, function: FunctionIndex) -> u32;

    /// Which peer of `function` holds `invocation` now (to end it when its time runs out).
    fn holder(&self, function: FunctionIndex, invocation: InvocationId) -> Option<PeerId>;

    /// Prefer this peer for descriptors sent from `cpu` (`None`: no preference).
    fn set_home(&self, peer: PeerId, cpu: Option<usize>);

    /// Sets which functions a route goes through: 1 to `STEPS_PER_ROUTE`. No run may be on the route.
    fn set_route(&self, route: RouteIndex, steps: &[FunctionIndex]) -> Result<(), BusError>;

    /// Begins a trail for a run that is about to be sent on a chain's route. No step of it starts at `deadline_ns`
    /// (of `CLOCK_MONOTONIC`) or later. The trail's previous run must have been settled.
    fn begin_trail(&self, trail: TrailIndex, invocation: InvocationId, deadline_ns: u64);

    /// From now on no further step of it starts: the run comes back as `status::EXPIRED` when the step that is being
    /// served has answered.
    fn cancel_trail(&self, trail: TrailIndex);

    /// Appends the first `steps` hops of a trail, copied. Those that were not reached have a `sent_ns` of 0.
    fn trail(&self, trail: TrailIndex, steps: usize, out: &mut Vec<Hop>);

    /// Readable when [`Self::faults`] has something to report.
    fn faults_fd(&self) -> BorrowedFd<'_>;

    /// Appends the peers that broke the rules since the last call; each peer is reported once.
    fn faults(&self, out: &mut Vec<Fault>);
}

/// Puts a payload where one peer alone finds it, and says in the descriptor where that is. False: it can't be done for
/// this peer.
pub type Prepare<'a> = dyn FnMut(PeerId, &mut Descriptor) -> bool + 'a;

/// One of the hub's ends.
pub trait Port: Send {
    /// Sends to an idle peer of `function`. `descriptor.source` (`source_of_port`) names the port that
    /// gets the answer: usually this one, but a thread may dispatch what another thread queued, and
    /// then names the other's port. The hub is trusted to name an open port.
    ///
    /// `descriptor.route` is used as it is when it is a chain's (`CHAIN_BIT`): then `function` is the one at
    /// `descriptor.step` of it, and `source` has the run's trail as well. Otherwise the route is the function.
    fn send(&mut self, function: FunctionIndex, descriptor: &Descriptor) -> Result<Sent, BusError>;

    /// The same on a plain route, when the payload isn't to lie where any other peer could read it: the peer is chosen
    /// first, and hears of it when `prepare` is done. Meanwhile the peer holds this invocation: it gets no other, and a
    /// [`Transport::detach`] waits. A peer for which it can't be done is out of service from then on, and the next is tried.
    /// (Not for functions whose peers have further seats.)
    fn send_prepared(
        &mut self,
        function: FunctionIndex,
        descriptor: &Descriptor,
        prepare: &mut Prepare<'_>,
    ) -> Result<Sent, BusError>;

    /// Readable when [`Self::receive`] has something (level-triggered; may be an epoll or io_uring fd).
    fn fd(&self) -> BorrowedFd<'_>;

    /// Appends what has arrived, without blocking; returns how many.
    fn receive(&mut self, out: &mut Vec<Event>) -> Result<usize, BusError>;
}

/// A peer's end. Blocking: a peer does one thing at a time.
pub trait Endpoint: Send {
    /// Waits for the next invocation. `None`: the hub is gone, or put this peer out of service.
    fn receive(&mut self) -> Result<Option<Descriptor>, BusError>;

    /// Sends the answer to the invocation last received.
    fn send(&mut self, descriptor: &Descriptor) -> Result<(), BusError>;
}

/// How big a hub's tables are.
#[cfg(feature = "hub")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Functions at most (up to 32,768); each has room for 64 peers. A function takes 4.3 KB of kernel memory.
    pub functions: u32,
    /// Ports that can be opened, from number 0 (up to 64). The trails of one take 0.7 MB of kernel memory.
    pub ports: u32,
}

#[cfg(feature = "hub")]
impl Config {
    /// Within the bounds.
    pub(crate) fn bounded(self) -> Self {
        Self { functions: self.functions.clamp(1, MAX_FUNCTIONS), ports: self.ports.clamp(1, MAX_PORTS) }
    }
}

#[cfg(feature = "hub")]
impl Default for Config {
    fn default() -> Self {
        Self { functions: DEFAULT_FUNCTIONS, ports: DEFAULT_PORTS }
    }
}

/// What a port puts on its way: [`Port::send`] says which route.
#[cfg(feature = "hub")]
pub(crate) fn outgoing(function: FunctionIndex, descriptor: &Descriptor) -> Descriptor {
    let route = RouteIndex::of(descriptor).map_or(function.0, RouteIndex::in_descriptor);
    Descriptor { route, source: descriptor.source | PORT_BIT, ..*descriptor }
}

/// The descriptor as it travels through sockets.
pub(crate) fn to_bytes(item: &Descriptor) -> [u8; DESCRIPTOR_LEN] {
    let mut bytes = [0; DESCRIPTOR_LEN];
    bytes[0..4].copy_from_slice(&item.segment.to_ne_bytes());
    bytes[4..8].copy_from_slice(&item.generation.to_ne_bytes());
    bytes[8..12].copy_from_slice(&item.offset.to_ne_bytes());
    bytes[12..16].copy_from_slice(&item.length.to_ne_bytes());
    bytes[16..24].copy_from_slice(&item.invocation.to_ne_bytes());
    bytes[24..26].copy_from_slice(&item.route.to_ne_bytes());
    bytes[26] = item.step;
    bytes[27] = item.flags;
    bytes[28..32].copy_from_slice(&item.source.to_ne_bytes());
    bytes
}

/// The other way round. Every 32 bytes are a descriptor, if not a valid one.
pub(crate) fn from_bytes(bytes: &[u8; DESCRIPTOR_LEN]) -> Descriptor {
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let mut invocation = [0; 8];
    invocation.copy_from_slice(&bytes[16..24]);
    Descriptor {
        segment: word(0),
        generation: word(4),
        offset: word(8),
        length: word(12),
        invocation: u64::from_ne_bytes(invocation),
        route: u16::from_ne_bytes([bytes[24], bytes[25]]),
        step: bytes[26],
        flags: bytes[27],
        source: word(28),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_survives_its_bytes_and_lies_as_in_c() {
        let bytes: [u8; DESCRIPTOR_LEN] = std::array::from_fn(|at| at as u8 + 1);
        let item = from_bytes(&bytes);
        assert_eq!(to_bytes(&item), bytes);
        assert_eq!(item.source.to_ne_bytes(), bytes[28..]);
        assert_eq!((item.step, item.flags), (27, 28));
    }
}
