//! A bus with one port, and peers that are driven by hand.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use shm_bus::Descriptor;
use shm_bus::ids::{FunctionIndex, PeerId, PortIndex};
use shm_bus::transport::sockmap::Sockmap;
use shm_bus::transport::{BusError, Config, Event, Fault, Port, Sent, Transport};

pub(crate) const FUNCTION: FunctionIndex = FunctionIndex(3);
pub(crate) const PORT: PortIndex = PortIndex(2);
/// Long enough to be never: what is waited for takes microseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static SKIPPED: AtomicU32 = AtomicU32::new(0);
static INVOCATIONS: AtomicU64 = AtomicU64::new(1);

/// A bus, or `None` (said and counted) when the kernel or the rights don't allow one.
pub(crate) fn bus() -> Option<Sockmap> {
    match Sockmap::new(Config { functions: 8, ports: 4 }) {
        Ok(bus) => Some(bus),
        Err(error @ BusError::Unavailable { .. }) => {
            assert_ne!(std::env::var("SPRY_TEST_ALL").as_deref(), Ok("1"), "would be skipped: {error}");
            println!("skip {}: {error}", SKIPPED.fetch_add(1, Ordering::Relaxed) + 1);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A peer, and its half of the connection.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) socket: OwnedFd,
}

impl Peer {
    /// Attached to `FUNCTION` and admitted.
    pub(crate) fn idle(bus: &Sockmap) -> Self {
        Self::idle_of(bus, FUNCTION)
    }

    /// Attached to a function and admitted.
    pub(crate) fn idle_of(bus: &Sockmap, function: FunctionIndex) -> Self {
        let peer = Self::of(bus, function);
        assert!(bus.admit(peer.id));
        peer
    }

    pub(crate) fn new(bus: &Sockmap) -> Self {
        Self::of(bus, FUNCTION)
    }

    fn of(bus: &Sockmap, function: FunctionIndex) -> Self {
        let mut attached = bus.attach(function).expect("attach");
        let socket = attached.endpoint.pop().expect("an endpoint");
        assert!(attached.endpoint.is_empty());
        Self { id: attached.peer, socket }
    }

    /// What has been delivered; waits for it.
    pub(crate) fn receive(&self) -> Descriptor {
        wait(&self.socket);
        let mut bytes = [0; 64];
        let count = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).expect("recv");
        assert_eq!(count, 32, "one whole descriptor");
        from_bytes(bytes[..32].try_into().unwrap())
    }

    /// One send call of these bytes.
    pub(crate) fn send(&self, bytes: &[u8]) -> nix::Result<usize> {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    pub(crate) fn answer(&self, invocation: u64) {
        let answer = Descriptor { invocation, ..Descriptor::default() };
        assert_eq!(self.send(&to_bytes(&answer)), Ok(32));
    }
}

/// Waits until something can be read.
pub(crate) fn wait(fd: impl std::os::fd::AsFd) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).expect("poll");
    assert_eq!(ready, 1, "nothing came");
}

/// Whether something can be read now.
pub(crate) fn readable(fd: impl std::os::fd::AsFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("poll") == 1
}

/// An invocation that nobody had before.
pub(crate) fn new_invocation() -> u64 {
    INVOCATIONS.fetch_add(1, Ordering::Relaxed)
}

pub(crate) fn descriptor(invocation: u64) -> Descriptor {
    Descriptor {
        segment: 1,
        offset: 64,
        length: 100,
        invocation,
        source: PORT.0.into(),
        ..Descriptor::default()
    }
}

/// Sends a new invocation to an idle peer.
pub(crate) fn deliver(port: &mut dyn Port) -> u64 {
    let invocation = new_invocation();
    assert_eq!(port.send(FUNCTION, &descriptor(invocation)).expect("send"), Sent::Delivered);
    invocation
}

/// The next events at a port; waits for one.
pub(crate) fn events(port: &mut dyn Port) -> Vec<Event> {
    wait(port.fd());
    let mut events = Vec::new();
    port.receive(&mut events).expect("receive");
    events
}

/// The one answer that is there.
pub(crate) fn answer(port: &mut dyn Port) -> Descriptor {
    match events(port)[..] {
        [Event::Answer(answer)] => answer,
        ref other => panic!("{other:?}"),
    }
}

/// Waits for the one fault that is to be reported, and looks that no other is.
pub(crate) fn fault(bus: &Sockmap) -> Fault {
    wait(bus.faults_fd());
    let mut faults = Vec::new();
    bus.faults(&mut faults);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(!readable(bus.faults_fd()), "reported once");
    faults[0]
}

pub(crate) fn to_bytes(d: &Descriptor) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0..4].copy_from_slice(&d.segment.to_ne_bytes());
    bytes[4..8].copy_from_slice(&d.generation.to_ne_bytes());
    bytes[8..12].copy_from_slice(&d.offset.to_ne_bytes());
    bytes[12..16].copy_from_slice(&d.length.to_ne_bytes());
    bytes[16..24].copy_from_slice(&d.invocation.to_ne_bytes());
    bytes[24..26].copy_from_slice(&d.route.to_ne_bytes());
    bytes[26] = d.step;
    bytes[27] = d.flags;
    bytes[28..32].copy_from_slice(&d.source.to_ne_bytes());
    bytes
}

pub(crate) fn from_bytes(b: &[u8; 32]) -> Descriptor {
    let word = |at: usize| u32::from_ne_bytes(b[at..at + 4].try_into().unwrap());
    Descriptor {
        segment: word(0),
        generation: word(4),
        offset: word(8),
        length: word(12),
        invocation: u64::from_ne_bytes(b[16..24].try_into().unwrap()),
        route: u16::from_ne_bytes(b[24..26].try_into().unwrap()),
        step: b[26],
        flags: b[27],
        source: word(28),
    }
}
