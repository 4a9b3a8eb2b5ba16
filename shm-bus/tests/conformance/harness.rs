//! A hub with one port, peers as processes, and waiting with a watchdog.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shm_bus::ids::{FunctionIndex, InvocationId, PeerId, PortIndex, RouteIndex, TrailIndex};
use shm_bus::transport::{Config, Event, Fault, Kind, Port, Sent, Transport, select};
use shm_bus::{Descriptor, Hop};
use spry_ebpf_common::{PORT_BIT, TRAILS_PER_PORT};

/// Longer than anything takes, however slow the machine.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);
pub(crate) const FUNCTION: FunctionIndex = FunctionIndex(3);

static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Runs a case on a new transport, or says why it can't be.
pub(crate) fn with(case: &str, kind: Kind, run: fn(Bus)) {
    match select(Some(kind), Config { functions: 40, ports: 10 }) {
        Ok(selected) => {
            assert_eq!(selected.transport.kind(), kind);
            run(Bus::new(selected.transport));
        }
        Err(why) if std::env::var_os("SPRY_TEST_ALL").is_some_and(|all| all == "1") => {
            panic!("{case} on {kind} must not be skipped: {why}")
        }
        Err(why) => {
            let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
            eprintln!("SKIPPED ({count}): {case} on {kind}: {why}");
        }
    }
}

pub(crate) struct Bus {
    pub(crate) port: Box<dyn Port>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) index: PortIndex,
    next: u64,
}

impl Bus {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        let index = PortIndex(0);
        Self { port: transport.open_port(index).unwrap(), transport, index, next: 1 }
    }

    /// Another port of the same hub; its invocations have numbers of their own.
    pub(crate) fn another(&self, index: PortIndex) -> Self {
        let transport = Arc::clone(&self.transport);
        let port = transport.open_port(index).unwrap();
        Self { port, transport, index, next: u64::from(index.0) << 40 | 1 }
    }

    /// A peer process in service.
    pub(crate) fn join(&self, role: &str) -> Peer {
        self.join_with(role, &[])
    }

    /// Also hands over `more` fds, after the endpoint's.
    pub(crate) fn join_with(&self, role: &str, more: &[BorrowedFd<'_>]) -> Peer {
        self.start(FUNCTION, role, more)
    }

    /// A peer process of any function.
    pub(crate) fn join_at(&self, function: FunctionIndex, role: &str) -> Peer {
        self.start(function, role, &[])
    }

    fn start(&self, function: FunctionIndex, role: &str, more: &[BorrowedFd<'_>]) -> Peer {
        let attachment = self.transport.attach(function).unwrap();
        let child = spawn(role, self.transport.kind(), &attachment.endpoint, more);
        assert!(self.transport.admit(attachment.peer));
        Peer { id: attachment.peer, child, transport: Arc::clone(&self.transport) }
    }

    /// The next invocation's descriptor; the payload's place is derived from its number.
    pub(crate) fn descriptor(&mut self) -> Descriptor {
        let invocation = self.next;
        self.next += 1;
        Descriptor {
            segment: 5,
            generation: 6,
            offset: (invocation as u32) * 64,
            length: invocation as u32,
            invocation,
            route: FUNCTION.0,
            step: 4,
            flags: 0,
            source: PORT_BIT | u32::from(self.index.0),
        }
    }

    /// The next invocation, on a chain's route, with its trail begun.
    pub(crate) fn run(&mut self, route: RouteIndex, deadline_ns: u64) -> Descriptor {
        let descriptor = self.descriptor();
        let trail = self.trail_of(&descriptor);
        self.transport.begin_trail(trail, InvocationId(descriptor.invocation), deadline_ns);
        Descriptor { route: route.in_descriptor(), step: 0, source: trail.in_descriptor(), ..descriptor }
    }

    /// Which trail an invocation has: they are used in turn.
    pub(crate) fn trail_of(&self, descriptor: &Descriptor) -> TrailIndex {
        let index = (descriptor.invocation % u64::from(TRAILS_PER_PORT)) as u16;
        TrailIndex { port: self.index, index }
    }

    /// Which trail the next invocation will have.
    pub(crate) fn next_trail(&self) -> TrailIndex {
        self.trail_of(&Descriptor { invocation: self.next, ..Descriptor::default() })
    }

    /// The first steps of an invocation's trail.
    pub(crate) fn hops(&self, descriptor: &Descriptor, steps: usize) -> Vec<Hop> {
        let mut hops = Vec::new();
        self.transport.trail(self.trail_of(descriptor), steps, &mut hops);
        hops
    }

    /// Sends to a function; true when a peer has it (as far as is known yet).
    pub(crate) fn send_to(&mut self, function: FunctionIndex, descriptor: &Descriptor) -> bool {
        self.port.send(function, descriptor).unwrap() == Sent::Delivered
    }

    /// Sends what came back to a port on to the function that it is for.
    pub(crate) fn send_on(&mut self, function: FunctionIndex, forward: &Descriptor) -> bool {
        let source = self.trail_of(forward).in_descriptor();
        self.send_to(function, &Descriptor { source, flags: 0, ..*forward })
    }

    /// Sends; true when a peer has it (as far as is known yet).
    pub(crate) fn try_send(&mut self, descriptor: &Descriptor) -> bool {
        self.port.send(FUNCTION, descriptor).unwrap() == Sent::Delivered
    }

    /// Sends the next one to a peer that must be there.
    pub(crate) fn send(&mut self) -> Descriptor {
        let descriptor = self.descriptor();
        assert!(self.try_send(&descriptor), "no idle peer");
        descriptor
    }

    /// What has arrived; empty when nothing has within the time.
    pub(crate) fn events(&mut self, timeout: Duration) -> Vec<Event> {
        let deadline = Instant::now() + timeout;
        let mut events = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            wait(&[self.port.fd()], left);
            self.port.receive(&mut events).unwrap();
            if !events.is_empty() || left.is_zero() {
                return events;
            }
        }
    }

    /// The answer that must come.
    pub(crate) fn answer(&mut self) -> Descriptor {
        let events = self.events(WATCHDOG);
        let [Event::Answer(answer)] = events[..] else { panic!("expected one answer: {events:?}") };
        answer
    }

    /// The one event that must come.
    pub(crate) fn event(&mut self) -> Event {
        let events = self.events(WATCHDOG);
        let [event] = events[..] else { panic!("expected one event: {events:?}") };
        event
    }

    /// The fault that must be reported. Answers meanwhile are collected.
    pub(crate) fn fault(&mut self, answers: &mut Vec<Event>) -> Fault {
        let deadline = Instant::now() + WATCHDOG;
        let mut faults = Vec::new();
        while faults.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no fault was reported");
            wait(&[self.port.fd(), self.transport.faults_fd()], left);
            self.port.receive(answers).unwrap();
            self.transport.faults(&mut faults);
        }
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0]
    }

    /// Whether `descriptor` isn't with any peer: refused at once, or bounced.
    pub(crate) fn is_refused(&mut self, descriptor: &Descriptor) -> bool {
        if !self.try_send(descriptor) {
            return true;
        }
        // A transport whose kernel decides may find out after the send has returned.
        let events = self.events(Duration::from_secs(1));
        events
            .iter()
            .any(|event| matches!(event, Event::Bounced(back) if back.invocation == descriptor.invocation))
    }
}

/// Waits until one is readable.
pub(crate) fn wait(fds: &[BorrowedFd<'_>], timeout: Duration) {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::try_from(timeout).unwrap()) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(error) => panic!("poll: {error}"),
    }
}

/// A peer's process; killed, reaped and detached when dropped.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) child: Child,
    transport: Arc<dyn Transport>,
}

impl Peer {
    /// Waits for the process's own end; its exit code.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the peer does not end");
            std::thread::yield_now();
        }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.transport.detach(self.id);
    }
}

/// Starts this binary as a peer. The fds are moved to high numbers here, close-on-exec, and lose that flag
/// only in the child: a child of another test that is started meanwhile doesn't get them.
fn spawn(role: &str, kind: Kind, endpoint: &[OwnedFd], more: &[BorrowedFd<'_>]) -> Child {
    let fds = endpoint.iter().map(AsFd::as_fd).chain(more.iter().copied());
    let high: Vec<RawFd> = fds.map(|fd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(300)).unwrap()).collect();
    let names: Vec<String> = high.iter().map(ToString::to_string).collect();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "peer_process", "--nocapture", "--test-threads=1"])
        .env("SPRY_PEER_ROLE", role)
        .env("SPRY_PEER_KIND", kind.name())
        .env("SPRY_PEER_FDS", names.join(","))
        .env("SPRY_PEER_ENDPOINT", endpoint.len().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let inherited = high.clone();
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for fd in &inherited {
                let fd = BorrowedFd::borrow_raw(*fd);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    for fd in high {
        nix::unistd::close(fd).unwrap();
    }
    child
}

/// True in a process that runs nothing but this test. Elsewhere starts that process, and returns false when
/// it has succeeded.
pub(crate) fn alone(case: &str, kind: Kind) -> bool {
    if std::env::var_os("SPRY_TEST_ALONE").is_some() {
        return true;
    }
    let test = format!("{kind}::{case}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env("SPRY_TEST_ALONE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("1 passed"), "it did run: {said}");
    false
}

/// What the open descriptors of this process lead to, sorted.
pub(crate) fn open_fds() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let mut targets: Vec<String> = targets
        .map(|target| target.to_string_lossy().into_owned())
        // The directory that is being read.
        .filter(|target| !target.starts_with("/proc/"))
        // Sockets have numbers that differ from one to the next.
        .map(|target| target.split(":[").next().unwrap_or_default().to_owned())
        .collect();
    targets.sort();
    targets
}
