//! The bare bus: one descriptor to a process that sends it back at once, and nothing else. What a hop of a chain
//! costs is compared with half of such a round trip.
//!
//! The same with many such processes, each a function of its own that the kernel routes on from: how much of a hop are
//! the processes' address spaces, which a ping-pong of two has in the processor's caches all the time.
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
use shm_bus::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};
use shm_bus::transport::{BusError, Config, Event, Kind, Port, Transport, select};

use crate::{load, process, sys};

const FUNCTION: FunctionIndex = FunctionIndex(0);
const PORT: PortIndex = PortIndex(0);
const ROUTE: RouteIndex = RouteIndex(0);
const TRAIL: TrailIndex = TrailIndex { port: PORT, index: 0 };

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
    peers: Vec<(PeerId, Child)>,
    invocation: u64,
    events: Vec<Event>,
}

impl PingPong {
    /// Starts this program (`binary`) as the other side, `peers` times: as a function each.
    pub fn start(binary: &Path, kind: Kind, peers: u16) -> Result<Self, PingPongError> {
        let hub = select(Some(kind), Config::default())?.transport;
        let port = hub.open_port(PORT)?;
        let mut started = Self { hub, port, peers: Vec::new(), invocation: 0, events: Vec::new() };
        for function in 0..peers {
            started.add(binary, kind, FunctionIndex(function))?;
        }
        Ok(started)
    }

    fn add(&mut self, binary: &Path, kind: Kind, function: FunctionIndex) -> Result<(), PingPongError> {
        let attachment = self.hub.attach(function)?;
        let fds: Vec<RawFd> = attachment.endpoint.iter().map(AsRawFd::as_raw_fd).collect();
        let names: Vec<String> = fds.iter().map(ToString::to_string).collect();
        let mut command = Command::new(binary);
        command.args(["peer", kind.name(), &names.join(",")]);
        let child = sys::keep_open(sys::end_with_spawner(&mut command), fds).spawn();
        let child = child.map_err(failed("start the other side"))?;
        self.peers.push((attachment.peer, child));
        self.hub.admit(attachment.peer);
        Ok(())
    }

    /// Restricts the other side to these CPUs.
    pub fn restrict(&self, cpus: &[usize]) -> Result<(), PingPongError> {
        for (_, child) in &self.peers {
            let pid = nix::unistd::Pid::from_raw(child.id() as i32);
            let tree = process::tree(pid).map_err(failed("find the other side"))?;
            process::restrict(&tree, cpus).map_err(failed("restrict the other side"))?;
        }
        Ok(())
    }

    /// What it costs to go from one peer to the next, in microseconds: the median of a chain of all of them without the
    /// median of a chain of one.
    pub fn hop_us(&mut self, time: Duration) -> Result<f64, PingPongError> {
        let steps: Vec<_> = (0..self.peers.len() as u16).map(FunctionIndex).collect();
        self.hub.set_route(ROUTE, &steps[..1])?;
        let one = self.trips_us(time / 2, true)?;
        self.hub.set_route(ROUTE, &steps)?;
        let all = self.trips_us(time / 2, true)?;
        Ok((all - one) / (steps.len() - 1) as f64)
    }

    /// Goes there and back for so long; the median of the round trips, in microseconds.
    pub fn median_us(&mut self, time: Duration) -> Result<f64, PingPongError> {
        self.trips_us(time, false)
    }

    fn trips_us(&mut self, time: Duration, chain: bool) -> Result<f64, PingPongError> {
        let mut histogram = load::histogram();
        let begin = Instant::now();
        // The first tenth only warms up.
        while begin.elapsed() < time {
            let sent = Instant::now();
            self.round_trip(chain)?;
            if begin.elapsed() > time / 10 {
                histogram.saturating_record(sent.elapsed().as_nanos() as u64);
            }
        }
        Ok(histogram.value_at_quantile(0.5) as f64 / 1000.0)
    }

    fn round_trip(&mut self, chain: bool) -> Result<(), PingPongError> {
        self.invocation += 1;
        let route = if chain { ROUTE.in_descriptor() } else { FUNCTION.0 };
        if chain {
            self.hub.begin_trail(TRAIL, InvocationId(self.invocation), u64::MAX);
        }
        let source = TRAIL.in_descriptor();
        let item = Descriptor { source, route, invocation: self.invocation, ..Descriptor::default() };
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
        for (peer, child) in &mut self.peers {
            // Its end of the bus closes, and it ends.
            self.hub.detach(*peer);
            // Waiting fails only when it was reaped already.
            let _ = child.wait();
        }
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
