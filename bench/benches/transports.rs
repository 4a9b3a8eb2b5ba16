//! Round trip of one descriptor, hub to peer to hub, on each transport, with the peer in its own process: both on
//! one core, and on two. Beside them, in the same run, a plain Unix seqpacket pair as the baseline.
//!
//! The peer is this binary, started again with a role in its environment. A transport that isn't to be had
//! here is left out, and says why.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use criterion::Criterion;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::Pid;
use shm_bus::Descriptor;
use shm_bus::endpoint;
use shm_bus::ids::{FunctionIndex, PortIndex};
use shm_bus::transport::{Config, Kind, select};
use spry_ebpf_common::PORT_BIT;

const FUNCTION: FunctionIndex = FunctionIndex(0);
const PORT: PortIndex = PortIndex(0);

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
    criterion.final_summary();
}
