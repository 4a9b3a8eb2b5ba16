//! What a program that stands still for a moment would show, with the table in a state that it passes through.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use spry_ebpf_common::{Descriptor, STATE_IDLE};

use super::endpoint;
use super::hub::Sockmap;
use crate::ids::{FunctionIndex, InvocationId, PortIndex};
use crate::transport::{BusError, Config, Event, Fault, FaultKind, Port, Sent, Transport};

const FUNCTION: FunctionIndex = FunctionIndex(0);
const PORT: PortIndex = PortIndex(0);

fn wait(fd: impl AsFd) {
    let timeout = PollTimeout::try_from(Duration::from_secs(60)).unwrap();
    assert_eq!(poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout), Ok(1), "nothing came");
}

fn events(port: &mut dyn Port) -> Vec<Event> {
    wait(port.fd());
    let mut events = Vec::new();
    port.receive(&mut events).unwrap();
    events
}

/// A chain that goes through a function twice brings an invocation to the same slot again. Who answers it between the two
/// steps of that claim would answer by what is left of the first time.
#[test]
fn what_is_just_being_put_there_again_can_not_be_answered() {
    let bus = match Sockmap::new(Config { functions: 1, ports: 1 }) {
        Ok(bus) => bus,
        Err(why @ BusError::Unavailable { .. }) => {
            assert_ne!(std::env::var("SPRY_TEST_ALL").as_deref(), Ok("1"), "would be skipped: {why}");
            return eprintln!("SKIPPED: {why}");
        }
        Err(error) => panic!("{error}"),
    };
    let mut port = bus.open_port(PORT).unwrap();
    let attachment = bus.attach(FUNCTION).unwrap();
    let (peer, mut end) = (attachment.peer, endpoint::open(attachment.endpoint).unwrap());
    assert!(bus.admit(peer));
    let sent = Descriptor { invocation: 7, ..Descriptor::default() };
    assert_eq!(port.send(FUNCTION, &sent).unwrap(), Sent::Delivered);
    end.receive().unwrap();
    end.send(&sent).unwrap();
    assert!(matches!(events(port.as_mut())[..], [Event::Answer(_)]));

    // The first step of a claim; the fields and `claimed` follow.
    let cell = &bus.inner.table.cells().slots[peer.slot as usize];
    let begun = cell.state.compare_exchange(STATE_IDLE, 7, Ordering::AcqRel, Ordering::Relaxed);
    assert_eq!(begun, Ok(STATE_IDLE));
    end.send(&sent).unwrap();
    wait(bus.faults_fd());
    let mut faults = Vec::new();
    bus.faults(&mut faults);
    assert_eq!(faults, [Fault { peer, kind: FaultKind::NotItsInvocation }]);
    let mut answered = Vec::new();
    port.receive(&mut answered).unwrap();
    assert_eq!((answered, cell.state.load(Ordering::Acquire)), (Vec::new(), 7));
    cell.claimed.store(7, Ordering::Release);
    assert_eq!(bus.detach(peer), Some((InvocationId(7), PORT)));

    // Nor by who comes to the slot next.
    assert_eq!(bus.inner.table.attach(peer.slot).slot, peer.slot);
    assert_eq!(cell.claimed.load(Ordering::Acquire), 0);
}
