//! Peers that broke the rules or died: one fd that becomes readable, and the list.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::ids::PeerId;
use crate::transport::{BusError, Fault, FaultKind};

/// An epoll instance with every peer's socket (its end of file is the peer's death) and a bell, which is
/// rung for what a port has noticed.
pub(super) struct Faults {
    epoll: Epoll,
    bell: EventFd,
    noticed: Mutex<Vec<Fault>>,
}

const BELL: u64 = u64::MAX;

impl Faults {
    pub(super) fn new() -> Result<Self, BusError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(os("make an epoll instance"))?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(os("make an eventfd"))?;
        epoll
            .add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))
            .map_err(os("watch the bell of faults"))?;
        Ok(Self { epoll, bell, noticed: Mutex::default() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Watches a peer's socket for its end of file, which is reported once; so is anything that a peer writes
    /// to a socket that is to stay `silent`.
    pub(super) fn watch(&self, peer: PeerId, socket: BorrowedFd<'_>, silent: bool) -> Result<(), BusError> {
        let data = u64::from(peer.slot) | u64::from(peer.generation) << 32;
        let noise = if silent { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
        let event = EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT | noise, data);
        self.epoll.add(socket, event).map_err(os("watch a peer"))
    }

    pub(super) fn forget(&self, socket: BorrowedFd<'_>) {
        let _gone_or_closed = self.epoll.delete(socket);
    }

    pub(super) fn report(&self, fault: Fault) {
        self.noticed.lock().push(fault);
        // Full only if it was rung 2^64 times: then it rings already.
        let _ = self.bell.write(1);
    }

    /// Appends what ports have noticed; returns those that their sockets tell of.
    pub(super) fn collect(&self, out: &mut Vec<Fault>) -> Vec<Fault> {
        let mut told = Vec::new();
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            for event in &events[..count] {
                if event.data() == BELL {
                    // Before the list is taken: what is added after that rings again.
                    let _ = self.bell.read();
                } else {
                    let (slot, generation) = (event.data() as u32, (event.data() >> 32) as u32);
                    let closed = event.events().intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP);
                    let kind = if closed { FaultKind::Closed } else { FaultKind::Malformed };
                    told.push(Fault { peer: PeerId { slot, generation }, kind });
                }
            }
            if count < events.len() {
                break;
            }
        }
        out.append(&mut self.noticed.lock());
        told
    }
}

fn os(operation: &'static str) -> impl Fn(nix::Error) -> BusError {
    move |errno| BusError::Os { operation, source: errno.into() }
}
