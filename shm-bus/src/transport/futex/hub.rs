//! The hub's end of the rings: an io_uring per port that waits for the peers' counts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use spry_ebpf_common::Descriptor;

use super::page::{self, Own, Theirs};
use crate::ring::{Consumer, Page, Producer, RingError, Sleep, must_wake};
use crate::sys::{self, uring::FutexWaits};
use crate::transport::hub::{Carrier, Hub, Key};
use crate::transport::{BusError, Config, FaultKind, Kind, Transport};

struct Futex;

/// The hub's half of one peer's connection.
struct Link {
    own: Own,
    theirs: Theirs,
    socket: OwnedFd,
    requests: Producer,
    answers: Consumer,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.own.close();
    }
}

/// Makes the transport, if a futex wait through io_uring works here.
pub fn transport(config: Config) -> Result<Arc<dyn Transport>, BusError> {
    if let Err(error) = probe() {
        let why = format!("io_uring can't wait for futexes here (Linux 6.7 can): {error}");
        return Err(BusError::Unavailable { kind: Kind::Futex, why });
    }
    Ok(Arc::new(Hub::<Futex>::new(config)?))
}

/// Tries what the transport lives by: a wait that is woken makes the ring readable and completes.
fn probe() -> std::io::Result<()> {
    let waits = FutexWaits::new()?;
    let word = AtomicU32::new(7);
    waits.add(&word, 7, 42)?;
    word.store(8, Ordering::Release);
    sys::futex_wake(&word);
    let mut state = [PollFd::new(waits.as_fd(), PollFlags::POLLIN)];
    poll(&mut state, PollTimeout::from(1000u16))?;
    let mut keys = Vec::new();
    waits.completed(|key| keys.push(key))?;
    if keys == [42] { Ok(()) } else { Err(std::io::Error::other("a woken wait did not complete")) }
}

fn os(operation: &'static str) -> impl Fn(std::io::Error) -> BusError {
    move |source| BusError::Os { operation, source }
}

impl Carrier for Futex {
    const KIND: Kind = Kind::Futex;
    const ONCE: bool = true;
    type Link = Link;
    type Ear = FutexWaits;

    fn ear() -> Result<FutexWaits, BusError> {
        FutexWaits::new().map_err(os("make an io_uring"))
    }

    fn ear_fd(ear: &FutexWaits) -> BorrowedFd<'_> {
        ear.as_fd()
    }

    fn heard(ear: &FutexWaits, out: &mut Vec<Key>) -> Result<bool, BusError> {
        ear.completed(|key| out.push(Key(key))).map_err(os("look for completed waits"))?;
        Ok(false)
    }

    fn listen(ear: &FutexWaits, key: Key, link: &mut Link) -> Result<(), BusError> {
        // Completes at once if something has come since the ring was last read.
        ear.add(link.theirs.produced(), link.answers.seen(), key.0).map_err(os("wait for a peer"))
    }

    fn unlisten(ear: &FutexWaits, key: Key, _: &mut Link) {
        // If it fails, a completion comes some day whose key nobody knows.
        let _ = ear.remove(key.0);
    }

    fn connect() -> Result<(Link, Vec<OwnedFd>), BusError> {
        let own = Own::map(page::make("spry-bus-hub")?)?;
        let peers = page::make("spry-bus-peer")?;
        let theirs = Theirs::map(&peers)?;
        let hubs = own.fd().try_clone_to_owned().map_err(os("duplicate a bus page"))?;
        let (socket, peer) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| os("make a bus socket")(errno.into()))?;
        let link = Link { own, theirs, socket, requests: Producer::default(), answers: Consumer::default() };
        Ok((link, vec![hubs, peers, peer]))
    }

    const LIVENESS_IS_SILENT: bool = true;

    fn liveness(link: &Link) -> BorrowedFd<'_> {
        link.socket.as_fd()
    }

    fn deliver(link: &mut Link, descriptor: &Descriptor) -> Result<(), FaultKind> {
        link.own.set_cpu(sys::current_cpu());
        link.requests.push(&link.own, &link.theirs, descriptor).map_err(|error| match error {
            // It is idle, so it has answered everything, without reading.
            RingError::Full => FaultKind::NotItsInvocation,
            RingError::Count { .. } => FaultKind::Malformed,
        })?;
        if must_wake(&link.theirs, Sleep::Item) {
            sys::futex_wake(link.own.produced());
        }
        Ok(())
    }

    fn take(link: &mut Link) -> Result<Option<Descriptor>, FaultKind> {
        let taken = link.answers.pop(&link.own, &link.theirs).map_err(|_| FaultKind::Malformed)?;
        if taken.is_some() && must_wake(&link.theirs, Sleep::Room) {
            sys::futex_wake(link.own.consumed());
        }
        Ok(taken)
    }
}
