//! Does it work here? Asked by doing it.
//!
//! The known trap is a receiver that sleeps in the plain TCP `recv` and that no redirect wakes. So the probe
//! waits until its peer sleeps (the kernel says so in `/proc`), and only then sends; several times.

use std::fs;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use spry_ebpf_common::{Descriptor, PORT_BIT};

use super::endpoint;
use super::hub::Sockmap;
use crate::ids::{FunctionIndex, PortIndex};
use crate::transport::{Attachment, BusError, Event, Kind, Port, Sent, Transport};

/// Rounds: enough that a wake-up which is lost now and then is found.
const ROUNDS: u64 = 16;
/// A round takes microseconds; this long is never.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tries a bus that nobody uses yet, and leaves it empty again.
pub(super) fn passes_descriptors(bus: &Sockmap) -> Result<(), BusError> {
    let (port_index, function) = (PortIndex(0), FunctionIndex(0));
    let mut port = bus.open_port(port_index)?;
    let attachment = bus.attach(function)?;
    let peer = attachment.peer;
    let result = rounds(bus, port.as_mut(), attachment);
    bus.detach(peer);
    result
}

fn rounds(bus: &Sockmap, port: &mut dyn Port, attachment: Attachment) -> Result<(), BusError> {
    let (peer, function) = (attachment.peer, attachment.peer.function());
    let mut peer_end = endpoint::open(attachment.endpoint)?;
    let (name, named) = channel();
    // Not joined: if this kernel doesn't wake it, it sleeps until the process ends.
    thread::Builder::new()
        .name("spry-bus-probe".into())
        .spawn(move || {
            let _ = name.send(nix::unistd::gettid());
            while let Ok(Some(descriptor)) = peer_end.receive() {
                if peer_end.send(&Descriptor { source: 7, ..descriptor }).is_err() {
                    break;
                }
            }
        })
        .map_err(|source| BusError::Os { operation: "start the bus probe's thread", source })?;
    let thread = named.recv().map_err(|_| failed("the probe's thread didn't start"))?;
    if !bus.admit(peer) {
        return Err(failed("a new peer can't be admitted"));
    }
    for round in 1..=ROUNDS {
        wait_until_asleep(thread)?;
        let sent = Descriptor { invocation: round, source: PORT_BIT, ..Descriptor::default() };
        if port.send(function, &sent)? != Sent::Delivered {
            return Err(failed("the program finds no idle peer"));
        }
        let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        let mut wait = [PollFd::new(port.fd(), PollFlags::POLLIN)];
        let ready = poll(&mut wait, timeout)
            .map_err(|errno| BusError::Os { operation: "wait for the bus probe", source: errno.into() })?;
        let mut events = Vec::new();
        port.receive(&mut events)?;
        let expected = Descriptor { source: peer.slot, ..sent };
        if ready == 0 {
            return Err(failed("a redirected message doesn't wake its receiver"));
        }
        if events != [Event::Answer(expected)] {
            return Err(failed("a descriptor doesn't come back as it must"));
        }
    }
    Ok(())
}

/// Waits until the thread sleeps in a system call.
fn wait_until_asleep(thread: nix::unistd::Pid) -> Result<(), BusError> {
    let path = format!("/proc/self/task/{thread}/stat");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let stat = fs::read_to_string(&path)
            .map_err(|source| BusError::Os { operation: "look at the bus probe's thread", source })?;
        // `pid (name) state ...`
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S')) {
            return Ok(());
        }
        thread::yield_now();
    }
    Err(failed("the probe's thread doesn't get to receive"))
}

fn failed(why: &str) -> BusError {
    BusError::Unavailable { kind: Kind::Sockmap, why: why.to_owned() }
}
