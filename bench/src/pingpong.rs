//! The bare bus: one descriptor to a process that sends it back at once, and nothing else. What a hop of a chain
//! costs is compared with half of such a round trip.
//!
//! It has a hub of its own in this process, so it runs beside any number of nodes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shm_bus::Descriptor;
use shm_bus::endpoint;
use shm_bus::ids::{FunctionIndex, PeerId, PortIndex};
use shm_bus::transport::{BusError, Config, Event, Kind, Port, Transport, select};
use spry_ebpf_common::PORT_BIT;

use crate::{load, process, sys};

const FUNCTION: FunctionIndex = FunctionIndex(0);
const PORT: PortIndex = PortIndex(0);

/// Why there is no round trip.
#[derive(Debug, thiserror::Error)]
pub enum PingPongError {
    /// The bus failed.
    #[error("ping-pong: {0}")]
    Bus(#[from] BusError),
    /// A system call failed.
    #[error("ping-pong: {operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other side did something else than send it back.
    #[error("ping-pong: instead of an answer: {0}")]
    Other(&'static str),
}

fn failed<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> PingPongError {
    move |source| PingPongError::Io { operation, source: source.into() }
}

/// The side that begins.
pub struct PingPong {
    hub: Arc<dyn Transport>,
    port: Box<dyn Port>,
    peer: PeerId,
    child: Child,
    invocation: u64,
    events: Vec<Event>,
}

impl PingPong {
    /// Starts this program (`binary`) as the other side.
    pub fn start(binary: &Path, kind: Kind) -> Result<Self, PingPongError> {
        let hub = select(Some(kind), Config::default())?.transport;
        let port = hub.open_port(PORT)?;
        let attachment = hub.attach(FUNCTION)?;
        let fds: Vec<RawFd> = attachment.endpoint.iter().map(AsRawFd::as_raw_fd).collect();
        let names: Vec<String> = fds.iter().map(ToString::to_string).collect();
        let mut command = Command::new(binary);
        command.args(["peer", kind.name(), &names.join(",")]);
        let child = sys::keep_open(sys::end_with_spawner(&mut command), fds).spawn();
        let child = child.map_err(failed("start the other side"))?;
        let started = Self { hub, port, peer: attachment.peer, child, invocation: 0, events: Vec::new() };
        started.hub.admit(started.peer);
        Ok(started)
    }

    /// Restricts the other side to these CPUs.
    pub fn restrict(&self, cpus: &[usize]) -> Result<(), PingPongError> {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let tree = process::tree(pid).map_err(failed("find the other side"))?;
        process::restrict(&tree, cpus).map_err(failed("restrict the other side"))
    }

    /// Goes there and back for so long; the median of the round trips, in microseconds.
    pub fn median_us(&mut self, time: Duration) -> Result<f64, PingPongError> {
        let mut histogram = load::histogram();
        let begin = Instant::now();
        // The first tenth only warms up.
        while begin.elapsed() < time {
            let sent = Instant::now();
            self.round_trip()?;
            if begin.elapsed() > time / 10 {
                histogram.saturating_record(sent.elapsed().as_nanos() as u64);
            }
        }
        Ok(histogram.value_at_quantile(0.5) as f64 / 1000.0)
    }

    fn round_trip(&mut self) -> Result<(), PingPongError> {
        self.invocation += 1;
        let source = PORT_BIT | u32::from(PORT.0);
        let item = Descriptor { source, invocation: self.invocation, ..Descriptor::default() };
        self.port.send(FUNCTION, &item)?;
        self.events.clear();
        while self.port.receive(&mut self.events)? == 0 {
            let mut fds = [PollFd::new(self.port.fd(), PollFlags::POLLIN)];
            // Long enough for any machine; a peer that has died must not hang the benchmark.
            if poll(&mut fds, PollTimeout::from(5000u16)).map_err(failed("poll"))? == 0 {
                return Err(PingPongError::Other("nothing for five seconds"));
            }
        }
        match self.events[..] {
            [Event::Answer(answer)] if answer.invocation == self.invocation => Ok(()),
            _ => Err(PingPongError::Other("another event")),
        }
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        // Its end of the bus closes, and it ends.
        self.hub.detach(self.peer);
        // Waiting fails only when it was reaped already.
        let _ = self.child.wait();
    }
}

/// The other side: sends everything back until the hub is gone. `fds` are those of its endpoint, left open by the
/// parent.
pub fn serve(kind: Kind, fds: Vec<OwnedFd>) -> Result<(), PingPongError> {
    let mut endpoint = endpoint::open(kind, fds)?;
    while let Ok(Some(item)) = endpoint.receive() {
        if endpoint.send(&item).is_err() {
            break;
        }
    }
    Ok(())
}
