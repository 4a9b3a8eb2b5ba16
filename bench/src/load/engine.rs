//! The event loop that drives the connections.
//!
//! Sockets are registered once, edge-triggered for both directions, so a request costs one wait, one read
//! and one write. A connection is closed and opened anew after anything but a right answer.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::time::{ClockId, clock_gettime};

use super::connection::{Connection, Progress, Times};
use super::{Failure, Failures, LoadError, Outcome, Pacer, Plan, Starts, Target, histogram};
use crate::http1::Start;
use crate::stop::Stop;
use crate::sys;

/// How often time-outs and the stop flag are looked at when nothing else happens.
const TICK: Duration = Duration::from_millis(50);
/// How long a connection that was refused waits before it tries again.
const RETRY_NS: u64 = 10_000_000;
/// One read takes at most this much.
const BUFFER: usize = 256 * 1024;

/// Runs the plan against the target, on the calling thread.
pub fn run(target: &Target, plan: &Plan, stop: &Stop) -> Result<Outcome, LoadError> {
    // The default slack of 50 µs would be added to every wait of an open loop; where it can't be changed the run
    // is still right, only later.
    let _ = nix::sys::prctl::set_timerslack(1);
    let mut engine = Engine::new(target, plan)?;
    let cpu_before = thread_cpu();
    engine.clock = Instant::now();
    engine.drive(stop)?;
    let elapsed = Duration::from_nanos(engine.last_ns.max(1));
    for _ in 0..engine.pacer.unsent() {
        engine.failures.add(Failure::Unsent);
    }
    Ok(Outcome {
        done: engine.latency.len(),
        failures: engine.failures,
        latency: engine.latency,
        elapsed,
        client_cpu: thread_cpu().saturating_sub(cpu_before),
        backlog_max: engine.pacer.backlog_max(),
        starts: engine.starts,
    })
}

fn thread_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

struct Engine<'a> {
    target: &'a Target,
    plan: &'a Plan,
    epoll: Epoll,
    clock: Instant,
    pacer: Pacer,
    slots: Vec<Option<Connection>>,
    /// Slots without a request, longest idle first, and when each may be used.
    idle: VecDeque<(u64, usize)>,
    under_way: usize,
    failures: Failures,
    latency: hdrhistogram::Histogram<u64>,
    starts: Starts,
    last_ns: u64,
}

impl<'a> Engine<'a> {
    fn new(target: &'a Target, plan: &'a Plan) -> Result<Self, LoadError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|source| LoadError::Poll { operation: "epoll_create1", source: source.into() })?;
        let mut engine = Self {
            target,
            plan,
            epoll,
            clock: Instant::now(),
            pacer: Pacer::new(plan.pace, plan.until),
            slots: (0..plan.connections.max(1)).map(|_| None).collect(),
            idle: VecDeque::new(),
            under_way: 0,
            failures: Failures::default(),
            latency: histogram(),
            starts: Starts::default(),
            last_ns: 0,
        };
        for slot in 0..engine.slots.len() {
            engine.connect(slot).map_err(|source| LoadError::Connect { address: target.address, source })?;
            engine.idle.push_back((0, slot));
        }
        Ok(engine)
    }

    fn connect(&mut self, slot: usize) -> std::io::Result<()> {
        let connection = Connection::open(self.target)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(connection.stream.as_fd(), EpollEvent::new(flags, slot as u64))?;
        self.slots[slot] = Some(connection);
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    fn drive(&mut self, stop: &Stop) -> Result<(), LoadError> {
        let mut events = vec![EpollEvent::empty(); 256];
        let mut buffer = vec![0; BUFFER];
        let mut next_scan_ns = TICK.as_nanos() as u64;
        loop {
            let now = self.now_ns();
            self.pacer.advance(now);
            self.start_idle(now);
            if self.under_way == 0 && self.pacer.is_over(now) {
                return Ok(());
            }
            let due = self.pacer.next_due().map(|due| due.saturating_sub(now));
            let retry = self.idle.front().map(|(at, _)| at.saturating_sub(now)).filter(|wait| *wait > 0);
            let wait = [due, retry].into_iter().flatten().fold(TICK.as_nanos() as u64, u64::min);
            let count = sys::wait(&self.epoll, &mut events, Duration::from_nanos(wait))
                .map_err(|source| LoadError::Poll { operation: "epoll_pwait2", source })?;
            for event in &events[..count] {
                let ends = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                self.ready(event.data() as usize, event.events().intersects(ends), &mut buffer);
            }
            let now = self.now_ns();
            if now >= next_scan_ns {
                next_scan_ns = now + TICK.as_nanos() as u64;
                if stop.is_set() {
                    return Err(LoadError::Interrupted);
                }
                if self.give_up_late(now) {
                    return Ok(());
                }
            }
        }
    }

    fn start_idle(&mut self, now: u64) {
        while self.idle.front().is_some_and(|(at, _)| *at <= now) {
            let Some(due_ns) = self.pacer.take(now) else { return };
            let (_, slot) = self.idle.pop_front().expect("looked at above");
            self.start(slot, due_ns, now);
        }
    }

    fn start(&mut self, slot: usize, due_ns: u64, now: u64) {
        if self.slots[slot].is_none() && self.connect(slot).is_err() {
            self.failures.add(Failure::Connect);
            self.idle.push_back((now + RETRY_NS, slot));
            return;
        }
        let connection = self.slots[slot].as_mut().expect("connected above");
        self.under_way += 1;
        if let Err(failure) = connection.start(self.target, Times { due_ns, sent_ns: now }) {
            self.fail(slot, failure, now);
        }
    }

    fn ready(&mut self, slot: usize, hung_up: bool, buffer: &mut [u8]) {
        let Some(connection) = self.slots[slot].as_mut() else { return };
        match connection.ready(self.target, hung_up, buffer) {
            Progress::Waiting | Progress::Next => {}
            // A request that has yet to come finds no connection and opens one.
            Progress::Gone => self.slots[slot] = None,
            Progress::Surplus => {
                self.failures.add(Failure::Surplus);
                self.slots[slot] = None;
            }
            Progress::Ended { result: Err(failure), reusable } => {
                let now = self.now_ns();
                // An error that came as a proper response leaves the connection as good as before.
                if reusable {
                    self.failures.add(failure);
                    self.ended(slot, now);
                } else {
                    self.fail(slot, failure, now);
                }
            }
            Progress::Ended { result: Ok(head), reusable } => {
                let times = connection.request.expect("only a request under way ends");
                let now = self.now_ns();
                self.latency.saturating_record(now - times.due_ns);
                match head.start {
                    Some(Start::Warm) => self.starts.warm += 1,
                    Some(Start::Forked) => self.starts.forked += 1,
                    Some(Start::Cold) => self.starts.cold += 1,
                    None => {}
                }
                if !reusable {
                    self.slots[slot] = None;
                }
                self.ended(slot, now);
            }
        }
    }

    fn fail(&mut self, slot: usize, failure: Failure, now: u64) {
        self.failures.add(failure);
        self.slots[slot] = None;
        self.ended(slot, now);
    }

    /// The slot's request is over: the next one, if it is due already, starts at once.
    fn ended(&mut self, slot: usize, now: u64) {
        self.under_way -= 1;
        self.last_ns = now;
        if let Some(connection) = self.slots[slot].as_mut() {
            connection.request = None;
            self.pacer.advance(now);
            if let Some(due_ns) = self.pacer.take(now) {
                self.start(slot, due_ns, now);
                return;
            }
        }
        self.idle.push_back((now, slot));
    }

    /// Ends requests that have taken too long. True: the run has lasted for
    /// longer than planned by a whole time-out, and is cut short.
    fn give_up_late(&mut self, now: u64) -> bool {
        let timeout = self.plan.timeout.as_nanos() as u64;
        for slot in 0..self.slots.len() {
            let times = self.slots[slot].as_ref().and_then(|connection| connection.request);
            if times.is_some_and(|times| now - times.sent_ns > timeout) {
                self.fail(slot, Failure::Timeout, now);
            }
        }
        let end = match self.plan.until {
            super::Until::Elapsed(time) => time.as_nanos() as u64,
            super::Until::Requests(_) => return false,
        };
        if now <= end + timeout {
            return false;
        }
        // An open loop that asked for more than the server gives: what has piled up is reported as unsent.
        for _ in 0..self.under_way {
            self.failures.add(Failure::Timeout);
        }
        true
    }
}
