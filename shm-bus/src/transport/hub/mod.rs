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

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use spry_ebpf_common::{DEFAULT_FUNCTIONS, Descriptor, MAX_PORTS, SLOTS_PER_FUNCTION, flags};

use self::faults::Faults;
use self::port::HubPort;
use super::table::{Heap, Refused, Table};
use super::{Attachment, BusError, Event, Fault, FaultKind, Kind, Port, Transport};
use crate::ids::{FunctionIndex, InvocationId, PeerId, PortIndex};

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
    /// Appends the keys of connections where something may have arrived.
    fn heard(ear: &Self::Ear, out: &mut Vec<Key>) -> Result<(), BusError>;
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
    /// It broke the rules, or has closed its end: reported, and never read again.
    mute: bool,
}

type Places<C> = [Mutex<Option<Place<C>>>; SLOTS_PER_FUNCTION as usize];

/// The transport.
pub(super) struct Hub<C: Carrier> {
    table: Table<Heap>,
    /// By function, made when its first peer is attached.
    places: Vec<OnceLock<Box<Places<C>>>>,
    ears: [OnceLock<C::Ear>; MAX_PORTS as usize],
    faults: Faults,
    next_key: AtomicU32,
}

impl<C: Carrier> Hub<C> {
    pub(super) fn new() -> Result<Arc<Self>, BusError> {
        let functions = DEFAULT_FUNCTIONS as usize;
        let cells = Heap::new(functions)
            .map_err(|source| BusError::Os { operation: "make the table of peers", source })?;
        Ok(Arc::new(Self {
            table: Table::new(cells),
            places: std::iter::repeat_with(OnceLock::new).take(functions).collect(),
            ears: [const { OnceLock::new() }; MAX_PORTS as usize],
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

    /// Reads what a connection has for `port`. One answer at most is due; anything more is a fault.
    fn read(&self, port: PortIndex, key: Key, out: &mut Vec<Event>) -> Result<(), BusError> {
        let Some(mut guard) = self.slot(key.slot()) else { return Ok(()) };
        // An event of an earlier listening (another peer's, another port's) says nothing about this one.
        let Some(place) = guard.as_mut().filter(|place| place.listener == Some((port, key))) else {
            return Ok(());
        };
        if C::ONCE {
            place.listener = None;
        }
        // An answer, and a look whether another message follows, which nobody may send.
        for _ in 0..2 {
            match C::take(&mut place.link) {
                Ok(None) => break,
                Ok(Some(message)) => match self.settle(place, message) {
                    Ok(answer) => out.push(Event::Answer(answer)),
                    Err(Refused::NotItsInvocation) => {
                        self.accuse(place, FaultKind::NotItsInvocation);
                        return Ok(());
                    }
                    // Retired or detached: whoever did that knows, and nobody waits for an answer.
                    Err(Refused::Detached) => {}
                },
                Err(kind) => {
                    self.accuse(place, kind);
                    return Ok(());
                }
            }
        }
        self.listen(place, port)
    }

    fn settle(&self, place: &Place<C>, message: Descriptor) -> Result<Descriptor, Refused> {
        let hold = message.flags & flags::HOLD != 0;
        let stamp = self.table.answer(place.peer, message.invocation, hold)?;
        Ok(Descriptor { route: stamp.route, step: stamp.step, source: place.peer.slot, ..message })
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
                *place = Some(Place { peer, link, listener: None, mute: false });
                return Ok(Attachment { peer, endpoint });
            }
        }
        Err(BusError::Full("slot of the function"))
    }

    fn admit(&self, peer: PeerId) -> bool {
        let Some(mut guard) = self.slot(peer.slot) else { return false };
        let Some(place) = guard.as_mut().filter(|place| place.peer == peer) else { return false };
        if place.listener.is_none() && !place.mute {
            let open = (0..MAX_PORTS as u8).map(PortIndex).find(|port| self.ear(*port).is_some());
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

    fn holder(&self, function: FunctionIndex, invocation: InvocationId) -> Option<PeerId> {
        self.table.holder(function, invocation)
    }

    fn set_single_use(&self, peer: PeerId) {
        self.table.set_single_use(peer);
    }

    fn set_home(&self, peer: PeerId, cpu: Option<usize>) {
        self.table.set_home(peer, cpu);
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
