//! The hub's end of the seqpacket pairs: an epoll instance per port.
//!
//! A connection stays registered with the port that it last served, level-triggered: the common case
//! (the same port again) costs no `epoll_ctl` at all.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use spry_ebpf_common::Descriptor;

use super::{Packet, receive};
use crate::transport::hub::{Carrier, Hub, Key};
use crate::transport::{BusError, Config, FaultKind, Kind, Transport, to_bytes};

/// Connections that one look at an epoll instance tells of at most.
const BATCH: usize = 64;

struct Broker;

/// Makes the transport.
pub fn transport(config: Config) -> Result<Arc<dyn Transport>, BusError> {
    Ok(Arc::new(Hub::<Broker>::new(config)?))
}

fn os(operation: &'static str) -> impl Fn(nix::Error) -> BusError {
    move |errno| BusError::Os { operation, source: errno.into() }
}

impl Carrier for Broker {
    const KIND: Kind = Kind::Broker;
    const ONCE: bool = false;
    type Link = OwnedFd;
    type Ear = Epoll;

    fn ear() -> Result<Epoll, BusError> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(os("make an epoll instance"))
    }

    fn ear_fd(ear: &Epoll) -> BorrowedFd<'_> {
        ear.0.as_fd()
    }

    fn heard(ear: &Epoll, out: &mut Vec<Key>) -> Result<bool, BusError> {
        let mut events = [EpollEvent::empty(); BATCH];
        match ear.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => {
                out.extend(events[..count].iter().map(|event| Key(event.data())));
                Ok(count == BATCH)
            }
            Err(nix::Error::EINTR) => Ok(true),
            Err(errno) => Err(os("wait for answers")(errno)),
        }
    }

    fn listen(ear: &Epoll, key: Key, link: &mut OwnedFd) -> Result<(), BusError> {
        ear.add(&*link, EpollEvent::new(EpollFlags::EPOLLIN, key.0)).map_err(os("listen to a peer"))
    }

    fn unlisten(ear: &Epoll, _: Key, link: &mut OwnedFd) {
        let _not_there = ear.delete(&*link);
    }

    fn connect() -> Result<(OwnedFd, Vec<OwnedFd>), BusError> {
        let (hub, peer) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(os("make a bus socket"))?;
        Ok((hub, vec![peer]))
    }

    const LIVENESS_IS_SILENT: bool = false;

    fn liveness(link: &OwnedFd) -> BorrowedFd<'_> {
        link.as_fd()
    }

    fn deliver(link: &mut OwnedFd, descriptor: &Descriptor) -> Result<(), FaultKind> {
        let how = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match send(link.as_raw_fd(), &to_bytes(descriptor), how) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(blame(errno)),
            }
        }
    }

    fn take(link: &mut OwnedFd) -> Result<Option<Descriptor>, FaultKind> {
        match receive(link.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Packet::Whole(descriptor)) => Ok(Some(descriptor)),
            Ok(Packet::Malformed) => Err(FaultKind::Malformed),
            Ok(Packet::Empty) => {
                let mut state = [PollFd::new(link.as_fd(), PollFlags::POLLHUP)];
                let closed = poll(&mut state, PollTimeout::ZERO) != Ok(0);
                Err(if closed { FaultKind::Closed } else { FaultKind::Malformed })
            }
            Err(nix::Error::EAGAIN) => Ok(None),
            Err(_) => Err(FaultKind::Closed),
        }
    }
}

/// What a failed hand-over says about the peer.
fn blame(errno: nix::Error) -> FaultKind {
    match errno {
        // It is idle and its queue is full: it has answered without reading.
        nix::Error::EAGAIN => FaultKind::NotItsInvocation,
        _ => FaultKind::Closed,
    }
}
