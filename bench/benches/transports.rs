//! Round trip of one descriptor, hub to peer to hub, on each transport, with the peer in its own process: both on
//! one core, and on two. Beside them, in the same run, a plain Unix seqpacket pair as the baseline.
//!
//! Then a chain of sixteen such peers on one core: what a hop from one to the next costs, (chain of 16 - chain of
//! 1) / 15, beside half a round trip of the same transport in the same run.
//!
//! The peer is this binary, started again with a role in its environment. A transport that isn't to be had
//! here is left out, and says why.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::Criterion;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::Pid;
use shm_bus::Descriptor;
use shm_bus::endpoint;
use shm_bus::ids::{FunctionIndex, InvocationId, PortIndex, RouteIndex, TrailIndex};
use shm_bus::transport::{Config, Event, Kind, Port, Transport, select};
use spry_ebpf_common::PORT_BIT;

const FUNCTION: FunctionIndex = FunctionIndex(0);
const PORT: PortIndex = PortIndex(0);
const ROUTE: RouteIndex = RouteIndex(0);

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU number");
    sched_setaffinity(Pid::from_raw(0), &set).expect("pin to a CPU");
}

/// Runs as a peer, if that is what this process was started for.
fn peer() {
    let Ok(role) = std::env::var("SPRY_BENCH_PEER") else { return };
    let number = |name| std::env::var(name).expect(name);
    pin(number("SPRY_BENCH_CPU").parse().expect("a CPU"));
    let names = number("SPRY_BENCH_FDS");
    let fds: Vec<OwnedFd> = names
        .split(',')
        // SAFETY: the parent has left these open for us, each once.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd.parse().expect("a number")) })
        .collect();
    if role == "plain" {
        let mut bytes = [0; 32];
        while recv(fds[0].as_raw_fd(), &mut bytes, MsgFlags::empty()) == Ok(32) {
            if send(fds[0].as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).is_err() {
                break;
            }
        }
    } else {
        let mut endpoint = endpoint::open(role.parse().expect("a kind"), fds).expect("open");
        while let Ok(Some(got)) = endpoint.receive() {
            if endpoint.send(&got).is_err() {
                break;
            }
        }
    }
    std::process::exit(0);
}

fn start(role: &str, cpu: usize, fds: &[OwnedFd]) -> Child {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let names: Vec<String> = raw.iter().map(ToString::to_string).collect();
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .env("SPRY_BENCH_PEER", role)
        .env("SPRY_BENCH_CPU", cpu.to_string())
        .env("SPRY_BENCH_FDS", names.join(","));
    // SAFETY: only fcntl between fork and exec, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            for fd in &raw {
                fcntl(BorrowedFd::borrow_raw(*fd), FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            Ok(())
        });
    }
    command.spawn().expect("start a peer")
}

fn readable(fd: BorrowedFd<'_>) {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE).expect("poll");
}

fn plain(criterion: &mut Criterion, place: &str, cpu: usize) {
    let (hub, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("pair");
    let mut child = start("plain", cpu, &[theirs]);
    criterion.bench_function(&format!("roundtrip/{place}/baseline_seqpacket"), |bencher| {
        let mut bytes = [1; 32];
        bencher.iter(|| {
            send(hub.as_raw_fd(), &bytes, MsgFlags::empty()).expect("send");
            readable(hub.as_fd());
            recv(hub.as_raw_fd(), &mut bytes, MsgFlags::empty()).expect("receive")
        });
    });
    drop(hub);
    child.wait().expect("the peer ends");
}

fn transport(criterion: &mut Criterion, place: &str, cpu: usize, kind: Kind) {
    let hub = match select(Some(kind), Config::default()) {
        Ok(selected) => selected.transport,
        Err(why) => return eprintln!("roundtrip/{place}/{kind} is left out: {why}"),
    };
    let mut port = hub.open_port(PORT).expect("open a port");
    let attachment = hub.attach(FUNCTION).expect("attach");
    let mut child = start(kind.name(), cpu, &attachment.endpoint);
    drop(attachment.endpoint);
    assert!(hub.admit(attachment.peer));
    let mut descriptor =
        Descriptor { source: PORT_BIT | u32::from(PORT.0), invocation: 1, ..Descriptor::default() };
    let mut events = Vec::new();
    criterion.bench_function(&format!("roundtrip/{place}/{kind}"), |bencher| {
        bencher.iter(|| {
            descriptor.invocation += 1;
            port.send(FUNCTION, &descriptor).expect("send");
            events.clear();
            while port.receive(&mut events).expect("receive") == 0 {
                readable(port.fd());
            }
            events[0]
        });
    });
    hub.detach(attachment.peer);
    child.wait().expect("the peer ends");
}

/// Steps of the chain whose hops are counted.
const STEPS: u16 = 16;

/// Sends runs and waits for each result; how long each took goes into `took`.
fn runs(hub: &dyn Transport, port: &mut dyn Port, chain: bool, number: u64, took: &mut Vec<u64>) -> Duration {
    static INVOCATIONS: AtomicU64 = AtomicU64::new(1);
    let trail = TrailIndex { port: PORT, index: 0 };
    let route = if chain { ROUTE.in_descriptor() } else { FUNCTION.0 };
    let mut events = Vec::new();
    let mut all = Duration::ZERO;
    for _ in 0..number {
        let invocation = INVOCATIONS.fetch_add(1, Ordering::Relaxed);
        let sent = Descriptor { source: trail.in_descriptor(), route, invocation, ..Descriptor::default() };
        let start = Instant::now();
        if chain {
            hub.begin_trail(trail, InvocationId(invocation), u64::MAX);
        }
        port.send(FUNCTION, &sent).expect("send");
        events.clear();
        while port.receive(&mut events).expect("receive") == 0 {
            readable(port.fd());
        }
        let this = start.elapsed();
        assert!(
            matches!(events[..], [Event::Answer(result)] if result.invocation == invocation),
            "{events:?}"
        );
        took.push(this.as_nanos() as u64);
        all += this;
    }
    all
}

fn median_us(mut took: Vec<u64>) -> f64 {
    took.sort_unstable();
    took[took.len() / 2] as f64 / 1000.0
}

fn hops(criterion: &mut Criterion, kind: Kind) {
    let hub = match select(Some(kind), Config::default()) {
        Ok(selected) => selected.transport,
        Err(why) => return eprintln!("hop/{kind} is left out: {why}"),
    };
    let mut port = hub.open_port(PORT).expect("open a port");
    let steps: Vec<_> = (0..STEPS).map(FunctionIndex).collect();
    let peers: Vec<_> = steps
        .iter()
        .map(|step| {
            let attachment = hub.attach(*step).expect("attach");
            let child = start(kind.name(), 0, &attachment.endpoint);
            assert!(hub.admit(attachment.peer));
            (attachment.peer, child)
        })
        .collect();
    let mut took = [(); 3].map(|()| Vec::new());
    for ((name, len), took) in
        [("roundtrip", 0), ("chain_of_1", 1), ("chain_of_16", STEPS)].iter().zip(&mut took)
    {
        if *len > 0 {
            hub.set_route(ROUTE, &steps[..usize::from(*len)]).expect("set the route");
        }
        criterion.bench_function(&format!("hop/{kind}/{name}"), |bencher| {
            bencher.iter_custom(|number| runs(&*hub, &mut *port, *len > 0, number, took));
        });
    }
    for (peer, mut child) in peers {
        hub.detach(peer);
        child.wait().expect("the peer ends");
    }
    if took.iter().all(|took| !took.is_empty()) {
        let [roundtrip, one, sixteen] = took.map(median_us);
        let hop = (sixteen - one) / f64::from(STEPS - 1);
        println!(
            "hop/{kind}: p50 {hop:.2} us, half a round trip {:.2} us, ratio {:.2}",
            roundtrip / 2.0,
            2.0 * hop / roundtrip
        );
    }
}

fn main() {
    peer();
    let mut criterion = Criterion::default().configure_from_args();
    pin(0);
    for (place, cpu) in [("same_core", 0), ("cross_core", 1)] {
        if cpu
            >= nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten().unwrap_or(1)
                as usize
        {
            eprintln!("roundtrip/{place} is left out: there is one CPU");
            continue;
        }
        plain(&mut criterion, place, cpu);
        for kind in [Kind::Sockmap, Kind::Futex, Kind::Broker] {
            transport(&mut criterion, place, cpu, kind);
        }
    }
    for kind in [Kind::Sockmap, Kind::Futex, Kind::Broker] {
        hops(&mut criterion, kind);
    }
    criterion.final_summary();
}
