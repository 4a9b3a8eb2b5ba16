//! The peer's end of the two rings.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use spry_ebpf_common::Descriptor;

use super::page::{Own, Theirs};
use super::spin::{SPIN, Spin};
use crate::ring::{Consumer, Page, Producer, RingError, Sleep, awake, going_to_sleep};
use crate::sys;
use crate::transport::{BusError, Endpoint, Kind};

/// A hub that closes wakes its peers. One that was killed can't; so a sleeping peer looks at the socket
/// this often. (A thread or a signal would notice sooner, and isn't worth having in a function's process.)
const LIVENESS: Duration = Duration::from_secs(2);
/// Looks at the ring between two looks at the clock.
const LOOKS: u32 = 32;

struct FutexEndpoint {
    hub: Theirs,
    own: Own,
    socket: OwnedFd,
    requests: Consumer,
    answers: Producer,
    spin: Spin,
}

/// Takes three fds: the hub's page, the peer's page, the socket.
pub(in crate::transport) fn open(fds: Vec<OwnedFd>) -> Result<Box<dyn Endpoint>, BusError> {
    let [hub, own, socket] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|fds| BusError::Endpoint { kind: Kind::Futex, fds: fds.len() })?;
    Ok(Box::new(FutexEndpoint {
        hub: Theirs::map(hub)?,
        own: Own::map(own)?,
        socket,
        requests: Consumer::default(),
        answers: Producer::default(),
        spin: Spin::default(),
    }))
}

impl FutexEndpoint {
    /// Something is there, or the hub is done.
    fn stirred(&self) -> bool {
        self.hub.produced().load(std::sync::atomic::Ordering::Relaxed) != self.requests.seen()
            || self.hub.closed()
    }

    /// True: something stirred meanwhile.
    fn spin(&mut self) -> bool {
        if !self.spin.should(sys::current_cpu(), self.hub.cpu()) {
            return false;
        }
        let start = Instant::now();
        let stirred = loop {
            if (0..LOOKS).any(|_| {
                std::hint::spin_loop();
                self.stirred()
            }) {
                break true;
            }
            if start.elapsed() >= SPIN {
                break false;
            }
        };
        self.spin.learn(stirred);
        stirred
    }

    /// False: the hub has died.
    fn sleep(&self) -> bool {
        going_to_sleep(&self.own, Sleep::Item);
        if !self.stirred() {
            sys::futex_wait(self.hub.produced(), self.requests.seen(), LIVENESS);
        }
        awake(&self.own);
        self.stirred() || self.hub_lives()
    }

    /// Sleeps while the ring of answers is full. False: the hub is done, or has died.
    fn sleep_for_room(&self) -> bool {
        let full = |endpoint: &Self| {
            let consumed = endpoint.hub.consumed().load(std::sync::atomic::Ordering::Relaxed);
            consumed == endpoint.answers.full_at()
        };
        going_to_sleep(&self.own, Sleep::Room);
        if full(self) {
            sys::futex_wait(self.hub.consumed(), self.answers.full_at(), LIVENESS);
        }
        awake(&self.own);
        !self.hub.closed() && (!full(self) || self.hub_lives())
    }

    fn hub_lives(&self) -> bool {
        let mut state = [PollFd::new(self.socket.as_fd(), PollFlags::POLLHUP)];
        poll(&mut state, PollTimeout::ZERO) != Ok(1)
    }
}

impl Endpoint for FutexEndpoint {
    fn receive(&mut self) -> Result<Option<Descriptor>, BusError> {
        loop {
            if self.hub.closed() {
                return Ok(None);
            }
            match self.requests.pop(&self.own, &self.hub) {
                Ok(Some(descriptor)) => return Ok(Some(descriptor)),
                Ok(None) => {}
                // Its counts are changed when it closes, which may be in this moment.
                Err(_) if self.hub.closed() => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if !self.spin() && !self.sleep() {
                return Ok(None);
            }
        }
    }

    fn send(&mut self, descriptor: &Descriptor) -> Result<(), BusError> {
        loop {
            match self.answers.push(&self.own, &self.hub, descriptor) {
                Ok(()) => break,
                // The hub has not come to reading what was emitted before.
                Err(RingError::Full) if self.sleep_for_room() => {}
                Err(_) if self.hub.closed() || !self.hub_lives() => {
                    let source = std::io::ErrorKind::BrokenPipe.into();
                    return Err(BusError::Os { operation: "send on a bus ring", source });
                }
                Err(error) => return Err(error.into()),
            }
        }
        sys::futex_wake(self.own.produced());
        Ok(())
    }
}
