//! The hub's side of the transports in which the hub itself picks the idle peer: `futex` and `broker`.
//!
//! They share everything but how 32 bytes get to a peer and how the hub learns that something came back;
//! that is a [`Carrier`]. What is shared: the table of peers, the lock per connection, the faults.
//!
//! Concurrency. The table's words change by compare-and-swap, as in the kernel program, and each connection
//! is used under a lock of its own, which is practically never waited for: a port claims a slot by
//! taking its hint bit first, and answers are read by the one port that listens to the connection. Detaching
//! takes the same lock, so a descriptor never goes to a connection that was just replaced by another's.
//!
//! A connection is listened to by one port at a time ([`Place`]): the one that it last served, or for a
//! new peer the lowest open one. It stays so while the peer is idle, so that a message out of turn is
//! noticed when it comes, not at the next dispatch.

mod faults;
mod port;
mod route;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use spry_ebpf_common::{Descriptor, EMITS_MAX, Hop, SLOTS_PER_FUNCTION};

use self::faults::Faults;
use self::port::HubPort;
use self::route::{Onward, Way};
use super::table::{Claim, Heap, Refused, Stamp, Table};
use super::{Attachment, BusError, Config, Event, Fault, FaultKind, Kind, Port, Prepare, Sent, Transport};
use crate::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};

/// How a carrier names a connection to its ear: the slot, and a number that no other listening has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(pub(super) u64);

impl Key {
    fn slot(self) -> u32 {
        self.0 as u32
    }
}

/// What makes a transport of the hub's machinery.
pub(super) trait Carrier: Send + Sync + 'static {
    const KIND: Kind;
    /// The hub's half of one peer's connection; closed when dropped.
    type Link: Send + 'static;
    /// What a port waits with.
    type Ear: Send + Sync + 'static;

    fn ear() -> Result<Self::Ear, BusError>;
    fn ear_fd(ear: &Self::Ear) -> BorrowedFd<'_>;
    /// Appends the keys of connections where something may have arrived. True: there may be more of them.
    fn heard(ear: &Self::Ear, out: &mut Vec<Key>) -> Result<bool, BusError>;
    /// Listens to a connection, until it is heard (`ONCE`) or [`Self::unlisten`]ed.
    fn listen(ear: &Self::Ear, key: Key, link: &mut Self::Link) -> Result<(), BusError>;
    fn unlisten(ear: &Self::Ear, key: Key, link: &mut Self::Link);
    /// Whether a connection that was heard must be listened to again.
    const ONCE: bool;

    /// Makes a connection: the hub's half, and the peer's.
    fn connect() -> Result<(Self::Link, Vec<OwnedFd>), BusError>;
    /// Whether that socket is for that alone, so that nothing may ever arrive on it.
    const LIVENESS_IS_SILENT: bool;
    /// A socket that shows the peer's death.
    fn liveness(link: &Self::Link) -> BorrowedFd<'_>;
    /// Hands a descriptor to the peer, which is idle, so that there must be room.
    fn deliver(link: &mut Self::Link, descriptor: &Descriptor) -> Result<(), FaultKind>;
    /// Takes one message from the peer, without waiting.
    fn take(link: &mut Self::Link) -> Result<Option<Descriptor>, FaultKind>;
}

/// One connection, and who listens to it.
struct Place<C: Carrier> {
    peer: PeerId,
    link: C::Link,
    listener: Option<(PortIndex, Key)>,
    /// How much more often it was heard with nothing to take than it has sent messages.
    in_vain: u32,
    /// It broke the rules, or has closed its end: reported, and never read again.
    mute: bool,
}

/// A peer that makes itself heard with nothing to say takes a port's time. More often than this beyond its messages none does
/// by accident: an honest one wakes the hub once for each message, after it, and sends the next one then; so of its wakes
/// one at most comes when all is taken. (A kernel may end a wait by itself, which is rare.)
const IN_VAIN_MAX: u32 = 64;

type Places<C> = [Mutex<Option<Place<C>>>; SLOTS_PER_FUNCTION as usize];

/// The transport.
pub(super) struct Hub<C: Carrier> {
    table: Table<Heap>,
    /// By function, made when its first peer is attached.
    places: Vec<OnceLock<Box<Places<C>>>>,
    /// By port.
    ears: Box<[OnceLock<C::Ear>]>,
    faults: Faults,
    next_key: AtomicU32,
}

impl<C: Carrier> Hub<C> {
    pub(super) fn new(config: Config) -> Result<Arc<Self>, BusError> {
        let Config { functions, ports } = config.bounded();
        let (functions, ports) = (functions as usize, ports as usize);
        let cells = Heap::new(functions, ports)
            .map_err(|source| BusError::Os { operation: "make the table of peers", source })?;
        Ok(Arc::new(Self {
            table: Table::new(cells),
            places: std::iter::repeat_with(OnceLock::new).take(functions).collect(),
            ears: std::iter::repeat_with(OnceLock::new).take(ports).collect(),
            faults: Faults::new()?,
            next_key: AtomicU32::new(0),
        }))
    }

    fn places(&self, slot: u32) -> Option<&Places<C>> {
        self.places.get((slot / SLOTS_PER_FUNCTION) as usize)?.get().map(|places| &**places)
    }

    /// The slot's connection, locked, whatever is in it.
    fn slot(&self, slot: u32) -> Option<MutexGuard<'_, Option<Place<C>>>> {
        Some(self.places(slot)?[(slot % SLOTS_PER_FUNCTION) as usize].lock())
    }

    fn ear(&self, port: PortIndex) -> Option<&C::Ear> {
        self.ears.get(usize::from(port.0))?.get()
    }

    /// Makes `port` the one that listens to this connection.
    fn listen(&self, place: &mut Place<C>, port: PortIndex) -> Result<(), BusError> {
        match place.listener {
            Some((listener, _)) if listener == port => return Ok(()),
            _ => self.unlisten(place),
        }
        let Some(ear) = self.ear(port) else { return Err(BusError::Full("port of that number is open")) };
        let key =
            Key(u64::from(place.peer.slot) | u64::from(self.next_key.fetch_add(1, Ordering::Relaxed)) << 32);
        C::listen(ear, key, &mut place.link)?;
        place.listener = Some((port, key));
        Ok(())
    }

    fn unlisten(&self, place: &mut Place<C>) {
        if let Some((listener, key)) = place.listener.take()
            && let Some(ear) = self.ear(listener)
        {
            C::unlisten(ear, key, &mut place.link);
        }
    }

    /// Reports a peer, once; nothing is read from it afterwards.
    fn accuse(&self, place: &mut Place<C>, kind: FaultKind) {
        self.unlisten(place);
        if !std::mem::replace(&mut place.mute, true) {
            self.faults.report(Fault { peer: place.peer, kind });
        }
    }

    /// Hands a descriptor to an idle peer of `function`, which from then on holds the invocation. It hears of it when
    /// `prepare` is done, and isn't detached before: that takes the same lock.
    fn deliver(
        &self,
        function: FunctionIndex,
        stamp: Stamp,
        descriptor: &Descriptor,
        prepare: &mut Prepare<'_>,
    ) -> Result<Sent, BusError> {
        let claim = Claim { invocation: InvocationId(descriptor.invocation), stamp };
        let cpu = crate::sys::current_cpu() as usize;
        while let Some(slot) = self.table.candidate(function, Some(cpu)) {
            let Some(mut guard) = self.slot(slot) else { continue };
            let Some(place) = guard.as_mut().filter(|place| !place.mute) else { continue };
            // First of all, so that a failure leaves nothing claimed.
            if let Err(error) = self.listen(place, stamp.trail.port) {
                self.table.hint_idle(slot);
                return Err(error);
            }
            if !self.table.claim(slot, claim) {
                continue;
            }
            let mut message = *descriptor;
            if !prepare(place.peer, &mut message) && self.table.put_back(slot, claim.invocation) {
                continue;
            }
            if let Err(kind) = C::deliver(&mut place.link, &message) {
                // It didn't take it, or is dead. The invocation stays its own until it is detached.
                self.accuse(place, kind);
            }
            return Ok(Sent::Delivered);
        }
        Ok(Sent::NoIdlePeer)
    }

    /// Reads what a connection has for `port`, and sends on what goes to another peer: with no connection locked,
    /// so that no two threads ever wait for each other's.
    fn read(&self, port: PortIndex, key: Key, out: &mut Vec<Event>) -> Result<(), BusError> {
        let mut onward = None;
        let read = self.take_in(port, key, out, &mut onward);
        if let Some(onward) = onward {
            match self.deliver(onward.function, onward.stamp, &onward.descriptor, &mut |_, _| true) {
                Ok(Sent::Delivered) => {}
                Ok(Sent::NoIdlePeer) => out.push(onward.back_to_port()),
                Err(error) => {
                    tracing::warn!(?port, %error, "can't hand a step on; its port queues it");
                    out.push(onward.back_to_port());
                }
            }
        }
        read
    }

    /// Takes in what a connection has. One answer at most is due, after some emitted values; anything more is a fault.
    fn take_in(
        &self,
        port: PortIndex,
        key: Key,
        out: &mut Vec<Event>,
        onward: &mut Option<Onward>,
    ) -> Result<(), BusError> {
        let Some(mut guard) = self.slot(key.slot()) else { return Ok(()) };
        // An event of an earlier listening (another peer's, another port's) says nothing about this one.
        let Some(place) = guard.as_mut().filter(|place| place.listener == Some((port, key))) else {
            return Ok(());
        };
        if C::ONCE {
            place.listener = None;
        }
        // All that it may send while it holds one invocation (it gets no other while it is locked here), and a
        // look whether another message follows, which nobody may send.
        for taken in 0..EMITS_MAX + 2 {
            let message = match C::take(&mut place.link) {
                Ok(None) if taken > 0 => {
                    place.in_vain = place.in_vain.saturating_sub(taken);
                    break;
                }
                Ok(None) if place.in_vain < IN_VAIN_MAX => {
                    place.in_vain += 1;
                    break;
                }
                Ok(None) => {
                    self.accuse(place, FaultKind::Malformed);
                    return Ok(());
                }
                Ok(Some(message)) => message,
                Err(kind) => {
                    self.accuse(place, kind);
                    return Ok(());
                }
            };
            let kind = match route::way(&self.table, place.peer, message) {
                Ok(Way::Port(event)) => {
                    out.push(event);
                    continue;
                }
                Ok(Way::On(next)) => {
                    *onward = Some(next);
                    continue;
                }
                // Retired or detached: whoever did that knows, and nobody waits for an answer.
                Err(Refused::Detached) => continue,
                Err(Refused::NotItsInvocation) => FaultKind::NotItsInvocation,
                Err(Refused::Malformed) => FaultKind::Malformed,
                Err(Refused::Flood) => FaultKind::Flood,
            };
            self.accuse(place, kind);
            return Ok(());
        }
        self.listen(place, port)
    }
}

impl<C: Carrier> Transport for Arc<Hub<C>> {
    fn kind(&self) -> Kind {
        C::KIND
    }

    fn open_port(&self, port: PortIndex) -> Result<Box<dyn Port>, BusError> {
        let place = self.ears.get(usize::from(port.0)).ok_or(BusError::Full("port"))?;
        if place.get().is_none() {
            // Two threads that open the same port at once: one ear stays, and both may use it.
            let _ = place.set(C::ear()?);
        }
        Ok(Box::new(HubPort::new(Arc::clone(self), port)))
    }

    fn attach(&self, function: FunctionIndex) -> Result<Attachment, BusError> {
        let places = self.places.get(usize::from(function.0)).ok_or(BusError::Full("function"))?;
        let places =
            places.get_or_init(|| Box::new([const { Mutex::new(None) }; SLOTS_PER_FUNCTION as usize]));
        let (link, endpoint) = C::connect()?;
        for (bit, place) in (0..).zip(places.iter()) {
            let mut place = place.lock();
            if place.is_none() {
                let peer = self.table.attach(u32::from(function.0) * SLOTS_PER_FUNCTION + bit);
                self.faults.watch(peer, C::liveness(&link), C::LIVENESS_IS_SILENT)?;
                *place = Some(Place { peer, link, listener: None, in_vain: 0, mute: false });
                return Ok(Attachment { peer, endpoint });
            }
        }
        Err(BusError::Full("slot of the function"))
    }

    fn admit(&self, peer: PeerId) -> bool {
        let Some(mut guard) = self.slot(peer.slot) else { return false };
        let Some(place) = guard.as_mut().filter(|place| place.peer == peer) else { return false };
        if place.listener.is_none() && !place.mute {
            let open = (0..self.ears.len() as u8).map(PortIndex).find(|port| self.ear(*port).is_some());
            if let Some(port) = open
                && let Err(error) = self.listen(place, port)
            {
                // It is listened to when it gets its first invocation, or that fails visibly.
                tracing::warn!(?peer, %error, "can't listen to an idle peer");
            }
        }
        self.table.admit(peer)
    }

    fn detach(&self, peer: PeerId) -> Option<(InvocationId, PortIndex)> {
        let mut guard = self.slot(peer.slot)?;
        let place = guard.as_mut().filter(|place| place.peer == peer)?;
        self.unlisten(place);
        let lost = self.table.detach(peer);
        self.faults.forget(C::liveness(&place.link));
        *guard = None;
        lost
    }

    fn retire(&self, peer: PeerId) -> bool {
        self.table.retire(peer)
    }

    fn has_idle(&self, function: FunctionIndex) -> bool {
        self.table.has_idle(function)
    }

    fn set_waiting(&self, function: FunctionIndex, waiting: bool) {
        self.table.set_waiting(function, waiting);
    }

    fn idle(&self, function: FunctionIndex) -> u32 {
        self.table.idle(function)
    }

    fn holder(&self, function: FunctionIndex, invocation: InvocationId) -> Option<PeerId> {
        self.table.holder(function, invocation)
    }

    fn set_single_use(&self, peer: PeerId) {
        self.table.set_single_use(peer);
    }

    fn set_home(&self, peer: PeerId, cpu: Option<usize>) {
        self.table.set_home(peer, cpu);
    }

    fn set_route(&self, route: RouteIndex, steps: &[FunctionIndex]) -> Result<(), BusError> {
        self.table.set_route(route, steps)
    }

    fn begin_trail(&self, trail: TrailIndex, invocation: InvocationId, deadline_ns: u64) {
        self.table.begin_trail(trail, invocation, deadline_ns);
    }

    fn cancel_trail(&self, trail: TrailIndex) {
        self.table.cancel_trail(trail);
    }

    fn trail(&self, trail: TrailIndex, steps: usize, out: &mut Vec<Hop>) {
        self.table.trail(trail, steps, out);
    }

    fn faults_fd(&self) -> BorrowedFd<'_> {
        self.faults.fd()
    }

    fn faults(&self, out: &mut Vec<Fault>) {
        let told = self.faults.collect(out);
        for fault in told {
            let peer = fault.peer;
            let Some(mut guard) = self.slot(peer.slot) else { continue };
            let Some(place) = guard.as_mut().filter(|place| place.peer == peer) else { continue };
            // Its last answer may lie there unread: the port that listens gets it first or never.
            if !std::mem::replace(&mut place.mute, true) {
                out.push(fault);
            }
        }
    }
}
