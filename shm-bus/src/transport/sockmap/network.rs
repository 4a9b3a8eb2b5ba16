//! The network namespace of the bus, and connections within it.
//!
//! One thread lives in the namespace and makes every socket there; nobody else ever enters it, so no thread of
//! the daemon can be left in the wrong one. The namespace has a loopback interface and nothing more, and
//! ends with its last socket.
//!
//! A connection's both ends are made here and proven to belong together: the accepted end's peer must have
//! the address *and* the port of the end that was bound and connected here. A listener exists only
//! while one connection is made; a stranger (an instance that disconnected its socket and happened to
//! connect in that moment) is accepted and closed.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, accept4, bind, connect, getpeername, getsockname,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use spry_ebpf_common::{address_of, connection};

use super::sys;
use crate::transport::{BusError, Kind};

/// Where the listeners are; no entry of the socket map has this address.
const LISTENER: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
/// Strangers that one connection puts up with. More would have to come within microseconds.
const STRANGERS: usize = 64;
/// Both ends are made here, so nothing of this ever waits; but if it does, then not for ever.
const PATIENCE_SECONDS: i64 = 1;

/// Both ends of a TCP connection.
pub(super) struct Connection {
    /// The end whose address is an entry's; it goes into the socket map.
    pub(super) named: OwnedFd,
    /// The other end, which stays with the hub.
    pub(super) other: OwnedFd,
    /// The TCP ports, as the program sees them at the named end.
    pub(super) ports: u32,
}

struct Request {
    index: u32,
    answer: SyncSender<Result<Connection, BusError>>,
}

/// The thread that lives in the namespace. It ends when this is dropped.
pub(super) struct Network {
    requests: Sender<Request>,
}

impl Network {
    /// Makes the namespace.
    pub(super) fn new() -> Result<Self, BusError> {
        let (requests, incoming) = channel();
        let (ready, is_ready) = sync_channel(1);
        thread::Builder::new()
            .name("spry-bus-net".into())
            .spawn(move || {
                let entered = enter();
                let stay = entered.is_ok();
                if ready.send(entered).is_ok() && stay {
                    serve(&incoming);
                }
            })
            .map_err(|source| BusError::Os { operation: "start the bus network's thread", source })?;
        is_ready.recv().unwrap_or_else(|_| Err(gone()))?;
        Ok(Self { requests })
    }

    /// Makes a connection whose named end has the address of entry `index` of the socket map.
    pub(super) fn connect(&self, index: u32) -> Result<Connection, BusError> {
        let (answer, answered) = sync_channel(1);
        self.requests.send(Request { index, answer }).map_err(|_| gone())?;
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> BusError {
    BusError::Os { operation: "reach the bus network's thread", source: io::ErrorKind::BrokenPipe.into() }
}

fn enter() -> Result<(), BusError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        nix::Error::EPERM => BusError::Unavailable {
            kind: Kind::Sockmap,
            why: "no right to make a network namespace (CAP_SYS_ADMIN)".into(),
        },
        errno => os("make the bus network's namespace")(errno),
    })?;
    let any = tcp_socket()?;
    sys::bring_loopback_up(any.as_fd())
        .map_err(|source| BusError::Os { operation: "bring the bus network's loopback up", source })
}

fn serve(incoming: &Receiver<Request>) {
    while let Ok(Request { index, answer }) = incoming.recv() {
        // Whoever asked has gone: then the connection closes again.
        let _ = answer.send(make(index));
    }
}

fn make(index: u32) -> Result<Connection, BusError> {
    let listener = tcp_socket()?;
    bind(listener.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(LISTENER, 0)))
        .map_err(os("bind a bus listener"))?;
    listen(&listener, Backlog::new(STRANGERS as i32).expect("a small backlog"))
        .map_err(os("listen for a bus socket"))?;
    let at: SockaddrIn = getsockname(listener.as_raw_fd()).map_err(os("name a bus listener"))?;

    let named = tcp_socket()?;
    let own = SocketAddrV4::new(Ipv4Addr::from(address_of(index)), 0);
    bind(named.as_raw_fd(), &SockaddrIn::from(own)).map_err(os("bind a bus socket"))?;
    connect(named.as_raw_fd(), &at).map_err(os("connect a bus socket"))?;
    let own: SockaddrIn = getsockname(named.as_raw_fd()).map_err(os("name a bus socket"))?;

    let other = accept_from(&listener, own)?;
    for end in [&named, &other] {
        setsockopt(end, sockopt::TcpNoDelay, &true).map_err(os("set up a bus socket"))?;
        // What made this certain to end must not end a peer's wait.
        let forever = TimeVal::new(0, 0);
        setsockopt(end, sockopt::ReceiveTimeout, &forever).map_err(os("set up a bus socket"))?;
        setsockopt(end, sockopt::SendTimeout, &forever).map_err(os("set up a bus socket"))?;
    }
    // Urgent data is a message against the rules like any other: make it readable.
    setsockopt(&other, sockopt::OobInline, &true).map_err(os("set up a bus socket"))?;
    Ok(Connection { named, other, ports: connection(own.port(), at.port()) })
}

/// Accepts the connection from `peer`, and only that.
fn accept_from(listener: &OwnedFd, peer: SockaddrIn) -> Result<OwnedFd, BusError> {
    for _ in 0..=STRANGERS {
        let accepted =
            accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map_err(os("accept a bus socket"))?;
        let accepted = sys::own(accepted);
        let from: Result<SockaddrIn, _> = getpeername(accepted.as_raw_fd());
        if from.is_ok_and(|from| (from.ip(), from.port()) == (peer.ip(), peer.port())) {
            return Ok(accepted);
        }
    }
    Err(BusError::Os {
        operation: "find the own bus socket",
        source: io::ErrorKind::ConnectionRefused.into(),
    })
}

fn tcp_socket() -> Result<OwnedFd, BusError> {
    let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let made = made.map_err(os("make a bus socket"))?;
    let patience = TimeVal::new(PATIENCE_SECONDS, 0);
    setsockopt(&made, sockopt::ReceiveTimeout, &patience).map_err(os("set up a bus socket"))?;
    setsockopt(&made, sockopt::SendTimeout, &patience).map_err(os("set up a bus socket"))?;
    Ok(made)
}

fn os(operation: &'static str) -> impl Fn(nix::Error) -> BusError {
    move |errno| BusError::Os { operation, source: errno.into() }
}
