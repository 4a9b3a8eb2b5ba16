//! The hub's ends of all instance connections, in one epoll instance. Each is reported once: a peer that
//! has sent one message against the rules is as good as dead, however many follow.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::ids::PeerId;
use crate::transport::BusError;

/// Waits for peers that break the rules or close their ends.
pub(super) struct Watch {
    epoll: Epoll,
}

impl Watch {
    pub(super) fn new() -> Result<Self, BusError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        epoll.map(|epoll| Self { epoll }).map_err(os("make an epoll instance"))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    pub(super) fn add(&self, peer: PeerId, socket: BorrowedFd<'_>) -> Result<(), BusError> {
        self.epoll.add(socket, once(peer)).map_err(os("watch a bus socket"))
    }

    /// Goes on watching a socket that was reported for nothing.
    pub(super) fn again(&self, peer: PeerId, socket: BorrowedFd<'_>) {
        let rearmed = self.epoll.modify(socket, &mut once(peer));
        debug_assert!(rearmed.is_ok(), "a socket that is watched: {rearmed:?}");
    }

    pub(super) fn remove(&self, socket: BorrowedFd<'_>) {
        let removed = self.epoll.delete(socket);
        debug_assert!(removed.is_ok(), "a socket that is watched: {removed:?}");
    }

    /// Whose sockets have something; each once.
    pub(super) fn ready(&self) -> Vec<PeerId> {
        let mut peers = Vec::new();
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
            peers.extend(events[..count].iter().map(|event| {
                let data = event.data();
                PeerId { slot: data as u32, generation: (data >> 32) as u32 }
            }));
            if count < events.len() {
                return peers;
            }
        }
    }
}

fn once(peer: PeerId) -> EpollEvent {
    let what = EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLONESHOT;
    EpollEvent::new(what, u64::from(peer.slot) | u64::from(peer.generation) << 32)
}

fn os(operation: &'static str) -> impl Fn(nix::Error) -> BusError {
    move |errno| BusError::Os { operation, source: errno.into() }
}
