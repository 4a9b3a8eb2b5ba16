//! The hub's side: peers come and go, and are watched.
//!
//! Coming and going takes a lock per function, so that an old name can't act on a slot that was given out
//! anew; messages take none. But who prepares something for an instance before it hears of its invocation
//! (`Port::send_prepared`) takes that slot's own lock from the claim to the send, and so does who detaches it.
//! An instance's socket is in the map before its other half is handed out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use nix::sys::socket::{MsgFlags, recv};
use parking_lot::{Mutex, MutexGuard};
use spry_ebpf_common::{Counter, Hop, MAX_FUNCTIONS, MAX_PORTS, SEATS, SLOTS_PER_FUNCTION, fault, index_of};

use super::network::{Connection, Network};
use super::port::SockmapPort;
use super::program::{self, Program};
use super::tables::Arrays;
use super::watch::Watch;
use crate::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};
use crate::transport::table::Table;
use crate::transport::{Attachment, BusError, Config, Fault, FaultKind, Kind, Port, Transport};

/// The sockmap transport, after a probe.
pub fn transport(config: Config) -> Result<Arc<dyn Transport>, BusError> {
    let bus = Sockmap::new(config)?;
    super::probe::passes_descriptors(&bus)?;
    Ok(Arc::new(bus))
}

/// The sockmap transport.
pub struct Sockmap {
    pub(super) inner: Arc<Inner>,
}

/// What ports share with the transport.
pub(super) struct Inner {
    pub(super) table: Table<Arrays>,
    program: Mutex<Program>,
    network: Network,
    watch: Watch,
    /// How many can be opened.
    pub(super) ports: u32,
    /// Per function, made at its first attach.
    functions: Box<[OnceLock<Function>]>,
}

/// A function's locks.
#[derive(Debug)]
struct Function {
    places: Mutex<Places>,
    /// By slot; after `places`, where both are.
    preparing: [Mutex<()>; SLOTS_PER_FUNCTION as usize],
}

/// A function's slots, from the hub's side.
#[derive(Debug)]
struct Places {
    links: [Place; SLOTS_PER_FUNCTION as usize],
    /// Where the search for a free slot begins: after the one given out last.
    next: usize,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Free,
    /// Its connection is being made.
    Reserved,
    /// A further seat of the peer before it.
    Seat,
    Taken {
        generation: u32,
        /// The hub's end; the peer's violations and its end of file arrive here.
        socket: OwnedFd,
    },
}

impl Places {
    fn new() -> Self {
        Self { links: std::array::from_fn(|_| Place::Free), next: 0 }
    }

    /// Reserves a free slot, in turn: one with room for further seats behind it, as long as there is one.
    fn reserve(&mut self) -> Option<usize> {
        let count = self.links.len();
        let in_turn = || (0..count).map(|step| (self.next + step) % count);
        let roomy = in_turn().find(|bit| bit.is_multiple_of(SEATS as usize) && self.is_free(*bit));
        let bit = roomy.or_else(|| in_turn().find(|bit| self.is_free(*bit)))?;
        self.links[bit] = Place::Reserved;
        self.next = (bit + 1) % count;
        Some(bit)
    }

    fn is_free(&self, bit: usize) -> bool {
        matches!(self.links[bit], Place::Free)
    }

    /// Reserves a peer's further seats, if nobody has them.
    fn reserve_seats(&mut self, peer: PeerId) -> bool {
        let own = peer.bit() as usize;
        let further = own + 1..own + SEATS as usize;
        let may = own.is_multiple_of(SEATS as usize) && further.clone().all(|bit| self.is_free(bit));
        if may {
            further.for_each(|bit| self.links[bit] = Place::Seat);
        }
        may
    }

    fn socket_of(&self, peer: PeerId) -> Option<&OwnedFd> {
        match &self.links[peer.bit() as usize] {
            Place::Taken { generation, socket } if *generation == peer.generation => Some(socket),
            _ => None,
        }
    }

    /// The slots that nobody has, as a mask.
    fn free(&self) -> u64 {
        let bits = self.links.iter().enumerate();
        bits.fold(0, |mask, (bit, place)| mask | u64::from(matches!(place, Place::Free)) << bit)
    }
}

impl std::fmt::Debug for Sockmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sockmap").field("functions", &self.inner.functions.len()).finish_non_exhaustive()
    }
}

impl Sockmap {
    /// Loads the program and makes the network. Nothing of it outlives this value and its ports.
    pub fn new(config: Config) -> Result<Self, BusError> {
        let config = config.bounded();
        // The last addresses of 127.0.0.0/8 are the listeners' and the broadcast's.
        const { assert!(MAX_FUNCTIONS * SLOTS_PER_FUNCTION + MAX_PORTS < index_of(0x7fff_fffe)) };
        let (program, arrays) = program::load(&config)?;
        let inner = Inner {
            table: Table::new(arrays),
            program: Mutex::new(program),
            network: Network::new()?,
            watch: Watch::new()?,
            ports: config.ports,
            functions: (0..config.functions).map(|_| OnceLock::new()).collect(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether this transport works here, by using it: a descriptor goes to a peer that sleeps in `recv`, and
    /// its answer comes back, several times. The error says what doesn't, for `spry doctor`.
    pub fn probe() -> Result<(), BusError> {
        super::probe::passes_descriptors(&Self::new(Config { functions: 1, ports: 1 })?)
    }

    /// How often something has happened, as the program counts.
    pub fn count(&self, counter: Counter) -> u64 {
        self.inner.arrays().count(counter)
    }

    /// Messages that the current or last peer of this slot sent against the rules.
    pub fn violations(&self, slot: u32) -> u64 {
        self.inner.arrays().slots.get(slot as usize).map_or(0, |slot| slot.violations.load(Ordering::Relaxed))
    }
}

impl Inner {
    pub(super) fn arrays(&self) -> &Arrays {
        self.table.cells()
    }

    fn places(&self, function: FunctionIndex) -> Option<MutexGuard<'_, Places>> {
        let function = self.functions.get(usize::from(function.0))?;
        let new = || Function {
            places: Mutex::new(Places::new()),
            preparing: std::array::from_fn(|_| Mutex::default()),
        };
        Some(function.get_or_init(new).places.lock())
    }

    /// Keeps whoever is in the slot from being detached. `None`: nobody ever was.
    pub(super) fn prepare(&self, slot: u32) -> Option<MutexGuard<'_, ()>> {
        let function = self.functions.get((slot / SLOTS_PER_FUNCTION) as usize)?.get()?;
        Some(function.preparing[(slot % SLOTS_PER_FUNCTION) as usize].lock())
    }

    /// Puts a connection's named end into the socket map.
    pub(super) fn insert(&self, index: u32, socket: &OwnedFd) -> Result<(), BusError> {
        let mut program = self.program.lock();
        program.sockets.set(index, socket, 0).map_err(|error| {
            let source = std::error::Error::source(&error)
                .and_then(|cause| cause.downcast_ref::<std::io::Error>())
                .and_then(|cause| cause.raw_os_error())
                .map_or_else(|| std::io::Error::other(error.to_string()), std::io::Error::from_raw_os_error);
            BusError::Os { operation: "put a socket into the socket map", source }
        })
    }

    /// Takes whatever socket is there out of the socket map.
    pub(super) fn remove(&self, index: u32) {
        // A socket that was closed has left by itself; then this fails, and that's fine.
        let _ = self.program.lock().sockets.clear_index(&index);
    }

    pub(super) fn connect(&self, index: u32) -> Result<Connection, BusError> {
        self.network.connect(index)
    }

    fn try_attach(&self, slot: u32) -> Result<(PeerId, Connection), BusError> {
        let connection = self.network.connect(MAX_PORTS + slot)?;
        let cell = &self.arrays().slots[slot as usize];
        cell.connection.store(connection.ports, Ordering::Relaxed);
        cell.violations.store(0, Ordering::Relaxed);
        let peer = self.table.attach(slot);
        let watched = self
            .insert(MAX_PORTS + slot, &connection.named)
            .and_then(|()| self.watch.add(peer, connection.other.as_fd()));
        if let Err(error) = watched {
            self.table.detach(peer);
            self.remove(MAX_PORTS + slot);
            return Err(error);
        }
        Ok((peer, connection))
    }

    /// Why the peer's socket has become readable. `None`: it has nothing to say.
    fn diagnose(&self, peer: PeerId, socket: &OwnedFd) -> Option<FaultKind> {
        let mut byte = [0];
        let got = recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK);
        let seen = self.arrays().slots[peer.slot as usize].fault.load(Ordering::Relaxed);
        match (seen, got) {
            (_, Err(nix::Error::EAGAIN | nix::Error::EINTR)) => None,
            (fault::NOT_ITS_INVOCATION, _) => Some(FaultKind::NotItsInvocation),
            (fault::FLOOD, _) => Some(FaultKind::Flood),
            (fault::NONE, Ok(0) | Err(_)) => Some(FaultKind::Closed),
            _ => Some(FaultKind::Malformed),
        }
    }
}

impl Transport for Sockmap {
    fn kind(&self) -> Kind {
        Kind::Sockmap
    }

    fn open_port(&self, port: PortIndex) -> Result<Box<dyn Port>, BusError> {
        Ok(Box::new(SockmapPort::open(Arc::clone(&self.inner), port)?))
    }

    fn attach(&self, function: FunctionIndex) -> Result<Attachment, BusError> {
        let bit = {
            let mut places = self.inner.places(function).ok_or(BusError::Full("function"))?;
            let bit = places.reserve().ok_or(BusError::Full("slot of the function"))?;
            self.inner.arrays().forget_hints(function, places.free());
            bit
        };
        let slot = u32::from(function.0) * SLOTS_PER_FUNCTION + bit as u32;
        let attached = self.inner.try_attach(slot);
        let mut places = self.inner.places(function).ok_or(BusError::Full("function"))?;
        match attached {
            Ok((peer, Connection { named, other, .. })) => {
                places.links[bit] = Place::Taken { generation: peer.generation, socket: other };
                Ok(Attachment { peer, endpoint: vec![named] })
            }
            Err(error) => {
                places.links[bit] = Place::Free;
                Err(error)
            }
        }
    }

    fn admit(&self, peer: PeerId) -> bool {
        let Some(places) = self.inner.places(peer.function()) else { return false };
        if places.socket_of(peer).is_none() {
            return false;
        }
        // (It may have answered from a further seat.)
        if self.inner.table.has_open_seats(peer) {
            self.inner.table.open_seats(peer);
        }
        self.inner.table.admit(peer)
    }

    fn set_seats(&self, peer: PeerId, open: bool) -> bool {
        let Some(mut places) = self.inner.places(peer.function()) else { return false };
        if places.socket_of(peer).is_none() {
            return false;
        }
        let table = &self.inner.table;
        match (open, table.seats(peer) != 0) {
            (true, false) if places.reserve_seats(peer) => table.seat(peer),
            (true, true) => table.open_seats(peer),
            (true, false) => return false,
            (false, _) => table.close_seats(peer),
        }
        open
    }

    fn detach_seats(&self, peer: PeerId) -> Vec<(InvocationId, PortIndex)> {
        let Some(mut places) = self.inner.places(peer.function()) else { return Vec::new() };
        if places.socket_of(peer).is_none() {
            return Vec::new();
        }
        let seats = self.inner.table.seats(peer) as usize;
        let lost = self.inner.table.unseat(peer);
        let own = peer.bit() as usize;
        places.links[own + 1..=own + seats].fill_with(|| Place::Free);
        lost
    }

    fn detach(&self, peer: PeerId) -> Option<(InvocationId, PortIndex)> {
        let waited = self.detach_seats(peer);
        debug_assert!(waited.is_empty(), "given up before, or what waited in them is forgotten: {waited:?}");
        let mut places = self.inner.places(peer.function())?;
        let socket = places.socket_of(peer)?.as_fd();
        self.inner.watch.remove(socket);
        let lost = {
            let _nobody_prepares = self.inner.prepare(peer.slot);
            self.inner.table.detach(peer)
        };
        self.inner.remove(MAX_PORTS + peer.slot);
        // No connection is this slot's any more.
        self.inner.arrays().slots[peer.slot as usize].connection.store(0, Ordering::Relaxed);
        places.links[peer.bit() as usize] = Place::Free;
        lost
    }

    fn retire(&self, peer: PeerId) -> bool {
        let Some(places) = self.inner.places(peer.function()) else { return false };
        places.socket_of(peer).is_some() && self.inner.table.retire_whole(peer)
    }

    fn has_idle(&self, function: FunctionIndex) -> bool {
        self.inner.arrays().has_idle(function)
    }

    fn set_waiting(&self, function: FunctionIndex, waiting: bool) {
        self.inner.table.set_waiting(function, waiting);
    }

    fn idle(&self, function: FunctionIndex) -> u32 {
        self.inner.table.idle(function)
    }

    fn holder(&self, function: FunctionIndex, invocation: InvocationId) -> Option<PeerId> {
        self.inner.table.holder(function, invocation)
    }

    fn set_single_use(&self, peer: PeerId) {
        self.inner.table.set_single_use(peer);
    }

    fn set_home(&self, peer: PeerId, cpu: Option<usize>) {
        let Some(places) = self.inner.places(peer.function()) else { return };
        if places.socket_of(peer).is_some() {
            self.inner.table.set_home(peer, cpu);
        }
    }

    fn set_route(&self, route: RouteIndex, steps: &[FunctionIndex]) -> Result<(), BusError> {
        self.inner.table.set_route(route, steps)
    }

    fn begin_trail(&self, trail: TrailIndex, invocation: InvocationId, deadline_ns: u64) {
        self.inner.table.begin_trail(trail, invocation, deadline_ns);
    }

    fn cancel_trail(&self, trail: TrailIndex) {
        self.inner.table.cancel_trail(trail);
    }

    fn trail(&self, trail: TrailIndex, steps: usize, out: &mut Vec<Hop>) {
        self.inner.table.trail(trail, steps, out);
    }

    fn faults_fd(&self) -> BorrowedFd<'_> {
        self.inner.watch.fd()
    }

    fn faults(&self, out: &mut Vec<Fault>) {
        for peer in self.inner.watch.ready() {
            let Some(places) = self.inner.places(peer.function()) else { continue };
            let Some(socket) = places.socket_of(peer) else { continue };
            match self.inner.diagnose(peer, socket) {
                Some(kind) => out.push(Fault { peer, kind }),
                None => self.inner.watch.again(peer, socket.as_fd()),
            }
        }
        if let Some(log) = &mut self.inner.program.lock().log {
            log.flush();
        }
    }
}
